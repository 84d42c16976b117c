"""The look at a batch through a dictionary that is spread over ranks: each holds some of the latents, with their
moments, and all see every batch.

Each rank offers its best k latents of a token; all look at all offers and take the k best, as one process would. What
travels are acts, reconstructions and the gradient of ``b_dec``; no gradient of a latent leaves its rank.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sae_forge.kernels.dispatch import sparse_decode, topk, topk_encode
from sae_forge.sae.dictionary import LatentActs
from sae_forge.training.look import Look, target_of
from sae_forge.training.plan import Plan
from sae_forge.training.state import TrainState


def local_k(plan: Plan) -> int:
    """Latents a rank offers for a token."""
    return min(plan.k, len(plan.share.latents(plan.d_sae)))


def look_sharded(state: TrainState, batch: Float[Tensor, "batch d_in"], plan: Plan) -> Look:
    """As ``look.look_topk``, where this rank holds some of the latents; the residual is that of all."""
    target = target_of(state, batch)
    acts = _encode(state, target, plan)
    residual, dots = _decode(state, target, acts, plan)
    squares = torch.linalg.vector_norm(residual, dtype=torch.float32).square()
    return Look(target, acts.values, acts.indices, residual, squares, dots)


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
    def k(self) -> int:
        """Latents of a token."""
        return self.plan.k

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
