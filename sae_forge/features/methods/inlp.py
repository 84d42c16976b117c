"""``inlp``: latents far more frequent on forget text than on any retain corpus (``bropal404/INLP_PROJECT``)."""

from dataclasses import dataclass, replace
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
    min_freq: Annotated[
        float | None, "inlp: least forget frequency. Unset: 0.001, or the mean latent's where that is less."
    ] = None
    min_target_fires: Annotated[
        int | None, "inlp: least number of forget tokens it fires on. Unset: a thousandth of them, from 8 to 64."
    ] = None
    max_neutral_freq: Annotated[
        float | None, "inlp: retain frequency must stay below this. Unset: 0.005, or twice the mean latent's."
    ] = None
    max_freq: Annotated[
        float | None,
        "inlp: forget frequency must stay below this. Unset: 0.2, or 20 times the mean's, to 0.5.",
    ] = None
    min_ratio: Annotated[float, "inlp: smoothed forget/retain ratio must exceed this."] = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_freq is not None and self.max_freq is not None and self.min_freq >= self.max_freq:
            raise ConfigError(
                f"--min_freq {self.min_freq:g} and --max_freq {self.max_freq:g} let no latent pass; lower the first"
            )


def rank(measured: "Measured", config: Any, n: int) -> Ranking:
    """The statistic that ``sort_by`` names, within five bounds; all are strict but ``min_target_fires``."""
    del n
    config, statistics = _whole(measured.forget, config), measured.selectivity(config)
    filters = _forget_filters(measured.forget, config) | {
        "max_neutral_freq": statistics.retain_frequency < config.max_neutral_freq,
        "min_ratio": statistics.ratio > config.min_ratio,
    }
    return Ranking(filters, getattr(statistics, config.sort_by))


def _adapted(forget: "LatentStats", config: Any) -> dict[str, Any]:
    """The paper's bounds, wider where latents are commoner (k/d_sae is 0.0005 there) or the corpus is shorter."""
    del config
    mean = float(forget.frequency.mean())
    return {
        "min_freq": min(0.001, mean),
        "min_target_fires": min(64, max(8, forget.tokens // 1000)),
        "max_neutral_freq": max(0.005, 2 * mean),
        "max_freq": min(0.5, max(0.2, 20 * mean)),
    }


def _whole(forget: "LatentStats", config: Any) -> Any:
    unset = {name: value for name, value in _adapted(forget, config).items() if getattr(config, name) is None}
    return replace(config, **unset) if unset else config


def _may_be_chosen(forget: "LatentStats", config: Any) -> "Tensor":
    from sae_forge.features.scores import sieve

    return sieve(_forget_filters(forget, _whole(forget, config)))[0]


def _forget_filters(forget: "LatentStats", config: Any) -> "dict[str, Tensor]":
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
    adapted=_adapted,
    thresholds=lambda config: {
        name: value
        for name in ("min_freq", "max_freq", "max_neutral_freq")
        if (value := getattr(config, name)) is not None
    },
    inlp_score=True,
)
