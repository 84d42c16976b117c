"""``conditional``: as ``frequency``, of clear firings and with a stricter bound (arXiv 2503.11127)."""

from typing import TYPE_CHECKING, Any

from sae_forge.features.methods.flags import RETAIN_THRESHOLD, ClearThresholdSettings, threshold
from sae_forge.features.methods.method import Ranking, SelectionMethod

if TYPE_CHECKING:
    from sae_forge.features.scores import Measured

DEFAULT = 1e-4


def rank(measured: "Measured", config: Any, n: int) -> Ranking:
    """Forget frequency of activations above ``fire_threshold``, among latents that hardly show them on retain text."""
    del n
    filters = {
        "never_fires_on_forget": measured.forget.fires > 0,
        "fire_threshold": measured.forget.clear_fires > 0,
        RETAIN_THRESHOLD: measured.worst(lambda stats: stats.clear_frequency) < threshold(config, DEFAULT),
    }
    return Ranking(filters, measured.forget.clear_frequency)


CONDITIONAL = SelectionMethod(
    name="conditional",
    words="most often clearly active on forget text, and hardly ever on retain text",
    rank=rank,
    settings=ClearThresholdSettings,
    thresholds=lambda config: {RETAIN_THRESHOLD: threshold(config, DEFAULT)},
)
