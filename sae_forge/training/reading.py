"""What the SAE in training makes of a batch, before any gradient: the part that all ways of taking a step share."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_forge.kernels.dispatch import decode_loss, topk_encode
from sae_forge.kernels.rows import DecodeLoss
from sae_forge.training.plan import Plan
from sae_forge.training.state import TrainState


class Look(NamedTuple):
    """A batch encoded and decoded."""

    target: Float[Tensor, "tokens d_in"]
    values: Float[Tensor, "tokens k"]
    indices: Int[Tensor, "tokens k"]
    decoded: DecodeLoss


def target_of(state: TrainState, batch: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_in"]:
    """What the encoder reads and the decoder has to give: scaled, and less ``b_dec``."""
    return torch.add(-state.b_dec.weight, batch.float(), alpha=state.scale).to(state.rows.W_dec.product.dtype)


def look(state: TrainState, batch: Float[Tensor, "batch d_in"], plan: Plan) -> Look:
    """Encode and decode."""
    rows, backend = state.rows, plan.config.backend
    target = target_of(state, batch)
    values, indices = topk_encode(target, rows.W_enc.product.T, rows.b_enc.weight, None, state.sae.k, backend=backend)
    decoded = decode_loss(values, indices, rows.W_dec.product, target, backend=backend, trusted=True)
    return Look(target, values, indices, decoded)


def touched_latents(indices: Int[Tensor, "tokens k"], fired: Tensor, d_sae: int) -> Tensor:
    """Which latents fired at all; entries that did not fire write to a spare last place."""
    touched = torch.zeros(d_sae + 1, dtype=torch.bool, device=indices.device)
    touched.index_fill_(0, torch.where(fired, indices, d_sae).reshape(-1).long(), True)
    return touched[:-1]
