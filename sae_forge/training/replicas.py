"""What keeps the ranks of one run the same: what they were told, where they stop, and which weights they hold."""

from typing import Any

import torch
from torch import Tensor

from sae_forge.data.windows import Stream
from sae_forge.errors import PeerError
from sae_forge.kernels.rows import Slot
from sae_forge.training.plan import Plan
from sae_forge.training.state import TrainState

LOOK_EVERY = 100
"""Steps between two comparisons of the weights; one more is made before each checkpoint."""
GPU_STOP_STEPS = 20
"""Steps between two looks at whether a rank was asked to stop, where a look waits for the device."""


def require_agreement(plan: Plan, stream: Stream, settings: dict[str, Any]) -> None:
    """Refuse to begin unless every rank is to do the same on as many batches.

    Raises:
        ConfigError: names what differs, and both values.
    """
    config = plan.config
    how = {"accumulation": config.accumulation, "shard_latents": config.shard_latents, "backend": config.backend}
    batches = {"batches of an epoch": stream.batches_per_epoch, "rows of the shards": stream.rows}
    plan.team.agree("settings", {**settings, **how, **batches, "checkpoint_every": config.checkpoint_every})


def require_same_weights(state: TrainState, plan: Plan) -> None:
    """Refuse to go on with replicas that have drifted apart; where latents are shared out, only ``b_dec`` is common.

    Raises:
        PeerError: names the rank and the step.
    """
    if plan.team.world == 1:
        return
    slots = [state.b_dec] if plan.shards_latents else list(state.slots.values())
    bits = plan.team.tell([_bits(tensor) for slot in slots for tensor in _kept(slot)])
    for rank, theirs in enumerate(bits):
        if theirs != bits[0]:
            raise PeerError(
                f"rank {rank} does not hold the weights of rank 0 at step {state.step}: a fault of memory or of a "
                "driver; run the same command again to go on from the last checkpoint"
            )


def asked_to_stop(asked: bool, state: TrainState, plan: Plan) -> bool:
    """Whether any rank was asked to stop: all of them stop after the same step."""
    if plan.team.world == 1:
        return asked
    if plan.device.type == "cuda" and state.step % GPU_STOP_STEPS:
        return False
    return bool(plan.team.largest(int(asked), plan.device))


def start_together(state: TrainState, plan: Plan) -> None:
    """Take the centre and the scale of the first rank: another machine may round the sample's otherwise."""
    if plan.team.world > 1:
        held = torch.tensor([state.scale], dtype=torch.float64, device=plan.device)
        state.scale = float(plan.team.each(held)[0])
        state.b_dec.weight.copy_(plan.team.each(state.b_dec.weight)[0])


def _kept(slot: Slot) -> list[Tensor]:
    return [slot.weight, slot.exp_avg, slot.exp_avg_sq]


def _bits(tensor: Tensor) -> int:
    """A sum over the bits of all numbers: one flipped bit always changes it."""
    return int(tensor.contiguous().view(torch.int32).sum(dtype=torch.int64))
