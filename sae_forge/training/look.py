"""What an SAE in training makes of a batch, before any gradient: encoded as its architecture says, decoded, and held
against what it should be. The latents lie here, or over the ranks (``sharded``); all that follows is the same.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_forge.kernels.dispatch import decode_loss
from sae_forge.kernels.rows import Slopes
from sae_forge.training.architectures.table import architecture_of
from sae_forge.training.code import Code
from sae_forge.training.plan import Plan
from sae_forge.training.sharded import residual_of_all
from sae_forge.training.state import TrainState


class Look(NamedTuple):
    """A part of a batch, encoded and decoded."""

    code: Code
    residual: Float[Tensor, "tokens d_in"]
    """Decoded minus target."""
    squares: Float[Tensor, ""]
    """Squared length of the residual."""
    dots: Float[Tensor, "*entries"]
    """Each token's residual times the latents' rows of ``W_dec``."""

    @property
    def fired(self) -> Bool[Tensor, "*entries"]:
        """Which entries count: gradients flow through them, and through no others."""
        return self.code.values > 0

    def slopes(self, slope: Float[Tensor, ""] | float) -> Slopes:
        """What the part says about the latents where the loss is ``slope / 2 × squares``."""
        target, values, indices, tokens = self.code[:4]
        return Slopes(target, self.residual, slope * values, slope * self.dots * self.fired, indices, tokens)

    def touched(self, latents: int) -> Bool[Tensor, "latents"]:
        """Which latents fired at all; entries that did not fire write to a spare last place."""
        indices = self.code.indices
        touched = torch.zeros(latents + 1, dtype=torch.bool, device=indices.device)
        touched.index_fill_(0, torch.where(self.fired, indices, latents).reshape(-1).long(), True)
        return touched[:-1]

    @property
    def fires(self) -> Int[Tensor, ""]:
        """Entries that fired."""
        return self.fired.sum()


def looks(
    state: TrainState, parts: Sequence[Float[Tensor, "part d_in"]], plan: Plan, beside: Tensor | None = None
) -> Iterator[Look]:
    """A look at each part of a batch, made when it is asked for; its code may hold the pre-acts of ``beside`` too."""
    look = partial(_over_ranks if plan.shards_latents else _here, state, plan)
    return map(look, architecture_of(plan.config).encode(state, parts, plan, beside))


def _here(state: TrainState, plan: Plan, code: Code) -> Look:
    target, values, indices, tokens = code[:4]
    W_dec, backend = state.rows.W_dec.product, plan.config.backend
    decoded = decode_loss(values, indices, W_dec, target, tokens=tokens, backend=backend, trusted=True)
    return Look(code, decoded.residual, decoded.squares.sum(), decoded.dots)


def _over_ranks(state: TrainState, plan: Plan, code: Code) -> Look:
    residual, dots = residual_of_all(state, code, plan)
    return Look(code, residual, torch.linalg.vector_norm(residual, dtype=torch.float32).square(), dots)
