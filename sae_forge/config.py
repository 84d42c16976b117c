"""What each verb can be told: one frozen dataclass a verb, torch-free, whose fields are the command line's flags.

The text in each ``Annotated`` is the flag's help. A class inherits the settings of the verbs it may have to
call first: ``train`` collects when shards are missing, so ``TrainConfig`` is a ``CollectConfig``.
"""

from dataclasses import Field, dataclass, field, fields
from itertools import product
from math import inf, isfinite
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args

from sae_forge.errors import ConfigError
from sae_forge.hookpoint import HookPoint, Site
from sae_forge.remote import check_url, is_url

StorageDtype = Literal["bf16", "fp16", "fp32", "int8"]
ModelDtype = Literal["auto", "bf16", "fp16", "fp32"]
Quantize = Literal["none", "8bit", "4bit"]
BosPolicy = Literal["row", "document", "none"]
Backend = Literal["auto", "reference", "cpu", "dense", "triton"]
SortBy = Literal["score", "ratio", "diff", "act_ratio"]
CountingMethod = Literal[
    "inlp", "frequency", "dsg_ratio", "conditional", "crisp", "top_mean", "random_matched", "random",
]  # fmt: skip
COUNTING_METHODS: tuple[CountingMethod, ...] = get_args(CountingMethod)
SelectionMethod = Literal[CountingMethod, "attribution"]
Moment = Literal["sq_mean", "mean_sq"]
Formula = Literal["corrected", "literal"]
Scoring = Literal["cloze", "letter", "chat"]
QuestionFilter = Literal["none", "correct", "correct_iff_question", "correct_no_tricks"]
AttributionSign = Literal["+", "-", "abs"]
Half = Literal["test", "dev", "all"]
EvalMethod = Literal[
    "all", "scale", "zero", "clamp", "clamp_prime", "conditional_clamp", "refusal_clamp", "dsg", "mean_ablate",
    "steer", "project", "diff_means", "rmu", "gradient_ascent", "grad_diff", "npo", "simnpo", "crisp", "random",
]  # fmt: skip
GateKind = Literal["own", "none", "any", "all", "mean", "window", "cusum", "max"]
GatePolicy = Literal["prompt", "streaming", "per_token"]
ValueUnits = Literal["absolute", "relative"]
ControlKind = Literal["latents", "isotropic", "places", "direction"]

MAX_GB = 1e6
"""What a limit in GB may be: no machine has more, and so many bytes are still a whole number."""
DEFAULT_MODEL = "meta-llama/Llama-2-7b-chat-hf"
DEFAULT_RETAIN = ("Salesforce/wikitext:wikitext-2-raw-v1", "roneneldan/TinyStories")


