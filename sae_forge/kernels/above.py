"""Pre-activations above a bound, wherever they stand: what a choice over a whole batch is made from."""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_forge.kernels.affine import affine

GROUP = 16
"""Pre-acts of which the greatest is looked at first: finding the few among all costs more than the product."""


def above(
    x: Float[Tensor, "tokens d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, "d_sae"],
    bound: float,
    at_once: int,
) -> tuple[Float[Tensor, " entries"], Int[Tensor, " entries"], Int[Tensor, " entries"]]:
    """Every pre-act above ``bound`` and above 0, its token and its latent; in rising order of tokens.

    Within a token the order hangs on the latents alone, so a higher bound leaves entries out and moves none. Among
    ``at_once`` tokens of which one has a pre-act that is not finite, one such entry, NaN, stands for all.
    """
    bias = b_enc.to(W_enc.dtype)
    parts = list(_parts(x.to(W_enc.dtype), W_enc, bias, max(bound, 0.0), at_once))
    values, tokens, latents = (torch.cat(column) for column in zip(*parts, strict=True))
    return values.to(b_enc.dtype), tokens, latents


def _parts(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, bound: float, at_once: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    d_sae = W_enc.shape[1]
    group = GROUP if d_sae % GROUP == 0 else 1
    groups = d_sae // group
    steps = torch.arange(0, d_sae, groups, device=x.device)
    for start in range(0, len(x), at_once):
        pre_acts = affine(x[start : start + at_once], W_enc, b_enc)
        greatest = pre_acts.view(len(pre_acts), group, groups).amax(dim=1)
        if not greatest.isfinite().all():
            first = torch.full((1,), start, device=x.device)
            yield pre_acts.new_full((1,), torch.nan), first, torch.zeros_like(first)
            continue
        rows, columns = torch.nonzero(greatest > bound, as_tuple=True)
        latents = columns[:, None] + steps  # of each group all its latents
        gathered = pre_acts.flatten()[rows[:, None] * d_sae + latents]
        at, slot = torch.nonzero(gathered > bound, as_tuple=True)
        yield gathered[at, slot], rows[at] + start, latents[at, slot]
