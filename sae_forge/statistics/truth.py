"""How well a model tells a right answer from wrong ones: TOFU (arXiv 2401.06121) as open-unlearning computes it."""

import math
from collections.abc import Sequence

TINY = 1e-10
"""What open-unlearning adds to a divisor."""


def truth_ratio(right: float, wrong: Sequence[float]) -> float:
    """How much likelier the wrong answers are than the right one; 1 where a model cannot tell them apart.

    Args:
        right: Mean loss of the right answer, in nats per token, its closing EOS counted.
        wrong: The same of each wrong answer; what is compared is the geometric mean of their probabilities.
    """
    # a mean loss is the negative log of a geometric mean: exp of the mean of the wrong ones' is that of all of them
    return math.exp(-sum(wrong) / len(wrong)) / (math.exp(-right) + TINY)


def truth_ratio_of_means(right: float, wrong: Sequence[float]) -> float:
    """The truth ratio as the paper's equation 1 has it: the arithmetic mean of the wrong answers' probabilities."""
    return sum(map(math.exp, (-loss for loss in wrong))) / len(wrong) / (math.exp(-right) + TINY)


def told_apart(ratio: float) -> float:
    """A truth ratio of what is kept, from 0 to 1: how far the right answer is ahead."""
    return max(0.0, 1 - ratio)


def not_told_apart(ratio: float) -> float:
    """A truth ratio of what is forgotten, from 0 to 1, where neither side is ahead."""
    return min(ratio, 1 / (ratio + TINY))


def harmonic_mean(values: Sequence[float]) -> float:
    """0 where any of them is 0."""
    return len(values) / sum(1 / value for value in values) if all(value > 0 for value in values) else 0.0
