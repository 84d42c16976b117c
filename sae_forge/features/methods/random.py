"""``random``: a control drawn from all latents that fire anywhere, the forget corpus or not."""

from typing import TYPE_CHECKING, Any

from sae_forge.features.methods.flags import ScoreSettings
from sae_forge.features.methods.method import Ranking, SelectionMethod

if TYPE_CHECKING:
    from sae_forge.features.scores import Measured


def rank(measured: "Measured", config: Any, n: int) -> Ranking:
    """A uniform draw: the first m of n are the draw of m."""
    import torch

    from sae_forge.rng import generator

    del n
    draw = generator(config.seed, "random latents").random(measured.d_sae)
    return Ranking({"never_fires": measured.alive}, torch.from_numpy(draw))


RANDOM = SelectionMethod(
    name="random",
    words="drawn from all that fire anywhere",
    rank=rank,
    may_be_chosen=lambda forget, config: forget.fires >= 0,  # noqa: ARG005
    settings=ScoreSettings,  # it carries INLP's score
    draws=True,
    inlp_score=True,
)
