"""A dictionary that is spread over ranks: each holds some of the latents, with their moments, and all see every batch.

What travels are acts, reconstructions and the gradient of ``b_dec``; no gradient of a latent leaves its rank.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sae_forge.kernels.dispatch import sparse_decode
from sae_forge.sae.dictionary import LatentActs
from sae_forge.training.architectures.table import architecture_of
from sae_forge.training.code import Code
from sae_forge.training.plan import Plan
from sae_forge.training.state import TrainState


def residual_of_all(
    state: TrainState, code: Code, plan: Plan
) -> tuple[Float[Tensor, "tokens d_in"], Float[Tensor, "tokens n"]]:
    """The residual of the whole reconstruction, and its product with the rows of this rank."""
    with torch.enable_grad():
        values = code.values.detach().requires_grad_()
        part = sparse_decode(
            values, code.indices, state.rows.W_dec.product, backend=plan.config.backend, trusted=True
        )  # fmt: skip
        decoded = part.detach().float()
        plan.team.sum_(decoded)
        residual = (decoded - code.target).to(code.target.dtype)
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
        code = next(architecture_of(self.plan.config).encode(state, [x], self.plan))
        residual, _ = residual_of_all(state, code, self.plan)
        x_hat = (residual.float() + code.target.float() + state.b_dec.weight) / state.scale
        first = self.plan.share.latents(self.d_sae).start
        values = torch.cat(team.each(code.values), dim=1) / state.scale
        indices = torch.cat(team.each(code.indices.long() + first), dim=1)
        return x_hat, LatentActs(values, indices)
