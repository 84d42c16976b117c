"""``eval``: an SAE and a selection to a report."""

from dataclasses import dataclass
from math import inf, isfinite
from pathlib import Path
from typing import Annotated, Literal

from sae_forge.config.fields import Alias
from sae_forge.config.questions import Half, QuestionFilter, QuestionsConfig
from sae_forge.config.sampling import SamplingConfig
from sae_forge.config.text import HeldOutConfig
from sae_forge.errors import ConfigError

EvalMethod = Literal[
    "all", "scale", "zero", "clamp", "clamp_prime", "conditional_clamp", "refusal_clamp", "dsg", "mean_ablate",
    "steer", "project", "diff_means", "rmu", "gradient_ascent", "grad_diff", "npo", "simnpo", "crisp", "random",
]  # fmt: skip
GateKind = Literal["own", "none", "any", "all", "mean", "window", "cusum", "max"]
GatePolicy = Literal["prompt", "streaming", "per_token"]
ValueUnits = Literal["absolute", "relative"]
ControlKind = Literal["latents", "isotropic", "places", "direction"]


@dataclass(frozen=True, kw_only=True)
class EvalConfig(HeldOutConfig, SamplingConfig, QuestionsConfig):
    """An SAE and a selection to a report of forgetting and side effects beside their controls."""

    sae: Annotated[str | None, "SAE folder, params.npz, or Hub owner/name:path. Unset: the newest here."] = None
    allow_pickle: Annotated[bool, "Read an SAE in a pickle (dictionary_learning's ae.pt), in a limited process."] = (
        False
    )
    selection: Annotated[Path | None, "Selection file. Unset: the newest that features made for this SAE."] = None
    methods: Annotated[tuple[EvalMethod, ...], "Methods to measure beside the baseline; all: every one there is."] = (
        "scale", "zero", "random",
    )  # fmt: skip
    sweep: Annotated[
        bool, "Tune each method on the dev half with an equal budget; report the choice on the test half."
    ] = False
    configurations: Annotated[int, "Settings the sweep tries for each method that has any (8 or more; rmu: 12)."] = 12
    sweep_limit: Annotated[int | None, "Items per domain that the sweep asks. Unset: as --limit."] = None
    clamp_value: Annotated[tuple[float, ...], "Clamping: latents are set to minus this; several sweep."] = (1.0,)
    value_units: Annotated[ValueUnits, "relative: clamp_value times the median residual norm over the edit's norm."] = (
        "relative"
    )
    theta: Annotated[float, "conditional_clamp, refusal_clamp, --gate: what an act must exceed to fire."] = 0.0
    refusal_value: Annotated[float, "refusal_clamp: value the refusal latent is set to (in value_units)."] = -1.0
    gate: Annotated[GateKind, "When an edit is in force. own: as the method's paper has it."] = "own"
    gate_policy: Annotated[
        GatePolicy, "Sequence gates: decide on the prompt and hold, on all text so far, or per token."
    ] = "prompt"
    gate_percentile: Annotated[float, "Sequence gates open above this percentile of the retain sequences."] = 95.0
    gate_window: Annotated[int, "--gate window: tokens the rate is taken over."] = 32
    baseline_steps: Annotated[int | None, "Retrained baselines: optimizer steps. Unset: the paper's."] = None
    baseline_lr: Annotated[
        float | None, "Retrained baselines: learning rate, which a sweep goes around. Unset: the paper's."
    ] = None
    baseline_batch: Annotated[
        int | None, "Retrained baselines: sequences a step takes of each side. Unset: the paper's."
    ] = None
    keep_error: Annotated[bool, "Keep what the SAE cannot rebuild; --no_keep_error shows what dropping it costs."] = (
        True
    )
    compare_selections: Annotated[bool, "Measure the same edit under every selection made for this SAE."] = False
    steering: Annotated[Path | None, "Steering CSV of an edit to measure too (8 columns, or lm-eval's)."] = None
    random_seeds: Annotated[int, "Seeds of the random-direction control."] = 3
    controls: Annotated[
        tuple[ControlKind, ...],
        "Random controls: other latents' rows, isotropic, other tokens, one direction.",
    ] = ("latents", "isotropic", "places", "direction")
    neighbour_questions: Annotated[tuple[str, ...], "Question files on what lies close to it."] = ()
    forget_prompts: Annotated[tuple[str, ...], "Files of {prompt, target} records on what is forgotten."] = ()
    neighbour_prompts: Annotated[tuple[str, ...], "Files of {prompt, target} records on what lies close to it."] = ()
    retain_prompts: Annotated[tuple[str, ...], "Files of {prompt, target} records on what is kept."] = ()
    generation_prompts: Annotated[tuple[str, ...], "Files of {prompt} records to continue."] = ()
    verbmem: Annotated[tuple[str, ...], "MUSE: files of {prompt, gt} records of forget text to recite."] = ()
    knowmem_forget: Annotated[tuple[str, ...], "MUSE: files of {question, answer} records on what is forgotten."] = ()
    knowmem_retain: Annotated[tuple[str, ...], "MUSE: files of {question, answer} records on what is kept."] = ()
    knowmem_shots: Annotated[
        tuple[str, ...], "MUSE: file of answered questions to show first; two: one for forget, one for retain."
    ] = ()
    privleak_forget: Annotated[tuple[str, ...], "MUSE: files of {text} records of what is forgotten."] = ()
    privleak_holdout: Annotated[tuple[str, ...], "MUSE: files of {text} records that the model never saw."] = ()
    privleak_reference: Annotated[float, "MUSE: AUC of a retrained model (news: 0.4772, books: 0.5393)."] = 0.4772
    question_filter: Annotated[
        QuestionFilter,
        "Ask only questions the unedited model gets right in all 24 orders of the options; "
        "_iff_question: and not without the question; _no_tricks: and no option names other options.",
    ] = "none"
    half: Annotated[Half, "Half of the questions to report on, split by hash of the fact."] = "test"
    limit: Annotated[int | None, "Items per domain at most.", Alias("max_samples")] = None
    bootstrap: Annotated[int, "Bootstrap resamples behind each interval."] = 2000
    resume: Annotated[bool, "Return the stored report if it is there; --no_resume is --fresh."] = True
    fresh: Annotated[bool, "Measure again even if this report is there."] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gate == "cusum" and self.gate_policy == "per_token":
            raise ConfigError(
                "--gate cusum sums over a text, so --gate_policy per_token would never open it; use streaming"
            )
        tuned = ["theta", *(("clamp_value", "refusal_value") if self.value_units == "relative" else ())]
        if self.sweep and (ignored := sorted(self.spelled.intersection(tuned))):
            raise ConfigError(f"--sweep tries values of its own, so --{ignored[0]} would mean nothing; leave it out")
        if self.sweep and self.half != "test":
            raise ConfigError(f"--sweep tunes on the dev half and reports on the test half; drop --half {self.half}")
        if self.methods == ("random",) and self.steering is None:
            raise ConfigError("--methods random: controls stand beside an edit; name one too, as in scale,random")
        if bool(self.privleak_forget) != bool(self.privleak_holdout):
            missing = "holdout" if self.privleak_forget else "forget"
            raise ConfigError(f"PrivLeak compares two sides; give --privleak_{missing} too")
        if self.knowmem_shots and not (self.knowmem_forget or self.knowmem_retain):
            raise ConfigError("--knowmem_shots stand before questions; give --knowmem_forget or --knowmem_retain too")
        self.require(
            random_seeds=(self.random_seeds >= 3, "a control needs at least 3 seeds"),
            configurations=(self.configurations >= 8, "an equal budget needs at least 8 settings a method"),
            clamp_value=(
                bool(self.clamp_value) and all(0 <= value < inf for value in self.clamp_value),
                "give finite values of 0 or more; latents are set to minus them",
            ),
            theta=(self.theta >= 0 and isfinite(self.theta), "give 0 or more"),
            refusal_value=(isfinite(self.refusal_value), "give a finite value"),
            gate_percentile=(0 <= self.gate_percentile <= 100, "give a percentile between 0 and 100"),
            gate_window=(self.gate_window >= 1, "give at least 1 token"),
            baseline_steps=(self.baseline_steps is None or self.baseline_steps >= 1, "give at least 1 step"),
            baseline_lr=(self.baseline_lr is None or 0 < self.baseline_lr < inf, "give a rate above 0"),
            baseline_batch=(self.baseline_batch is None or self.baseline_batch >= 1, "give at least 1 sequence"),
            knowmem_shots=(len(self.knowmem_shots) <= 2, "give one file, or forget's and then retain's"),
            privleak_reference=(0 < self.privleak_reference < 1, "give an AUC between 0 and 1"),
            sweep_limit=(self.sweep_limit is None or self.sweep_limit >= 1, "give at least 1 item"),
            limit=(self.limit is None or self.limit >= 1, "give at least 1 item"),
            bootstrap=(self.bootstrap >= 100, "give at least 100 resamples"),
        )
