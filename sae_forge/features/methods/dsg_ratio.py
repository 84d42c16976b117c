"""``dsg_ratio``: the most important on forget text among those far more important there (arXiv 2504.08192)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from sae_forge.config.fields import Artefact, Setting
from sae_forge.config.model import ModelConfig
from sae_forge.features.methods.method import Ranking, SelectionMethod

if TYPE_CHECKING:
    from torch import Tensor

    from sae_forge.features.scores import Measured
    from sae_forge.features.stats import LatentStats

Moment = Literal["sq_mean", "mean_sq"]

IMPORTANCE_PERCENTILE = 5.0
"""Percentile of all latents that the forget importance must reach."""
IMPORTANCE_EPS = 1e-21
"""Added to the retain importance, so that a latent which never fires there has a finite ratio."""


@dataclass(frozen=True, kw_only=True)
class DsgSettings(ModelConfig):
    """What importance is, and how high beside retain text it must stand."""

    heading: ClassVar[str] = "Selection of latents"
    decides: ClassVar[tuple[Artefact, ...]] = ("selection",)

    moment: Annotated[Moment, "dsg_ratio: importance is the squared mean act, or the mean squared act."] = "sq_mean"
    p_ratio: Annotated[
        float,
        "dsg_ratio: percentile of all latents the importance ratio must reach.",
        Setting(at_least=0, at_most=100, wanted="give a percentile from 0 to 100"),
    ] = 95.0


def rank(measured: "Measured", config: DsgSettings, n: int) -> Ranking:
    """Forget importance, among latents where it is high beside the retain importance.

    Importance is a moment of the activation over all tokens. Percentiles are over all latents, dead ones included.
    """
    del n

    def importance(stats: "LatentStats") -> "Tensor":
        return stats.mean.square() if config.moment == "sq_mean" else stats.mean_square

    forget = importance(measured.forget)
    ratio = forget / (measured.worst(importance) + IMPORTANCE_EPS)
    filters = {
        "never_fires_on_forget": measured.forget.fires > 0,
        "importance": forget >= _percentile(forget, IMPORTANCE_PERCENTILE),
        "p_ratio": ratio >= _percentile(ratio, config.p_ratio),
    }
    return Ranking(filters, forget)


def _percentile(values: "Tensor", percentile: float) -> float:
    """Linear between the two nearest ranks; numpy's, since torch's refuses more than 2^24 values."""
    import numpy as np

    return float(np.percentile(values.numpy(), percentile))


DSG_RATIO = SelectionMethod(
    name="dsg_ratio",
    words="most important on forget text, and far more so than on retain text",
    rank=rank,
    settings=DsgSettings,
)
