"""``random_matched``: a control as frequent on forget text as what another method takes."""

from typing import TYPE_CHECKING, Any

from sae_forge.features.methods.flags import ScoreSettings
from sae_forge.features.methods.method import Ranking, SelectionMethod, ranking, reference_of

if TYPE_CHECKING:
    from torch import Tensor

    from sae_forge.features.scores import Measured


def rank(measured: "Measured", config: Any, n: int) -> Ranking:
    """For each latent of the reference method, best first, another drawn from its decile of forget frequency.

    Deciles are those of the latents that fire on the forget corpus. The first m drawn match the first m of the
    reference, unless a decile had no latent left to draw.
    """
    import torch

    from sae_forge.rng import generator

    method = reference_of(config)
    fires = measured.forget.fires > 0
    reference = ranking(method, measured, config, n).best(n)
    others = fires.clone()
    others[reference] = False
    decile = _deciles(measured.forget.frequency, fires)
    shuffled = generator(config.seed, "matched latents").permutation(others.nonzero()[:, 0].numpy())
    pools: dict[int, list[int]] = {}
    for latent in shuffled.tolist():
        pools.setdefault(int(decile[latent]), []).append(latent)
    # the ends of shuffled lists: uniform, without replacement, and the first m drawn do not hang on how many follow
    drawn = [pool.pop() for latent in reference.tolist() if (pool := pools.get(int(decile[latent])))]
    order = torch.full((measured.d_sae,), -torch.inf, dtype=torch.double)
    order[drawn] = -torch.arange(len(drawn)).double()
    filters = {"never_fires_on_forget": fires, f"chosen_by_{method.name}": others, "not_drawn": order.isfinite()}
    return Ranking(filters, order)


def _deciles(frequency: "Tensor", among: "Tensor") -> "Tensor":
    """The decile, 0 to 9, of each latent's frequency among those of ``among``; equal frequencies share one."""
    import numpy as np
    import torch

    if not among.any():
        return torch.zeros(len(frequency), dtype=torch.long)
    edges = np.percentile(frequency[among].numpy(), np.arange(10, 100, 10))
    return torch.from_numpy(np.searchsorted(edges, frequency.numpy(), side="right"))


RANDOM_MATCHED = SelectionMethod(
    name="random_matched",
    words="drawn to match the frequencies of another method's choice",
    rank=rank,
    decides=lambda config: {"matched_to": reference_of(config).name},
    settings=ScoreSettings,  # it carries INLP's score
    draws=True,
    inlp_score=True,
    rival=False,  # it shares none with its reference
)
