"""A part of a batch as an architecture encodes it: which latents of which tokens take part, and what they give."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_forge.data.sinks import are_sinks
from sae_forge.kernels.dispatch import centred
from sae_forge.kernels.moments import Moments
from sae_forge.training.plan import Plan
from sae_forge.training.state import TrainState


class Code(NamedTuple):
    """Some tokens, encoded."""

    target: Float[Tensor, "tokens d_in"]
    """What the encoder read."""
    values: Float[Tensor, "*entries"]
    """Acts, each the pre-act itself; 0 where the latent does not fire."""
    indices: Int[Tensor, "*entries"]
    """Latents, counted among those that are held here."""
    tokens: Int[Tensor, " entries"] | None = None
    """Of flat entries the token of each, in rising order; None where they lie ``[tokens, k]``."""
    beside: Float[Tensor, "tokens few"] | None = None
    """Pre-acts of the latents that were asked for besides, where the product that gave the others gave them too."""
    moments: Moments | None = None
    """Of the target, where the kernel that made it summed them on the way."""


def target_of(
    state: TrainState, batch: Float[Tensor, "batch d_in"], plan: Plan
) -> tuple[Float[Tensor, "batch d_in"], Moments | None]:
    """What the encoder reads and the decoder has to give: scaled, and less ``b_dec``; its moments where they came too.

    A sink's is nothing at all: so every batch keeps its shape, which a recorded step needs, and every rank does the
    same to each row. What fires on nothing are biases, which that holds down.
    """
    dtype = state.rows.W_dec.product.dtype
    made = centred(batch, state.b_dec.weight, state.scale, state.sink_norm, dtype, backend=plan.config.backend)
    if made is not None:
        return made
    rows = batch.float()
    target = torch.add(-state.b_dec.weight, rows, alpha=state.scale)
    if state.sink_norm:
        target.masked_fill_(are_sinks(rows, state.sink_norm)[:, None], 0.0)
    return target.to(dtype), None
