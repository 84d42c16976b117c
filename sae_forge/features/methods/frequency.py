"""``frequency``: the most frequent on forget text among the latents that are rare on retain text (arXiv 2410.19278)."""

from typing import TYPE_CHECKING, Any

from sae_forge.features.methods.flags import RETAIN_THRESHOLD, ThresholdSettings, threshold
from sae_forge.features.methods.method import Ranking, SelectionMethod

if TYPE_CHECKING:
    from sae_forge.features.scores import Measured

DEFAULT = 0.01


def rank(measured: "Measured", config: Any, n: int) -> Ranking:
    """Forget frequency, among latents whose retain frequency stays below the threshold."""
    del n
    filters = {
        "never_fires_on_forget": measured.forget.fires > 0,
        RETAIN_THRESHOLD: measured.worst(lambda stats: stats.frequency) < threshold(config, DEFAULT),
    }
    return Ranking(filters, measured.forget.frequency)


FREQUENCY = SelectionMethod(
    name="frequency",
    words="most frequent on forget text, and rare on retain text",
    rank=rank,
    settings=ThresholdSettings,
    thresholds=lambda config: {RETAIN_THRESHOLD: threshold(config, DEFAULT)},
)
