"""A step on a batch that is taken in parts: one after the other, by several ranks at once, or both.

Every part gives sums that are divided by nothing; they are added up, over the parts and over the ranks, and only then
divided by the variance of the whole batch. So two ranks do the very arithmetic of one process with two parts.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_forge.kernels.dispatch import row_gradients
from sae_forge.kernels.rows import RowGradients, Slopes, remove_parallel_
from sae_forge.kernels.transpose import transpose
from sae_forge.training.auxk import Dead, dead_latents, explain, fading
from sae_forge.training.plan import Plan
from sae_forge.training.reading import look, touched_latents
from sae_forge.training.state import TrainState


class Moments(NamedTuple):
    """What the variance of rows is made of, in fp64, where the difference of two great numbers is exact enough."""

    total: Float[Tensor, "d_in"]
    squares: Float[Tensor, ""]

    @classmethod
    def of(cls, rows: Float[Tensor, "tokens d_in"]) -> "Moments":
        """Sums over the rows."""
        return cls(rows.sum(dim=0, dtype=torch.float64), torch.linalg.vector_norm(rows, dtype=torch.float64).square())

    def variance(self, tokens: int) -> Float[Tensor, ""]:
        """As ``losses.variance`` of all the rows these were summed over."""
        spread = self.squares - self.total.square().sum() / tokens
        return spread.clamp_min(torch.finfo(torch.float32).tiny).float()


class Sums(NamedTuple):
    """What a part adds to the whole."""

    gradients: RowGradients
    """Of the summed squares of the residual."""
    dead: RowGradients | None
    """Of what the dead leave of the residual, squared and summed, times half the weight of AuxK; by place."""
    left: Float[Tensor, ""]
    target: Moments
    residual: Moments
    fires: Int[Tensor, ""]
    touched: Int[Tensor, "d_sae"]
    """Parts in which a latent fired."""

    def tensors(self) -> list[Tensor]:
        """Everything that is to be added up."""
        dead = self.dead or ()
        return [*self.gradients, *dead, self.left, *self.target, *self.residual, self.fires, self.touched]


class Whole(NamedTuple):
    """What all parts together say."""

    gradients: RowGradients
    b_dec: Float[Tensor, "d_in"]
    """Gradient of ``b_dec``."""
    loss: Float[Tensor, ""]
    fvu: Float[Tensor, ""]
    fires: Int[Tensor, ""]
    touched: Tensor
    tokens: int


def read_in_parts(state: TrainState, batch: Float[Tensor, "part d_in"], plan: Plan) -> Whole:
    """Gradients of the whole batch, of which this rank was given its rows."""
    dead = None
    if state.aux_places:
        dead = dead_latents(state.tokens_since_fired, plan.config.dead_after, state.aux_places)
    parts = batch.split(len(batch) // plan.config.accumulation)
    sums = _sums(state, parts[0], plan, dead)
    for part in parts[1:]:
        for held, more in zip(sums.tensors(), _sums(state, part, plan, dead).tensors(), strict=True):
            held.add_(more)
    plan.team.sum_(*sums.tensors())
    return _whole(state, sums, len(batch) * plan.replicas, plan, dead)


def _sums(state: TrainState, part: Float[Tensor, "part d_in"], plan: Plan, dead: Dead | None) -> Sums:
    seen = look(state, part, plan)
    target, residual = seen.target, seen.decoded.residual
    fired = seen.values > 0
    slopes = Slopes(target, residual, 2.0 * seen.values, 2.0 * seen.decoded.dots * fired, seen.indices)
    table = transpose(seen.indices, plan.d_sae)
    left, of_dead = torch.zeros((), device=target.device), None
    if dead is not None:
        left, extra = explain(state.rows, target, residual, dead, 2.0 * plan.config.auxk_alpha)
        of_dead = RowGradients(extra.W_enc, extra.W_dec, extra.b_enc)
    return Sums(
        gradients=row_gradients(slopes, table, state.rows, backend=plan.config.backend, trusted=True),
        dead=of_dead,
        left=left,
        target=Moments.of(target),
        residual=Moments.of(residual),
        fires=fired.sum(),
        touched=touched_latents(seen.indices, fired, plan.d_sae).int(),
    )


def _whole(state: TrainState, sums: Sums, tokens: int, plan: Plan, dead: Dead | None) -> Whole:
    """Divide by the variances of the whole."""
    gradients, spread = sums.gradients, sums.target.variance(tokens)
    for gradient in gradients:
        gradient.div_(spread)
    fvu = (sums.residual.squares / spread).float()
    loss = fvu
    b_dec = (2.0 * sums.residual.total).float() / spread - state.rows.W_enc.weight.T @ gradients.b_enc
    if dead is not None and sums.dead is not None:
        scale = fading(dead, plan.d_in) / sums.residual.variance(tokens)
        loss = fvu + plan.config.auxk_alpha * sums.left * scale
        remove_parallel_(sums.dead.W_dec, state.rows.W_dec.weight[dead.latents])
        for gradient, more in zip(gradients, sums.dead, strict=True):
            gradient.index_add_(0, dead.latents, scale * more)  # a place without a dead latent adds zeros
    return Whole(gradients, b_dec, loss, fvu, sums.fires, sums.touched > 0, tokens)
