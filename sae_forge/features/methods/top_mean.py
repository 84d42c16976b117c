"""``top_mean``: a control that looks at the forget corpus alone."""

from typing import TYPE_CHECKING, Any

from sae_forge.features.methods.method import Ranking, SelectionMethod

if TYPE_CHECKING:
    from sae_forge.features.scores import Measured


def rank(measured: "Measured", config: Any, n: int) -> Ranking:
    """Mean activation over all forget tokens."""
    del config, n
    return Ranking({"never_fires_on_forget": measured.forget.fires > 0}, measured.forget.mean)


TOP_MEAN = SelectionMethod(name="top_mean", words="most active on forget text, whatever retain text says", rank=rank)
