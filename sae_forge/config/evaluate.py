"""``eval``: an SAE and a selection to a report."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from sae_forge.config.editing import EditingConfig
from sae_forge.config.fields import Alias, Setting, described
from sae_forge.config.questions import Half, QuestionsConfig
from sae_forge.config.ranks import RanksConfig
from sae_forge.config.sae import SelectedConfig
from sae_forge.config.sampling import SamplingConfig
from sae_forge.config.text import HeldOutConfig, SinksConfig
from sae_forge.errors import ConfigError

ControlKind = Literal["latents", "isotropic", "places", "direction"]
SweepRule = Literal["utility_99", "spared"]
_PART = re.compile(r"(\d{1,5})/(\d{1,5})")


@dataclass(frozen=True, kw_only=True)
class EvalConfig(
    HeldOutConfig, RanksConfig, SamplingConfig, QuestionsConfig, EditingConfig, SelectedConfig, SinksConfig
):
    """An SAE and a selection to a report of forgetting and side effects beside their controls."""

    heading: ClassVar[str] = "Evaluation"

    methods: Annotated[tuple[str, ...], "Methods to measure beside the baseline; all: every one there is."] = (
        "scale", "zero", "random",
    )  # fmt: skip
    sweep: Annotated[
        bool, "Tune each method on the dev half with an equal budget; report the choice on the test half."
    ] = False
    configurations: Annotated[
        int,
        "Settings the sweep tries for each method that has any (8 or more; rmu: 12).",
        Setting(at_least=8, wanted="an equal budget needs at least 8 settings a method"),
    ] = 12
    sweep_thresholds: Annotated[
        tuple[float, ...] | None,
        "Retain thresholds that a sweep of edits tries too: only selected latents rarer than it on retain text.",
        Setting(above=0, at_most=1, distinct=True, younger=True, wanted="give shares above 0, each once"),
    ] = None
    sweep_limit: Annotated[
        int | None,
        "Items per domain that the sweep asks. Unset: as --limit.",
        Setting(at_least=1, wanted="give at least 1 item"),
    ] = None
    sweep_rule: Annotated[
        SweepRule,
        "Which settings may be chosen: 99% of the retained left, or no loss shown (within a point or its interval).",
        Setting(younger=True),
    ] = "utility_99"
    compare_selections: Annotated[bool, "Measure the same edit under every selection made for this SAE."] = False
    each_latent: Annotated[
        int,
        "Measure the first edit of latents on each of the first N selected ones alone, too.",
        Setting(at_least=0, younger=True, wanted="give 0 or more"),
    ] = 0
    steering: Annotated[Path | None, "Steering CSV of an edit to measure too (8 columns, or lm-eval's)."] = None
    random_seeds: Annotated[
        int,
        "Seeds of the random-direction control.",
        Setting(at_least=3, wanted="a control needs at least 3 seeds"),
    ] = 3
    controls: Annotated[
        tuple[ControlKind, ...],
        "Random controls: other latents' rows, isotropic, other tokens, one direction.",
    ] = ("latents", "isotropic", "places", "direction")
    tasks: Annotated[
        tuple[str, ...],
        "Tasks to ask: NAME, NAME:PART (a domain or kind of item), or a FILE.toml. Unset: all that have files named.",
        Setting(decides=()),
    ] = ()
    """It decides the report by what it stands for: the tasks' names and the content of their files."""
    half: Annotated[Half, "Half of the questions to report on, split by hash of the fact."] = "test"
    limit: Annotated[
        int | None,
        "Items per domain at most.",
        Alias("max_samples"),
        Setting(at_least=1, wanted="give at least 1 item"),
    ] = None
    bootstrap: Annotated[
        int,
        "Bootstrap resamples behind each interval.",
        Setting(at_least=100, wanted="give at least 100 resamples"),
    ] = 2000
    part: Annotated[
        str | None,
        "Measure one part of several, as 2/8, and write no report; the command without it puts them together.",
        Setting(decides=()),
    ] = None
    resume: Annotated[bool, "Return the stored report if it is there; --no_resume is --fresh.", Setting(decides=())] = (
        True
    )
    fresh: Annotated[bool, "Measure again even if this report is there.", Setting(decides=())] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        tuned = {name for name, said in described(type(self)).items() if said.setting.tuned(self)}
        if self.sweep and (ignored := sorted(self.spelled & tuned)):
            raise ConfigError(f"--sweep tries values of its own, so --{ignored[0]} would mean nothing; leave it out")
        if self.sweep and self.half != "test":
            raise ConfigError(f"--sweep tunes on the dev half and reports on the test half; drop --half {self.half}")
        number, of = self.job
        self.require(part=(0 <= number < of, "give one part of several, from 1/8 to 8/8"))
        if self.part is not None and self.starts_over:
            raise ConfigError("--part adds to what the other parts have measured; start over without it, then in parts")
        if self.methods == ("random",) and self.steering is None:
            raise ConfigError("--methods random: controls stand beside an edit; name one too, as in scale,random")

    @property
    def job(self) -> tuple[int, int]:
        """Which part of how many this is, counted from 0; a ``part`` that is none has no number."""
        if self.part is None:
            return 0, 1
        read = _PART.fullmatch(self.part)
        return (int(read[1]) - 1, int(read[2])) if read else (-1, 1)
