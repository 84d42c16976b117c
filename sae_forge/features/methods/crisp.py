"""``crisp``: the largest excess of firings among latents that are active enough (arXiv 2508.13650, section 2)."""

from typing import TYPE_CHECKING, Any

from sae_forge.features.methods.method import Ranking, SelectionMethod

if TYPE_CHECKING:
    from sae_forge.features.scores import Measured

POOL = 10
"""Candidates looked at for each latent that is taken."""
RATIO = 3.0
"""Least forget over retain activation of a latent that is taken."""


def rank(measured: "Measured", config: Any, n: int) -> Ranking:
    """Forget fires minus retain fires, among the first ``POOL * n`` by it that are active enough.

    Fires and activations are those of as many tokens as the shortest corpus holds.
    """
    import torch

    from sae_forge.features.scores import ranked

    del config
    common = min(stats.tokens for stats in (measured.forget, *measured.retain.values()))
    excess = (measured.forget.frequency - measured.worst(lambda stats: stats.frequency)) * common
    # summed acts, forget over retain; the 1 keeps it finite where retain text is silent
    relative = measured.forget.mean * common / (measured.worst(lambda stats: stats.mean) * common + 1)
    pool = torch.zeros_like(measured.forget.fires, dtype=torch.bool)
    pool[ranked(torch.ones_like(pool), excess, POOL * n)] = True
    return Ranking({"crisp_pool": pool, "crisp_ratio": relative >= RATIO}, excess)


CRISP = SelectionMethod(name="crisp", words="most firings in excess of retain text, and active enough", rank=rank)
