"""Where training starts from: a centre for ``b_dec`` and a scale that makes every model's activations look alike."""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from sae_forge.errors import DataError, NumericalError

SAMPLE_ROWS = 32_768
SAMPLE_NUMBERS = 2**25
"""The sample holds at most this many numbers (128 MiB in fp32)."""


def take_sample(batches: Iterator[Float[Tensor, "batch d_in"]], d_in: int) -> Float[Tensor, "rows d_in"]:
    """The first rows of the training stream in fp32: enough to place the centre, few enough to hold."""
    wanted = max(1, min(SAMPLE_ROWS, SAMPLE_NUMBERS // d_in))
    taken: list[Tensor] = []
    rows = 0
    while rows < wanted:
        taken.append(next(batches).to(torch.float32, copy=True))
        rows += len(taken[-1])
    return torch.cat(taken)[:wanted]


def centre(sample: Float[Tensor, "rows d_in"], how: str) -> Float[Tensor, "d_in"]:
    """Where ``b_dec`` starts: ``geometric_median``, ``mean`` or ``zero``."""
    if how == "geometric_median":
        return geometric_median(sample)
    return sample.mean(dim=0) if how == "mean" else torch.zeros_like(sample[0])


def geometric_median(
    points: Float[Tensor, "rows d_in"], *, tolerance: float = 1e-5, max_iterations: int = 100
) -> Float[Tensor, "d_in"]:
    """The point with the least summed distance to all rows: a centre that a few huge activations cannot move far.

    Weiszfeld's iteration from the mean, until a move is below ``tolerance`` of the mean distance.
    """
    guess = points.mean(dim=0)
    for _ in range(max_iterations):
        distances = (points - guess).norm(dim=1)
        spread = float(distances.mean())
        if spread == 0.0:
            break
        pulls = 1.0 / distances.clamp_min(1e-6 * spread)  # a row the guess has landed on must not divide by zero
        better = (pulls @ points) / pulls.sum()
        moved = float((better - guess).norm())
        guess = better
        if moved <= tolerance * spread:
            break
    return guess


def input_scale(sample: Float[Tensor, "rows d_in"], around: Float[Tensor, "d_in"]) -> float:
    """The factor after which the median squared distance to ``around`` is d_in, so one learning rate fits all models.

    The median, because in some models a few tokens have norms a thousand times the rest.
    """
    median = float((sample - around).square().sum(dim=1).median())
    if not math.isfinite(median):
        raise NumericalError("the activations to start from hold numbers that are not finite; collect them again")
    if median == 0.0:
        raise DataError(
            "the activations do not vary, so there is nothing to train on; collect them again from other text"
        )
    return math.sqrt(sample.shape[1] / median)
