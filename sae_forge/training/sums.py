"""What a whole batch says about every weight: the sums over its tokens, however those were taken.

A batch is taken at once, by one process or by ranks that each hold some of the latents; or in parts, one after the
other, by several ranks at once, or both. Every part gives sums that are divided by nothing; they are added up, over the
parts and over the ranks, and only then divided by the variance of the whole batch. So two ranks do the very arithmetic
of one process with two parts.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_forge.kernels.dispatch import latent_sums, row_gradients, sum_of_rows
from sae_forge.kernels.moments import Moments
from sae_forge.kernels.rows import Extra, RowGradients, Slopes, remove_parallel_
from sae_forge.kernels.transpose import Transpose, transpose
from sae_forge.sae.losses import variance
from sae_forge.training.auxk import Dead, auxk, dead_latents, explain, fading
from sae_forge.training.look import Look, looks
from sae_forge.training.plan import Plan
from sae_forge.training.state import TrainState

_ROOM = 2
"""Times the batch."""


class Firsthand(NamedTuple):
    """What gradients of the latents are made of where they need not exist as a whole."""

    slopes: Slopes
    table: Transpose
    extra: Extra | None


class Whole(NamedTuple):
    """What the whole batch says."""

    latents: Firsthand | RowGradients
    b_dec: Float[Tensor, "d_in"]
    """Gradient of ``b_dec``."""
    loss: Float[Tensor, ""]
    fvu: Float[Tensor, ""]
    fires: Int[Tensor, ""]
    """Entries of all latents that fired."""
    touched: Tensor
    """Which of the latents held here fired."""
    tokens: int


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


def sums_at_once(state: TrainState, batch: Float[Tensor, "batch d_in"], plan: Plan) -> Whole:
    """Of a batch that is seen whole, by all ranks if the latents are spread over several."""
    rows, team, alpha = state.rows, plan.latent_team, plan.config.auxk_alpha
    dead = _dead(state, plan)
    (seen,) = looks(state, [batch], plan, _beside(dead, plan))
    target, indices, moments = seen.code.target, seen.code.indices, seen.code.moments
    spread = variance(target) if moments is None else moments.variance(len(batch))
    fvu = seen.squares / spread
    loss, extra = fvu, None
    if dead is not None:
        share, extra = auxk(rows, target, seen.residual, dead, alpha, team, pre_acts=seen.code.beside)
        loss = fvu + alpha * share
    slope = 2.0 / spread
    slopes = seen.slopes(slope)
    table = transpose(indices, state.sae.d_sae)
    bias = latent_sums(slopes.pre_acts, indices, table, backend=plan.config.backend)
    slopes = slopes._replace(bias=bias)
    through_encoder, fires = sum_of_rows(rows.W_enc, bias, backend=plan.config.backend), seen.fires
    team.sum_(through_encoder, fires)
    b_dec = slope * seen.residual.sum(dim=0, dtype=torch.float32) - through_encoder
    touched = seen.touched(state.sae.d_sae)
    return Whole(Firsthand(slopes, table, extra), b_dec, loss, fvu, fires, touched, len(batch))


def sums_of_parts(state: TrainState, batch: Float[Tensor, "part d_in"], plan: Plan) -> Whole:
    """Of a batch of which this rank was given its rows, to be taken ``accumulation`` parts one after the other."""
    dead = _dead(state, plan)
    seen = looks(state, batch.split(len(batch) // plan.config.accumulation), plan, _beside(dead, plan))
    sums = _sums(state, next(seen), plan, dead)
    for _ in range(plan.config.accumulation - 1):  # bound to no name, a part is gone before the next is made
        for held, more in zip(sums.tensors(), _sums(state, next(seen), plan, dead).tensors(), strict=True):
            held.add_(more)
    plan.team.sum_(*sums.tensors())
    return _divided(state, sums, len(batch) * plan.replicas, plan, dead)


def _dead(state: TrainState, plan: Plan) -> Dead | None:
    """The dead latents there is room for, where there is any."""
    if not state.aux_places:
        return None
    return dead_latents(state.tokens_since_fired, plan.config.dead_after, state.aux_places)


def _beside(dead: Dead | None, plan: Plan) -> Tensor | None:
    """The dead, whose pre-acts are kept while all exist, if they take little more room than the batch does."""
    return dead.latents if dead is not None and len(dead.latents) <= _ROOM * plan.d_in else None


def _sums(state: TrainState, seen: Look, plan: Plan, dead: Dead | None) -> Sums:
    target = seen.code.target
    left, of_dead = torch.zeros((), device=target.device), None
    if dead is not None:
        slope = 2.0 * plan.config.auxk_alpha
        left, extra = explain(state.rows, target, seen.residual, dead, slope, pre_acts=seen.code.beside)
        of_dead = RowGradients(extra.W_enc, extra.W_dec, extra.b_enc)
    table = transpose(seen.code.indices, plan.d_sae)
    return Sums(
        gradients=row_gradients(seen.slopes(2.0), table, state.rows, backend=plan.config.backend, trusted=True),
        dead=of_dead,
        left=left,
        target=Moments.of(target) if seen.code.moments is None else seen.code.moments,
        residual=Moments.of(seen.residual),
        fires=seen.fires,
        touched=seen.touched(plan.d_sae).int(),
    )


def _divided(state: TrainState, sums: Sums, tokens: int, plan: Plan, dead: Dead | None) -> Whole:
    """By the variances of the whole."""
    gradients, spread = sums.gradients, sums.target.variance(tokens)
    for gradient in gradients:
        gradient.div_(spread)
    fvu = (sums.residual.squares / spread).float()
    loss = fvu
    through_encoder = sum_of_rows(state.rows.W_enc, gradients.b_enc, backend=plan.config.backend)
    b_dec = (2.0 * sums.residual.total).float() / spread - through_encoder
    if dead is not None and sums.dead is not None:
        scale = fading(dead, plan.d_in) / sums.residual.variance(tokens)
        loss = fvu + plan.config.auxk_alpha * sums.left * scale
        remove_parallel_(sums.dead.W_dec, state.rows.W_dec.weight[dead.latents])
        for gradient, more in zip(gradients, sums.dead, strict=True):
            gradient.index_add_(0, dead.latents, scale * more)  # a place without a dead latent adds zeros
    return Whole(gradients, b_dec, loss, fvu, sums.fires, sums.touched > 0, tokens)
