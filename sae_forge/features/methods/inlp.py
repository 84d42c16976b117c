"""``inlp``: latents far more frequent on forget text than on any retain corpus (``bropal404/INLP_PROJECT``)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from sae_forge.errors import ConfigError
from sae_forge.features.methods.flags import ScoreSettings
from sae_forge.features.methods.method import Ranking, SelectionMethod

if TYPE_CHECKING:
    from torch import Tensor

    from sae_forge.features.scores import Measured
    from sae_forge.features.stats import LatentStats

SortBy = Literal["score", "ratio", "diff", "act_ratio"]


@dataclass(frozen=True, kw_only=True)
class InlpSettings(ScoreSettings):
    """Five bounds, and what ranks within them."""

    sort_by: Annotated[SortBy, "Which INLP statistic ranks the valid latents."] = "score"
    min_freq: Annotated[float, "inlp: least forget frequency."] = 0.001
    min_target_fires: Annotated[int, "inlp: least number of forget tokens it fires on."] = 64
    max_neutral_freq: Annotated[float, "inlp: retain frequency must stay below this."] = 0.005
    max_freq: Annotated[float, "inlp: forget frequency must stay below this."] = 0.2
    min_ratio: Annotated[float, "inlp: smoothed forget/retain ratio must exceed this."] = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_freq >= self.max_freq:
            raise ConfigError(
                f"--min_freq {self.min_freq:g} and --max_freq {self.max_freq:g} let no latent pass; lower the first"
            )


def rank(measured: "Measured", config: Any, n: int) -> Ranking:
    """The statistic that ``sort_by`` names, within five bounds; all are strict but ``min_target_fires``."""
    del n
    statistics = measured.selectivity(config)
    filters = _forget_filters(measured.forget, config) | {
        "max_neutral_freq": statistics.retain_frequency < config.max_neutral_freq,
        "min_ratio": statistics.ratio > config.min_ratio,
    }
    return Ranking(filters, getattr(statistics, config.sort_by))


def _may_be_chosen(forget: "LatentStats", config: InlpSettings) -> "Tensor":
    from sae_forge.features.scores import sieve

    return sieve(_forget_filters(forget, config))[0]


def _forget_filters(forget: "LatentStats", config: InlpSettings) -> "dict[str, Tensor]":
    """The bounds on the forget corpus alone."""
    return {
        "min_target_fires": forget.fires >= config.min_target_fires,
        "min_freq": forget.frequency > config.min_freq,
        "max_freq": forget.frequency < config.max_freq,
    }


INLP = SelectionMethod(
    name="inlp",
    words="far more frequent on forget text than on retain text",
    rank=rank,
    settings=InlpSettings,
    may_be_chosen=_may_be_chosen,
    thresholds=lambda config: {name: getattr(config, name) for name in ("min_freq", "max_freq", "max_neutral_freq")},
    inlp_score=True,
)
