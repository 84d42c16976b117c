"""The learning rate: how high, and how it rises and falls."""

import math

LONG = 32_000
"""Steps from which on the rate is that of very long trainings."""
SHORT = 500
"""Steps below which it rises no further: latents die of more."""


def default_lr(d_sae: int, steps: int) -> float:
    """Peak rate for a dictionary of this size that has so many steps.

    Of long trainings it is that of Gao et al. 2024, as EleutherAI sparsify scales it. Adam moves a weight by about the
    rate a step and in no steady direction, so how far it gets goes with the root of the steps: a short training that
    is to get as far takes a higher rate. ``tests/benchmarks/RESULTS.md`` has the sweeps this was held against.
    """
    return 2e-4 / math.sqrt(d_sae / 16_384) * max(1.0, math.sqrt(LONG / max(steps, SHORT)))


def level_until(steps: int, decay: float) -> int:
    """Steps that are taken before the rate begins to fall."""
    return steps - math.ceil(decay * steps)


def lr_at(step: int, *, steps: int, peak: float, warmup: float, decay: float) -> float:
    """Learning rate of the step with this zero-based index: up, level, down; above 0 at every step.

    Args:
        warmup: Share of the steps spent rising.
        decay: Share of the steps spent falling, at the end.
    """
    rising = (step + 1) / max(1.0, warmup * steps)
    falling = (steps - step) / max(1.0, decay * steps)
    return peak * min(1.0, rising, falling)
