"""A step on a dictionary that is spread over ranks: each holds some of the latents, with their moments, and all see
every batch.

Each rank offers its best k latents of a token; all look at all offers and take the k best, as one process would. What
travels are acts, reconstructions and the gradient of ``b_dec``; no gradient of a latent leaves its rank.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sae_forge.kernels.dispatch import latent_sums, row_gradients, rows_adam, sparse_decode, topk, topk_encode
from sae_forge.kernels.rows import Rates, Slopes, adam_, adam_rows_
from sae_forge.kernels.transpose import transpose
from sae_forge.sae.dictionary import LatentActs
from sae_forge.sae.losses import variance
from sae_forge.training.auxk import auxk, dead_latents
from sae_forge.training.plan import Plan
from sae_forge.training.reading import target_of, touched_latents
from sae_forge.training.state import TrainState


def local_k(plan: Plan) -> int:
    """Latents a rank offers for a token."""
    return min(plan.k, len(plan.share.latents(plan.d_sae)))


def step_sharded(
    state: TrainState, batch: Float[Tensor, "batch d_in"], plan: Plan, rates: Rates
) -> Float[Tensor, "figures"]:
    """As ``step.step``, on the latents of this rank."""
    rows, team, backend = state.rows, plan.team, plan.config.backend
    target = target_of(state, batch)
    acts = _encode(state, target, plan)
    residual, dots = _decode(state, target, acts, plan)
    spread = variance(target)
    fvu = torch.linalg.vector_norm(residual, dtype=torch.float32).square() / spread
    loss, extra = fvu, None
    if state.aux_places:
        dead = dead_latents(state.tokens_since_fired, plan.config.dead_after, state.aux_places)
        share, extra = auxk(rows, target, residual, dead, plan.config.auxk_alpha, team)
        loss = fvu + plan.config.auxk_alpha * share
    fired, slope = acts.values > 0, 2.0 / spread
    slopes = Slopes(target, residual, slope * acts.values, slope * dots * fired, acts.indices)
    table = transpose(acts.indices, state.sae.d_sae)
    through_encoder = rows.W_enc.weight.T @ latent_sums(slopes.pre_acts, acts.indices, table, backend=backend)
    fires, touched = fired.sum(), touched_latents(acts.indices, fired, state.sae.d_sae)
    team.sum_(through_encoder, fires)
    b_dec = slope * residual.sum(dim=0, dtype=torch.float32) - through_encoder
    rates = rates._replace(found_inf=(~torch.isfinite(loss + b_dec.sum())).float())
    norm = torch.zeros_like(loss)
    if plan.config.max_grad_norm is None:
        rows_adam(slopes, table, rows, rates, extra=extra, backend=backend, trusted=True)
    else:
        gradients = row_gradients(slopes, table, rows, extra=extra, backend=backend, trusted=True)
        squares = torch.stack([torch.linalg.vector_norm(part) for part in gradients]).square().sum()
        team.sum_(squares)
        norm = (squares + b_dec.square().sum()).sqrt()
        factor = (plan.config.max_grad_norm / (norm + 1e-6)).clamp_max(1.0)
        for part in (*gradients, b_dec):
            part.mul_(factor)
        rates = rates._replace(found_inf=(~torch.isfinite(loss + norm)).float())
        adam_rows_(rows, gradients, rates)
    adam_([state.b_dec], [b_dec], rates)
    state.tokens_since_fired.add_(len(batch)).masked_fill_(touched, 0)
    dead_share = (state.tokens_since_fired >= plan.config.dead_after).float().sum()
    team.sum_(dead_share)
    return torch.stack([loss, fvu, fires / len(batch), dead_share / plan.d_sae, norm])


def _encode(state: TrainState, target: Float[Tensor, "tokens d_in"], plan: Plan) -> LatentActs:
    """This rank's latents in rising order, with acts where they are among the k best of all ranks, and zeros."""
    rows, backend = state.rows, plan.config.backend
    values, indices = topk_encode(
        target, rows.W_enc.product.T, rows.b_enc.weight, None, local_k(plan), backend=backend
    )  # fmt: skip
    indices, order = indices.sort(dim=1)
    values = values.gather(1, order)
    offers = torch.cat(plan.team.each(values), dim=1)  # in the order of the latents, so that ties go to the lower one
    _, best = topk(offers, plan.k, backend=backend)
    taken = torch.zeros_like(offers, dtype=torch.bool).scatter_(1, best.long(), True)
    return LatentActs(values * taken.tensor_split(plan.team.world, dim=1)[plan.team.rank], indices)


def _decode(
    state: TrainState, target: Float[Tensor, "tokens d_in"], acts: LatentActs, plan: Plan
) -> tuple[Float[Tensor, "tokens d_in"], Float[Tensor, "tokens n"]]:
    """The residual of the whole reconstruction, and its product with the rows of this rank."""
    with torch.enable_grad():
        values = acts.values.detach().requires_grad_()
        part = sparse_decode(
            values, acts.indices, state.rows.W_dec.product, backend=plan.config.backend, trusted=True
        )  # fmt: skip
        decoded = part.detach().float()
        plan.team.sum_(decoded)
        residual = (decoded - target).to(target.dtype)
        (dots,) = torch.autograd.grad(part, values, residual)
    return residual, dots


class ShardedSAE(NamedTuple):
    """The SAE of all ranks, for measuring: every rank gets the same reconstruction and the same acts."""

    state: TrainState
    plan: Plan

    @property
    def d_in(self) -> int:
        """Width of what it reads."""
        return self.plan.d_in

    @property
    def d_sae(self) -> int:
        """Latents of all ranks."""
        return self.plan.d_sae

    @property
    def W_dec(self) -> Tensor:
        """This rank's rows."""
        return self.state.rows.W_dec.weight

    def reconstruct(self, x: Float[Tensor, "tokens d_in"]) -> tuple[Float[Tensor, "tokens d_in"], LatentActs]:
        """The reconstruction of each token and the acts behind it, in the units of the stored activations."""
        state, team = self.state, self.plan.team
        target = target_of(state, x)
        acts = _encode(state, target, self.plan)
        residual, _ = _decode(state, target, acts, self.plan)
        x_hat = (residual.float() + target.float() + state.b_dec.weight) / state.scale
        first = self.plan.share.latents(self.d_sae).start
        values = torch.cat(team.each(acts.values), dim=1) / state.scale
        indices = torch.cat(team.each(acts.indices.long() + first), dim=1)
        return x_hat, LatentActs(values, indices)
