"""One training step, without autograd: every gradient is a sum that some latent or the centre owns.

With ``target = scale × x − b_dec`` the residual is ``decode(values) − target``, so ``b_dec`` stands in no kernel: its
own gradient is a sum over tokens and one mat-vec.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sae_forge.kernels.dispatch import latent_sums, row_gradients, rows_adam
from sae_forge.kernels.rows import Extra, Rates, RowGradients, Slopes, adam_, adam_rows_
from sae_forge.kernels.transpose import Transpose, transpose
from sae_forge.sae.losses import variance
from sae_forge.training.auxk import auxk, dead_latents
from sae_forge.training.parts import read_in_parts
from sae_forge.training.plan import Plan
from sae_forge.training.reading import look, touched_latents
from sae_forge.training.sharded import step_sharded
from sae_forge.training.state import TrainState

COUNT_EVERY = 20
"""Steps between two counts of the dead on a GPU."""
_LEAST_ROOM = 64
"""Dead latents that room is made for at least, where there are any."""


class _Reading(NamedTuple):
    """A batch as the SAE sees it, and what it says about every weight."""

    slopes: Slopes
    table: Transpose
    extra: Extra | None
    b_dec: Float[Tensor, "d_in"]
    """Gradient of ``b_dec``."""
    fired: Tensor
    loss: Float[Tensor, ""]
    fvu: Float[Tensor, ""]


@torch.no_grad()
def train_step(state: TrainState, batch: Float[Tensor, "batch d_in"], plan: Plan) -> Float[Tensor, "figures"]:
    """Move the weights once; returns ``record.FIGURES`` still on the device, so that nothing waits for it.

    If the loss is not finite, no weight and no moment moves; the caller sees it in the figures.
    """
    make_room(state, plan)
    figures = step(state, batch.to(plan.device), plan, rates_of(state, plan))
    count_step(state, len(batch) * plan.replicas)
    return figures


def rates_of(state: TrainState, plan: Plan) -> Rates:
    """Adam's numbers for the coming step."""
    return Rates.at(state.step + 1, plan.lr_at(state.step), plan.device)


def make_room(state: TrainState, plan: Plan) -> None:
    """Before a step, see how many latents AuxK has to hold.

    On a CPU it holds those that are dead, at every step. A GPU would have to wait for the count, so there it is taken
    now and then, and room made for half as many again; dead latents beyond that wait.
    """
    config = plan.config
    if config.auxk_alpha == 0 or state.tokens < config.dead_after:
        state.aux_places = 0  # nothing can be dead yet
    elif plan.device.type == "cpu" or state.step % COUNT_EVERY == 0:
        dead = int((state.tokens_since_fired >= config.dead_after).sum())
        if plan.shards_latents:
            dead = plan.team.largest(dead, plan.device)
        state.aux_places = dead if plan.device.type == "cpu" else _roomy(dead, state.sae.d_sae)


