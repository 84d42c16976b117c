"""``features``: shards and an SAE to a ranked selection of latents."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, get_args

from sae_forge.config.collect import CollectConfig
from sae_forge.config.fields import Artefact, Setting
from sae_forge.config.questions import QuestionsConfig
from sae_forge.config.sae import SaeConfig
from sae_forge.errors import ConfigError

SortBy = Literal["score", "ratio", "diff", "act_ratio"]
CountingMethod = Literal[
    "inlp", "frequency", "dsg_ratio", "conditional", "crisp", "top_mean", "random_matched", "random",
]  # fmt: skip
COUNTING_METHODS: tuple[CountingMethod, ...] = get_args(CountingMethod)
SelectionMethod = Literal[CountingMethod, "attribution"]
Moment = Literal["sq_mean", "mean_sq"]
Formula = Literal["corrected", "literal"]
AttributionSign = Literal["+", "-", "abs"]


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig(CollectConfig, QuestionsConfig, SaeConfig):
    """Shards and an SAE to a ranked selection of latents."""

    heading: ClassVar[str] = "Selection of latents"
    decides: ClassVar[tuple[Artefact, ...]] = ("selection",)

    method: Annotated[
        tuple[SelectionMethod | Literal["all"], ...],
        "How latents are scored; of several, eval takes the first. all: every one that shards can decide.",
        Setting(decides=(), distinct=True, wanted="name each method once"),
    ] = ("inlp",)
    sort_by: Annotated[SortBy, "Which INLP statistic ranks the valid latents."] = "score"
    num_features: Annotated[
        tuple[int, ...],
        "Latents to select; of several (10,50,100) the largest.",
        Setting(decides=("report",), at_least=1, wanted="give at least 1 latent"),
    ] = (100,)
    latents: Annotated[
        tuple[int, ...] | None,
        "Take these latents instead of scoring.",
        Setting(decides=(), at_least=0, wanted="give indices of 0 or more"),
    ] = None
    formula: Annotated[Formula, "corrected: length-corrected, bounded. literal: as the paper's code."] = "corrected"
    min_freq: Annotated[float, "inlp: least forget frequency."] = 0.001
    min_target_fires: Annotated[int, "inlp: least number of forget tokens it fires on."] = 64
    max_neutral_freq: Annotated[float, "inlp: retain frequency must stay below this."] = 0.005
    max_freq: Annotated[float, "inlp: forget frequency must stay below this."] = 0.2
    min_ratio: Annotated[float, "inlp: smoothed forget/retain ratio must exceed this."] = 2.0
    ratio_smoothing: Annotated[
        float,
        "inlp: fires added to both sides of the ratio.",
        Setting(above=0, wanted="give more than 0 fires"),
    ] = 16.0
    activation_eps: Annotated[
        float,
        "inlp literal: added to the retain mean in act_ratio.",
        Setting(above=0, wanted="give more than 0"),
    ] = 1e-4
    retain_threshold: Annotated[
        float | None,
        "frequency, conditional: retain frequency must stay below this. Unset: 0.01 and 1e-4.",
        Setting(decides=()),
    ] = None
    moment: Annotated[Moment, "dsg_ratio: importance is the squared mean act, or the mean squared act."] = "sq_mean"
    p_ratio: Annotated[
        float,
        "dsg_ratio: percentile of all latents the importance ratio must reach.",
        Setting(at_least=0, at_most=100, wanted="give a percentile from 0 to 100"),
    ] = 95.0
    fire_threshold: Annotated[
        float,
        "conditional: an act counts as firing above this.",
        Setting(at_least=0, finite=True, wanted="give a finite act of 0 or more"),
    ] = 0.0
    refusal: Annotated[
        str | None,
        "Text where the model refuses: the latent that fires on most of it is noted.",
        Setting(decides=(), names_items=True),
    ] = None
    refusal_latent: Annotated[
        int | None,
        "Note this refusal latent instead of finding one with --refusal.",
        Setting(at_least=0, wanted="give an index of 0 or more"),
    ] = None
    attribution_sign: Annotated[
        AttributionSign,
        "attribution: +: latents that argue for the right answer. -: against it. abs: either.",
        Setting(decides=("attribution",)),
    ] = "+"
    attribution_candidates: Annotated[
        int,
        "attribution: latents each question puts forward.",
        Setting(decides=("attribution",), at_least=1, wanted="give at least 1 latent"),
    ] = 20
    attribution_clamp: Annotated[
        float,
        "attribution: value a latent is set to where it fires, to test it alone.",
        Setting(decides=("attribution",), at_most=0, finite=True, wanted="give a finite value of 0 or less"),
    ] = -20.0
    attribution_max_broken: Annotated[
        int,
        "attribution: retain questions that a latent may break.",
        Setting(decides=("attribution",), at_least=0, wanted="give 0 or more"),
    ] = 3
    snippets: Annotated[
        int,
        "Top-activating snippets to show for each latent.",
        Setting(at_least=0, wanted="give 0 or more"),
    ] = 5

    def __post_init__(self) -> None:
        super().__post_init__()
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
