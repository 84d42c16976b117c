"""AuxK, which revives dead latents: they are trained to explain what the others leave unexplained.

Dense, but over the dead latents alone: gathering d_in / 2 rows a token would cost more than the whole step.
"""

from itertools import repeat
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_forge.kernels.dispatch import among_largest, encode_tokens, product
from sae_forge.kernels.rows import Extra, Rows
from sae_forge.ranks import ALONE, Ranks
from sae_forge.sae.losses import variance


class Dead(NamedTuple):
    """The dead latents, packed."""

    latents: Int[Tensor, "few"]
    """In rising order; places beyond the last dead latent hold any latent."""
    present: Bool[Tensor, "few"]
    """Which places hold a dead latent."""
    row_of: Int[Tensor, "d_sae"]
    """int32: the place of a latent, or -1."""


def dead_latents(tokens_since_fired: Int[Tensor, "d_sae"], dead_after: int, places: int) -> Dead:
    """The first ``places`` latents that have not fired for ``dead_after`` tokens; nothing waits for the device."""
    dead = tokens_since_fired >= dead_after
    order = dead.cumsum(0) - 1
    chosen = dead & (order < places)
    d_sae = len(dead)
    latents = order.new_zeros(places + 1)  # the last place gathers what was not chosen
    latents.scatter_(0, torch.where(chosen, order, places), torch.arange(d_sae, device=dead.device))
    present = torch.arange(places, device=dead.device) < dead.sum()
    return Dead(latents[:places], present, torch.where(chosen, order, -1).to(torch.int32))


def auxk(
    rows: Rows,
    target: Float[Tensor, "tokens d_in"],
    residual: Float[Tensor, "tokens d_in"],
    dead: Dead,
    weight: float,
    team: Ranks = ALONE,
    *,
    pre_acts: Float[Tensor, "tokens few"] | None = None,
) -> tuple[Float[Tensor, ""], Extra]:
    """The AuxK loss, and ``weight`` times its gradients, which reach the dead latents alone.

    The loss is the share of the residual's variance that the dead latents, their top d_in / 2, leave unexplained. With
    fewer dead latents than that it fades with their number, so the last few are not pushed harder than the many. Acts
    pass no ReLU here: a latent whose pre-acts are all negative would get no gradient and stay dead for good.

    Args:
        target: What the encoder read.
        residual: Decoded minus target; no gradient goes through it.
        team: Ranks that each hold some of the latents.
        pre_acts: Of the dead, where they have been made.

    Source: Gao et al. 2024 (arXiv 2406.04093), AuxK; the fading is EleutherAI sparsify's, the missing ReLU SAELens's.
    """
    scale = fading(dead, target.shape[1], team) / variance(residual)
    left, extra = explain(rows, target, residual, dead, 2.0 * weight * scale, team, pre_acts=pre_acts)
    return left * scale, extra


def fading(dead: Dead, d_in: int, team: Ranks = ALONE) -> Float[Tensor, ""]:
    """1 with d_in / 2 dead latents or more, less with fewer."""
    half, count = max(1, d_in // 2), dead.present.sum()
    team.sum_(count)
    return count.clamp_max(half) / half


def explain(
    rows: Rows,
    target: Float[Tensor, "tokens d_in"],
    residual: Float[Tensor, "tokens d_in"],
    dead: Dead,
    slope: Float[Tensor, ""] | float,
    team: Ranks = ALONE,
    *,
    pre_acts: Float[Tensor, "tokens few"] | None = None,
) -> tuple[Float[Tensor, ""], Extra]:
    """What the dead leave of the residual, squared and summed, and ``slope / 2`` times the gradients of that sum."""
    half, places = max(1, target.shape[1] // 2), len(dead.latents)
    W_enc, W_dec = rows.W_enc.product[dead.latents], rows.W_dec.product[dead.latents]
    bias = rows.b_enc.weight[dead.latents]
    left = torch.zeros((), device=target.device)
    for_enc, for_dec = torch.zeros_like(W_enc, dtype=torch.float32), torch.zeros_like(W_dec, dtype=torch.float32)
    for_bias = torch.zeros_like(bias)
    at_once = encode_tokens(places * team.world, target.device)
    made = repeat(None) if pre_acts is None else pre_acts.split(at_once)
    for x, rest, acts in zip(target.split(at_once), residual.split(at_once), made, strict=False):
        acts = product(x, W_enc.T).add_(bias.to(x.dtype)) if acts is None else acts
        kept = _kept(acts, dead.present, half, team).to(x.dtype)
        acts = acts.mul_(kept)
        rebuilt = product(acts, W_dec)
        team.sum_(rebuilt)
        missing = rebuilt.add_(rest)  # the dead try to rebuild minus the residual
        left += torch.linalg.vector_norm(missing, dtype=torch.float32).square()
        slopes = product(missing, W_dec.T).mul_(kept)
        for_dec += product(acts.T, missing)
        for_enc += product(slopes.T, x)
        for_bias += slopes.sum(dim=0, dtype=torch.float32)
    for gradient in (for_enc, for_dec, for_bias):
        gradient.mul_(slope)
    return left, Extra(dead.row_of, for_enc, for_dec, for_bias)


def _kept(acts: Tensor, present: Tensor, half: int, team: Ranks) -> Bool[Tensor, "tokens few"]:
    """Which acts take part: of each token the ``half`` greatest of latents that are there, over all ranks."""
    if acts.shape[1] * team.world <= half:
        return present.expand_as(acts)
    offered = acts + torch.zeros_like(present, dtype=acts.dtype).masked_fill_(~present, -torch.inf)
    if team.world == 1:
        return among_largest(offered, half) & present
    best = torch.topk(offered, min(half, acts.shape[1]), dim=1, sorted=False)
    none = torch.zeros_like(acts, dtype=torch.bool)
    among = torch.cat(team.each(best.values), dim=1)
    winners = torch.topk(among, min(half, among.shape[1]), dim=1, sorted=False).indices
    wins = torch.zeros_like(among, dtype=torch.bool).scatter_(1, winners, True)
    return none.scatter_(1, best.indices, wins.tensor_split(team.world, dim=1)[team.rank]) & present