def _roomy(dead: int, d_sae: int) -> int:
    """A power of two with room for half as many again, so that few different sizes ever occur."""
    return min(d_sae, max(_LEAST_ROOM, 1 << (dead + dead // 2 - 1).bit_length())) if dead else 0


@torch.no_grad()
def step(state: TrainState, batch: Float[Tensor, "batch d_in"], plan: Plan, rates: Rates) -> Float[Tensor, "figures"]:
    """The part of a step that a device does alone: no number is fetched, no shape depends on one."""
    if plan.shards_latents:
        return step_sharded(state, batch, plan, rates)
    if plan.in_parts:
        return _step_in_parts(state, batch, plan, rates)
    reading = _read(state, batch, plan)
    finite = torch.isfinite(reading.loss + reading.b_dec.sum())
    rates = rates._replace(found_inf=(~finite).float())
    backend, norm = plan.config.backend, torch.zeros_like(reading.loss)
    if plan.config.max_grad_norm is None:
        rows_adam(reading.slopes, reading.table, state.rows, rates, extra=reading.extra, backend=backend, trusted=True)
    else:
        gradients = row_gradients(
            reading.slopes, reading.table, state.rows, extra=reading.extra, backend=backend, trusted=True
        )
        norm = _clip_(gradients, reading.b_dec, plan.config.max_grad_norm)
        rates = rates._replace(found_inf=(~torch.isfinite(reading.loss + norm)).float())
        adam_rows_(state.rows, gradients, rates)
    adam_([state.b_dec], [reading.b_dec], rates)
    touched = touched_latents(reading.slopes.indices, reading.fired, plan.d_sae)
    dead_share = _count_fires(state, touched, len(batch), plan)
    norm = torch.where(rates.found_inf > 0, torch.nan, norm)  # what moved nothing must not look like a step
    return torch.stack([reading.loss, reading.fvu, reading.fired.sum() / len(batch), dead_share, norm])


def _step_in_parts(
    state: TrainState, batch: Float[Tensor, "part d_in"], plan: Plan, rates: Rates
) -> Float[Tensor, "figures"]:
    """As :func:`step`, by gradients that exist as a whole because they are sums."""
    whole = read_in_parts(state, batch, plan)
    norm, checked = torch.zeros_like(whole.loss), whole.loss + whole.b_dec.sum()
    if plan.config.max_grad_norm is not None:
        norm = _clip_(whole.gradients, whole.b_dec, plan.config.max_grad_norm)
        checked = whole.loss + norm
    rates = rates._replace(found_inf=(~torch.isfinite(checked)).float())
    adam_rows_(state.rows, whole.gradients, rates)
    adam_([state.b_dec], [whole.b_dec], rates)
    dead_share = _count_fires(state, whole.touched, whole.tokens, plan)
    norm = torch.where(rates.found_inf > 0, torch.nan, norm)
    return torch.stack([whole.loss, whole.fvu, whole.fires / whole.tokens, dead_share, norm])


def count_step(state: TrainState, tokens: int) -> None:
    """A step on this many tokens is done."""
    state.step += 1
    state.tokens += tokens


def _read(state: TrainState, batch: Float[Tensor, "batch d_in"], plan: Plan) -> _Reading:
    """Encode, decode, and turn the residual into slopes."""
    rows, backend = state.rows, plan.config.backend
    target, values, indices, decoded = look(state, batch, plan)
    spread = variance(target)
    fvu = decoded.squares.sum() / spread
    loss, extra = fvu, None
    if state.aux_places:
        dead = dead_latents(state.tokens_since_fired, plan.config.dead_after, state.aux_places)
        share, extra = auxk(rows, target, decoded.residual, dead, plan.config.auxk_alpha)
        loss = fvu + plan.config.auxk_alpha * share
    fired, slope = values > 0, 2.0 / spread
    slopes = Slopes(target, decoded.residual, slope * values, slope * decoded.dots * fired, indices)
    table = transpose(indices, plan.d_sae)
    through_encoder = latent_sums(slopes.pre_acts, indices, table, backend=backend)
    centre = slope * decoded.residual.sum(dim=0, dtype=torch.float32) - rows.W_enc.weight.T @ through_encoder
    return _Reading(slopes, table, extra, centre, fired, loss, fvu)


def _clip_(gradients: RowGradients, b_dec: Float[Tensor, "d_in"], most: float) -> Float[Tensor, ""]:
    """Bring the norm over all gradients down to ``most``; returns what it was."""
    parts = [*gradients, b_dec]
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(part) for part in parts]))
    factor = (most / (norm + 1e-6)).clamp_max(1.0)
    for part in parts:
        part.mul_(factor)
    return norm


def _count_fires(state: TrainState, touched: Tensor, tokens: int, plan: Plan) -> Float[Tensor, ""]:
    """Put the counters of latents that fired back to zero; returns the share of latents that are dead now."""
    state.tokens_since_fired.add_(tokens).masked_fill_(touched, 0)
    return (state.tokens_since_fired >= plan.config.dead_after).float().mean()
