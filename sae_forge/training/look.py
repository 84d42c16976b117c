"""What an SAE in training makes of a batch, before any gradient. This is all that one architecture does otherwise than
another: it names some latents of each token and what they give, and the rest of a step asks for nothing else.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_forge.data.sinks import are_sinks
from sae_forge.kernels.dispatch import decode_loss, topk_encode
from sae_forge.kernels.rows import Slopes
from sae_forge.training.plan import Plan
from sae_forge.training.state import TrainState


class Look(NamedTuple):
    """A batch encoded and decoded."""

    target: Float[Tensor, "tokens d_in"]
    """What the encoder read."""
    values: Float[Tensor, "tokens k"]
    """Acts, each the pre-act itself; 0 where the latent does not fire."""
    indices: Int[Tensor, "tokens k"]
    """Latents, counted among those that are held here."""
    residual: Float[Tensor, "tokens d_in"]
    """Decoded minus target."""
    squares: Float[Tensor, ""]
    """Squared length of the residual."""
    dots: Float[Tensor, "tokens k"]
    """Each token's residual times the latents' rows of ``W_dec``."""

    @property
    def fired(self) -> Bool[Tensor, "tokens k"]:
        """Which entries count: gradients flow through them, and through no others."""
        return self.values > 0

    def slopes(self, slope: Float[Tensor, ""] | float) -> Slopes:
        """What the batch says about the latents where the loss is ``slope / 2 × squares``."""
        return Slopes(
            self.target, self.residual, slope * self.values, slope * self.dots * self.fired, self.indices
        )  # fmt: skip

    def touched(self, latents: int) -> Bool[Tensor, "latents"]:
        """Which latents fired at all; entries that did not fire write to a spare last place."""
        touched = torch.zeros(latents + 1, dtype=torch.bool, device=self.indices.device)
        touched.index_fill_(0, torch.where(self.fired, self.indices, latents).reshape(-1).long(), True)
        return touched[:-1]


def target_of(state: TrainState, batch: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_in"]:
    """What the encoder reads and the decoder has to give: scaled, and less ``b_dec``.

    A sink's is nothing at all: so every batch keeps its shape, which a recorded step needs, and every rank does the
    same to each row. What fires on nothing are biases, which that holds down.
    """
    rows = batch.float()
    target = torch.add(-state.b_dec.weight, rows, alpha=state.scale)
    if state.sink_norm:
        target.masked_fill_(are_sinks(rows, state.sink_norm)[:, None], 0.0)
    return target.to(state.rows.W_dec.product.dtype)


def look_topk(state: TrainState, batch: Float[Tensor, "batch d_in"], plan: Plan) -> Look:
    """The k latents that answer most to each token."""
    rows, backend = state.rows, plan.config.backend
    target = target_of(state, batch)
    values, indices = topk_encode(
        target,
        rows.W_enc.product.T,
        rows.b_enc.weight,
        None,
        state.sae.k,
        backend=backend,
        screened=plan.config.int8_topk,
    )
    decoded = decode_loss(values, indices, rows.W_dec.product, target, backend=backend, trusted=True)
    return Look(target, values, indices, decoded.residual, decoded.squares.sum(), decoded.dots)