@dataclass(frozen=True)
class Alias:
    """A second spelling of a flag, for ``Annotated``."""

    name: str


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model, where in it, and where results go: the settings every verb shares."""

    model: Annotated[str, "Hub id, local folder, or built-in: tiny-llama, tiny-gemma2."] = DEFAULT_MODEL
    layer: Annotated[tuple[int, ...] | None, "One layer or several: 3,7,15. Unset: the preset's, else the middle."] = (
        None
    )
    site: Annotated[Site, "Where in the layer; resid_post is its output."] = "resid_post"
    run_dir: Annotated[Path | None, "Run folder. Unset: checkpoints/<model with / as -->."] = None
    seed: Annotated[int, "Seed of everything random."] = 0
    revision: Annotated[str | None, "Branch, tag or commit of a Hub model."] = None
    dtype: Annotated[ModelDtype, "Precision the model computes in. auto: fp32 on a CPU, as stored on a GPU."] = "auto"
    model_device: Annotated[str, "Device of the model: auto, cpu, cuda, cuda:1 …"] = "auto"
    device_map: Annotated[str | None, "Spread the model over devices: auto, balanced, sequential."] = None
    quantize: Annotated[Quantize, "Load the model's weights in 4 or 8 bits (needs bitsandbytes)."] = "none"
    sae_device: Annotated[str, "Device of the SAE: auto, cpu, cuda …"] = "auto"
    spelled: frozenset[str] = field(default=frozenset(), repr=False, compare=False)
    """Settings the user named, by flag or file; the others came from a preset or are defaults. No setting itself."""

    def __post_init__(self) -> None:
        if self.quantize != "none" and self.dtype == "fp32":
            raise ConfigError(f"--quantize {self.quantize} computes in 16 bits; drop --dtype fp32")
        if self.layer is not None and (not self.layer or len(set(self.layer)) < len(self.layer)):
            raise ConfigError(f"--layer {','.join(map(str, self.layer))} must name each layer once")
        _ = self.hook_points  # a negative layer or an unknown site is refused here

    @property
    def hook_points(self) -> tuple[HookPoint, ...] | None:
        """The places named by ``layer`` and ``site``, lowest first; None when no layer was named."""
        return None if self.layer is None else tuple(HookPoint(layer, self.site) for layer in sorted(self.layer))

    @property
    def run_folder(self) -> Path:
        """Where artefacts of this model live."""
        return self.run_dir or Path("checkpoints") / self.model.strip("/").replace("/", "--")

    @property
    def starts_over(self) -> bool:
        """Whether finished work is done again instead of being continued or returned."""
        return getattr(self, "fresh", False) or not getattr(self, "resume", True)

    def settings(self, kind: type["ModelConfig"] | None = None) -> dict[str, Any]:
        """JSON-ready values of the fields that ``kind`` (default: this class) declares."""
        return {name: _plain(getattr(self, name)) for name in setting_fields(kind or type(self))}

    def require(self, **checks: tuple[bool, str]) -> None:
        """Raise for the first setting whose check is False; the text says what would be right."""
        for name, (holds, wanted) in checks.items():
            if not holds:
                raise ConfigError(f"--{name} {_shown(getattr(self, name))}: {wanted}")


def setting_fields(kind: type[ModelConfig]) -> dict[str, Field[Any]]:
    """The fields of a config that are settings, by name: its flags."""
    return {entry.name: entry for entry in fields(kind) if entry.name != "spelled"}


@dataclass(frozen=True, kw_only=True)
class TextConfig(ModelConfig):
    """How text becomes packed tokens."""

    text_field: Annotated[str | None, "Column that holds the text. Unset: text, else the only text column."] = None
    split: Annotated[str, "Split of a datasets id."] = "train"
    ctx_len: Annotated[int, "Tokens a packed sequence holds."] = 1024
    bos: Annotated[BosPolicy, "Put BOS before each packed row, each document, or nowhere."] = "row"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(ctx_len=(self.ctx_len >= 2, "give at least 2 tokens"))


@dataclass(frozen=True, kw_only=True)
class HeldOutConfig(TextConfig):
    """Text the SAE has not seen, for losses in nats per token."""

    forget_eval: Annotated[tuple[str, ...], "Held-out text on what is forgotten, for the losses."] = ()
    retain_eval: Annotated[tuple[str, ...], "Held-out text on what is kept, for the losses."] = ()
    loss_tokens: Annotated[int, "Tokens per corpus for the losses."] = 50_000
    eval_batch_size: Annotated[int, "Sequences a forward pass takes when measuring."] = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(
            loss_tokens=(self.loss_tokens >= 1, "give at least 1 token"),
            eval_batch_size=(self.eval_batch_size >= 1, "give at least 1 sequence"),
        )


@dataclass(frozen=True, kw_only=True)
class QuestionsConfig(ModelConfig):
    """Four-option questions on what is forgotten and on what is kept."""

    forget_questions: Annotated[tuple[str, ...], "Question files (WMDP/MMLU records) on what is forgotten."] = ()
    retain_questions: Annotated[tuple[str, ...], "Question files on what is kept."] = ()
    scoring: Annotated[
        Scoring,
        "cloze: log-prob of each option's text. letter: of A, B, C, D after the options. chat: letters, chat turn.",
    ] = "letter"


@dataclass(frozen=True, kw_only=True)
class CollectConfig(TextConfig):
    """Corpus and model to shards."""

    forget: Annotated[str | None, "Text to forget: jsonl, txt, parquet, csv, folder, or datasets id."] = None
    retain: Annotated[tuple[str, ...], "Text to keep: one source or several, separated by commas."] = DEFAULT_RETAIN
    max_tokens: Annotated[int | None, "Tokens to take from each corpus at most."] = 1_000_000
    model_batch_size: Annotated[int, "Sequences a forward pass takes."] = 8
    storage_dtype: Annotated[
        StorageDtype, "Precision of stored activations; int8 keeps a scale a row and says what rounding lost."
    ] = "bf16"
    shard_rows: Annotated[int, "Tokens a shard holds, rounded up to whole forward batches."] = 65_536
    shards_dir: Annotated[
        str | None, "Where shards go: a folder or an fsspec URL (s3://…). Unset: shards/ in the run folder."
    ] = None
    dist_timeout: Annotated[float, "Seconds a rank of a job of several may be silent before the job ends."] = 45.0
    resume: Annotated[bool, "Continue what is there; --no_resume is --fresh."] = True
    fresh: Annotated[bool, "Start over, deleting what is there."] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(
            model_batch_size=(self.model_batch_size >= 1, "give at least 1 sequence"),
            shard_rows=(self.shard_rows >= 1, "give at least 1 token"),
            shards_dir=(self.shards_dir != "", "give a folder or a URL"),
            dist_timeout=(self.dist_timeout >= 1, "give at least 1 second"),
            max_tokens=(self.max_tokens is None or self.max_tokens >= 1, "give at least 1 token"),
        )
        if self.shards_dir is not None and is_url(self.shards_dir):
            check_url(self.shards_dir, "--shards_dir")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(CollectConfig, HeldOutConfig):
    """Shards to a TopK SAE."""

    k: Annotated[tuple[int, ...], "Latents kept per token; of several (16,32,64) each gives an SAE, from one read."] = (
        32,
    )
    expansion_factor: Annotated[tuple[int, ...], "Latents per input dimension: d_sae = expansion_factor x d_in."] = (8,)
    d_sae: Annotated[tuple[int, ...] | None, "Number of latents, one or several; overrides --expansion_factor."] = None
    sae_seeds: Annotated[tuple[int, ...] | None, "Seeds of the first weights, an SAE each. Unset: --seed."] = None
    epochs: Annotated[int, "Passes over the shards."] = 1
    max_steps: Annotated[int | None, "Stop after this many optimizer steps; overrides --epochs."] = None
    batch_size: Annotated[int, "Tokens an optimizer step takes."] = 4096
    shuffle_gb: Annotated[
        float,
        "GB of RAM the loader may take in each process. Tokens are shuffled within it, so it decides their order.",
    ] = 2.0
    lr: Annotated[float | None, "Peak learning rate of Adam. Unset: 2e-4 / sqrt(d_sae / 16384)."] = None
    lr_warmup: Annotated[float, "Share of the steps over which the rate rises from 0."] = 0.05
    lr_decay: Annotated[float, "Share of the steps over which it falls to 0 at the end."] = 0.2
    auxk_alpha: Annotated[float, "Weight of the AuxK loss that revives dead latents; 0 turns it off."] = 1 / 32
    dead_after: Annotated[int, "Tokens without firing after which a latent counts as dead."] = 10_000_000
    b_dec_init: Annotated[Literal["geometric_median", "mean", "zero"], "Where b_dec starts."] = "geometric_median"
    max_grad_norm: Annotated[float | None, "Clip the gradient's global norm. Unset: off."] = None
    sae_dtype: Annotated[Literal["fp32", "bf16"], "Precision of the SAE's products; its weights stay fp32."] = "fp32"
    backend: Annotated[Backend, "Kernel of the sparse decoder; one asked for by name is used or refused."] = "auto"
    cuda_graph: Annotated[bool, "On a GPU, record a step as one CUDA graph and play it."] = True
    include_forget: Annotated[bool, "Train on the forget corpus too."] = True
    checkpoint_every: Annotated[int, "Steps between resumable checkpoints."] = 1000
    accumulation: Annotated[
        int, "Parts a batch is taken in, one after the other, to save memory; gradients are summed."
    ] = 1
    max_disk_gb: Annotated[
        float | None,
        "For more tokens than disk: collect a window of at most so many GB, train on it, delete it, and so on.",
    ] = None
    shard_latents: Annotated[bool, "Over several ranks: each holds a part of the latents, not of the batch."] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(
            k=(_distinct(self.k, least=1), "give each number of latents once, at least 1"),
            expansion_factor=(_distinct(self.expansion_factor, least=1), "give each factor once, at least 1"),
            d_sae=(
                self.d_sae is None or _distinct(self.d_sae, least=1),
                "give each number of latents once, at least 1",
            ),
            sae_seeds=(self.sae_seeds is None or _distinct(self.sae_seeds, least=0), "give each seed once, 0 or more"),
            epochs=(self.epochs >= 1, "give at least 1"),
            max_steps=(self.max_steps is None or self.max_steps >= 1, "give at least 1"),
            batch_size=(self.batch_size >= 2, "give at least 2 tokens; one has no variance to explain"),
            shuffle_gb=(0 < self.shuffle_gb <= MAX_GB, f"give more than 0 and at most {MAX_GB:g} GB"),
            lr=(self.lr is None or self.lr > 0, "give a rate above 0"),
            lr_warmup=(0 <= self.lr_warmup <= 1, "give a share between 0 and 1"),
            lr_decay=(0 <= self.lr_decay <= 1 - self.lr_warmup, "warm-up and decay together must not exceed 1"),
            auxk_alpha=(self.auxk_alpha >= 0, "give 0 or more"),
            dead_after=(self.dead_after >= 1, "give at least 1 token"),
            max_grad_norm=(self.max_grad_norm is None or self.max_grad_norm > 0, "give a norm above 0"),
            checkpoint_every=(self.checkpoint_every >= 1, "give at least 1 step"),
            accumulation=(self.accumulation >= 1, "give at least 1 part"),
            max_disk_gb=(
                self.max_disk_gb is None or 0 < self.max_disk_gb <= MAX_GB,
                f"give more than 0 and at most {MAX_GB:g} GB",
            ),
            shards_dir=(
                self.shards_dir is None or self.max_disk_gb is None,
                "with --max_disk_gb shards come and go in --run_dir; leave one of the two out",
            ),
        )
        if self.d_sae is not None:
            _ = self.saes(1)  # more latents a token than there are is refused here

    def saes(self, d_in: int) -> tuple["SaeShape", ...]:
        """The SAEs asked for, on activations of this width: every k with every d_sae and every seed.

        Raises:
            ConfigError: a k exceeds a d_sae.
        """
        sizes = self.d_sae or tuple(factor * d_in for factor in self.expansion_factor)
        found = tuple(SaeShape(*each) for each in product(self.k, sizes, self.sae_seeds or (self.seed,)))
        for shape in found:
            if shape.k > shape.d_sae:
                raise ConfigError(f"k={shape.k} latents per token, but the SAE has only d_sae={shape.d_sae}")
        return found


class SaeShape(NamedTuple):
    """What tells the SAEs of one training command apart."""

    k: int
    """Latents kept per token."""
    d_sae: int
    """Number of latents."""
    seed: int
    """Of the first weights."""


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig(CollectConfig, QuestionsConfig):
    """Shards and an SAE to a ranked selection of latents."""

    sae: Annotated[str | None, "SAE folder, params.npz, or Hub owner/name:path. Unset: the newest here."] = None
    allow_pickle: Annotated[bool, "Read an SAE in a pickle (dictionary_learning's ae.pt), in a limited process."] = (
        False
    )
    method: Annotated[
        tuple[SelectionMethod | Literal["all"], ...],
        "How latents are scored; of several, eval takes the first. all: every one that shards can decide.",
    ] = ("inlp",)
    sort_by: Annotated[SortBy, "Which INLP statistic ranks the valid latents."] = "score"
    num_features: Annotated[tuple[int, ...], "Latents to select; of several (10,50,100) the largest."] = (100,)
    latents: Annotated[tuple[int, ...] | None, "Take these latents instead of scoring."] = None
    formula: Annotated[Formula, "corrected: length-corrected, bounded. literal: as the paper's code."] = "corrected"
    min_freq: Annotated[float, "inlp: least forget frequency."] = 0.001
    min_target_fires: Annotated[int, "inlp: least number of forget tokens it fires on."] = 64
    max_neutral_freq: Annotated[float, "inlp: retain frequency must stay below this."] = 0.005
    max_freq: Annotated[float, "inlp: forget frequency must stay below this."] = 0.2
    min_ratio: Annotated[float, "inlp: smoothed forget/retain ratio must exceed this."] = 2.0
    ratio_smoothing: Annotated[float, "inlp: fires added to both sides of the ratio."] = 16.0
    activation_eps: Annotated[float, "inlp literal: added to the retain mean in act_ratio."] = 1e-4
    retain_threshold: Annotated[
        float | None, "frequency, conditional: retain frequency must stay below this. Unset: 0.01 and 1e-4."
    ] = None
    moment: Annotated[Moment, "dsg_ratio: importance is the squared mean act, or the mean squared act."] = "sq_mean"
    p_ratio: Annotated[float, "dsg_ratio: percentile of all latents the importance ratio must reach."] = 95.0
    fire_threshold: Annotated[float, "conditional: an act counts as firing above this."] = 0.0
    refusal: Annotated[str | None, "Text where the model refuses: the latent that fires on most of it is noted."] = None
    refusal_latent: Annotated[int | None, "Note this refusal latent instead of finding one with --refusal."] = None
    attribution_sign: Annotated[
        AttributionSign, "attribution: +: latents that argue for the right answer. -: against it. abs: either."
    ] = "+"
    attribution_candidates: Annotated[int, "attribution: latents each question puts forward."] = 20
    attribution_clamp: Annotated[
        float, "attribution: value a latent is set to where it fires, to test it alone."
    ] = -20.0
    attribution_max_broken: Annotated[int, "attribution: retain questions that a latent may break."] = 3
    snippets: Annotated[int, "Top-activating snippets to show for each latent."] = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(
            num_features=(bool(self.num_features) and min(self.num_features) >= 1, "give at least 1 latent"),
            method=(bool(self.method) and len(set(self.method)) == len(self.method), "name each method once"),
            latents=(self.latents is None or min(self.latents, default=-1) >= 0, "give indices of 0 or more"),
            p_ratio=(0 <= self.p_ratio <= 100, "give a percentile from 0 to 100"),
            fire_threshold=(0 <= self.fire_threshold < inf, "give a finite act of 0 or more"),
            refusal_latent=(self.refusal_latent is None or self.refusal_latent >= 0, "give an index of 0 or more"),
            attribution_candidates=(self.attribution_candidates >= 1, "give at least 1 latent"),
            attribution_clamp=(-inf < self.attribution_clamp <= 0, "give a finite value of 0 or less"),
            attribution_max_broken=(self.attribution_max_broken >= 0, "give 0 or more"),
            snippets=(self.snippets >= 0, "give 0 or more"),
        )
        from_preset = "refusal_latent" in self.spelled and "refusal" not in self.spelled
        if self.refusal is not None and self.refusal_latent is not None and not from_preset:
            raise ConfigError("--refusal finds the refusal latent and --refusal_latent names it; give one of them")

    @property
    def selection_methods(self) -> tuple[SelectionMethod, ...]:
        """The methods asked for, in order, each once; ``all`` leaves out attribution, which asks a model questions."""
        named: list[SelectionMethod] = []
        for name in self.method:
            named.extend(COUNTING_METHODS if name == "all" else (name,))
        return tuple(dict.fromkeys(named))

    @property
    def refusal_text(self) -> str | None:
        """The text that the refusal latent is to be found on; a latent that was named makes it needless."""
        return None if self.refusal_latent is not None else self.refusal


@dataclass(frozen=True, kw_only=True)
class SamplingConfig(ModelConfig):
    """How text is generated, and the scales of the edit it is generated under."""

    num_features: Annotated[tuple[int, ...], "Latents to edit, best first; several (10,50,100) sweep."] = (100,)
    ablation_scale: Annotated[tuple[float, ...], "Negative scale; several (-1,-3) sweep.", Alias("ablation_scales")] = (
        -3.0,
    )
    max_new_tokens: Annotated[int, "Tokens to generate per prompt."] = 64
    temperature: Annotated[float, "Sampling temperature; 0 is greedy."] = 0.7
    top_p: Annotated[float, "Nucleus of the sampling."] = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(
            num_features=(bool(self.num_features) and min(self.num_features) >= 1, "give at least 1 latent"),
            ablation_scale=(
                bool(self.ablation_scale) and all(map(isfinite, self.ablation_scale)),
                "give finite scales",
            ),
            max_new_tokens=(self.max_new_tokens >= 1, "give at least 1 token"),
            temperature=(self.temperature >= 0 and isfinite(self.temperature), "give 0 (greedy) or more"),
            top_p=(0 < self.top_p <= 1, "give a share above 0 and at most 1"),
        )


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


@dataclass(frozen=True, kw_only=True)
class RunConfig(TrainConfig, FeaturesConfig, EvalConfig):
    """The whole pipeline: every setting of every verb it chains."""

    def __post_init__(self) -> None:
        super().__post_init__()
        several = {"layer": self.layer, "k": self.k, "expansion_factor": self.expansion_factor, "d_sae": self.d_sae}
        several["sae_seeds"] = self.sae_seeds
        self.require(
            **{
                name: (given is None or len(given) == 1, f"run takes one {name}; train takes several")
                for name, given in several.items()
            }
        )
        self.require(
            max_disk_gb=(
                self.max_disk_gb is None,
                "run keeps its activations; give it to train, then go on with features and a smaller --max_tokens",
            )
        )


@dataclass(frozen=True, kw_only=True)
class PushConfig(ModelConfig):
    """SAE, selection and report to one commit on the Hub."""

    sae: Annotated[str | None, "SAE folder of a run. Unset: the newest of the run."] = None
    private: Annotated[bool, "Create the repository private."] = False
    branch: Annotated[str | None, "Branch to commit to. Unset: main."] = None
    create_pr: Annotated[bool, "Open a pull request instead of committing."] = False
    commit_message: Annotated[str | None, "Subject of the commit."] = None
    license: Annotated[str | None, "Licence named in the model card."] = None
    include_contexts: Annotated[bool, "Publish the corpus snippets of the selection too."] = False
    dry_run: Annotated[bool, "Show the files and the card; touch no network."] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.create_pr and self.branch not in (None, "main"):
            raise ConfigError(f"--create_pr opens against main, so --branch {self.branch} cannot be given with it")


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(SamplingConfig):
    """One prompt continued with and without an edit."""

    sae: Annotated[str | None, "SAE folder, params.npz, or Hub owner/name:path. Unset: the newest here."] = None
    allow_pickle: Annotated[bool, "Read an SAE in a pickle (dictionary_learning's ae.pt), in a limited process."] = (
        False
    )
    selection: Annotated[Path | None, "Selection file. Unset: the newest that features made for this SAE."] = None
    compare: Annotated[bool, "Show the baseline beside the edit."] = True
    temperature: Annotated[float, "Sampling temperature; 0 is greedy."] = 0.0


@dataclass(frozen=True, kw_only=True)
class ReportConfig(ModelConfig):
    """A run folder to one page."""

    sae: Annotated[str | None, "SAE folder of a run. Unset: the newest of the run."] = None


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _distinct(numbers: tuple[int, ...], *, least: int) -> bool:
    return bool(numbers) and len(set(numbers)) == len(numbers) and min(numbers) >= least


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
