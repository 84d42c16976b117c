"""One training step, without autograd: every gradient is a sum that some latent or the centre owns.

With ``target = scale × x − b_dec`` the residual is ``decode(values) − target``, so ``b_dec`` stands in no kernel: its
own gradient is a sum over tokens and one mat-vec.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from sae_forge.kernels.dispatch import row_gradients, rows_adam
from sae_forge.kernels.rows import Rates, RowGradients, adam_, adam_rows_
from sae_forge.training.plan import Plan
from sae_forge.training.state import TrainState
from sae_forge.training.sums import Whole, sums_at_once, sums_of_parts

COUNT_EVERY = 20
"""Steps between two counts of the dead on a GPU."""
_LEAST_ROOM = 64
"""Dead latents that room is made for at least, where there are any."""
_LANES = 16
"""A CPU's products take up to a third longer over a number of latents that is no multiple of so many."""


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
        even = -(-dead // _LANES) * _LANES
        state.aux_places = even if plan.device.type == "cpu" else _roomy(dead, state.sae.d_sae)


def _roomy(dead: int, d_sae: int) -> int:
    """A power of two with room for half as many again, so that few different sizes ever occur."""
    return min(d_sae, max(_LEAST_ROOM, 1 << (dead + dead // 2 - 1).bit_length())) if dead else 0


@torch.no_grad()
def step(state: TrainState, batch: Float[Tensor, "batch d_in"], plan: Plan, rates: Rates) -> Float[Tensor, "figures"]:
    """The part of a step that a device does alone: no number is fetched, no shape depends on one, unless the
    architecture says that it ``waits``."""
    whole = (sums_of_parts if plan.in_parts else sums_at_once)(state, batch, plan)
    return _apply(state, whole, plan, rates)


def count_step(state: TrainState, tokens: int) -> None:
    """A step on this many tokens is done."""
    state.step += 1
    state.tokens += tokens


def _apply(state: TrainState, whole: Whole, plan: Plan, rates: Rates) -> Float[Tensor, "figures"]:
    """Move every weight, unless the loss or a gradient is not finite, and count who fired."""
    latents, most, backend = whole.latents, plan.config.max_grad_norm, plan.config.backend
    norm, checked = torch.zeros_like(whole.loss), whole.loss + whole.b_dec.sum()
    if most is not None:
        if not isinstance(latents, RowGradients):
            latents = row_gradients(*latents[:2], state.rows, extra=latents.extra, backend=backend, trusted=True)
        norm = _norm(latents, whole.b_dec, plan)
        factor = (most / (norm + 1e-6)).clamp_max(1.0)
        for gradient in (*latents, whole.b_dec):
            gradient.mul_(factor)
        checked = whole.loss + norm
    rates = rates._replace(found_inf=(~torch.isfinite(checked)).float())
    if isinstance(latents, RowGradients):
        adam_rows_(state.rows, latents, rates)
    else:
        rows_adam(*latents[:2], state.rows, rates, extra=latents.extra, backend=backend, trusted=True)
    adam_([state.b_dec], [whole.b_dec], rates)
    state.tokens_since_fired.add_(whole.tokens).masked_fill_(whole.touched, 0)
    dead = (state.tokens_since_fired >= plan.config.dead_after).float().sum()
    plan.latent_team.sum_(dead)
    norm = torch.where(rates.found_inf > 0, torch.nan, norm)  # what moved nothing must not look like a step
    return torch.stack([whole.loss, whole.fvu, whole.fires / whole.tokens, dead / plan.d_sae, norm])


def _norm(gradients: RowGradients, b_dec: Float[Tensor, "d_in"], plan: Plan) -> Float[Tensor, ""]:
    """Over the gradients of all latents, wherever they are held, and of ``b_dec``."""
    parts = [torch.linalg.vector_norm(part) for part in gradients]
    if plan.latent_team.world == 1:
        return torch.linalg.vector_norm(torch.stack([*parts, torch.linalg.vector_norm(b_dec)]))
    squares = torch.stack(parts).square().sum()
    plan.latent_team.sum_(squares)
    return (squares + b_dec.square().sum()).sqrt()
