"""Plain numbers about answers among given options, each beside what guessing gives."""

from collections import Counter
from collections.abc import Sequence
from string import ascii_uppercase

from sae_forge.statistics.estimate import Estimate

LETTERS = ascii_uppercase
"""What options are called, in their order."""
CHANCE = 0.25
"""Where guessing among four options lies."""
RETENTION_FLOOR = 1e-8
"""Least accuracy above chance, so that a base model that guesses divides by something."""


def chance_distance(accuracy: Estimate, chance: float = CHANCE) -> Estimate:
    """How far an accuracy is from guessing, on either side: knowledge turned round is not knowledge gone."""
    # the distance folds the interval at chance: 0 where it spans it
    ends = abs(accuracy.low - chance), abs(accuracy.high - chance)
    nearest = 0.0 if accuracy.low <= chance <= accuracy.high else min(ends)
    return Estimate(abs(accuracy.value - chance), nearest, max(ends))


def letter_shares(chosen: Sequence[int], letters: str = LETTERS[:4]) -> dict[str, float]:
    """Share of the answers that fell on each letter; one letter far ahead is a bias, not an opinion."""
    counts = Counter(chosen)
    return {letter: counts[index] / len(chosen) for index, letter in enumerate(letters)}


def retention(accuracy: float, base: float, chance: float = CHANCE) -> float:
    """Share of the base model's accuracy above chance that is left, in [0, 1] (arXiv 2503.11127)."""
    return min(1.0, max(RETENTION_FLOOR, accuracy - chance) / max(RETENTION_FLOOR, base - chance))


def alignment(
    retain: float,
    retain_base: float,
    forget: float,
    forget_base: float,
    *,
    retain_chance: float = CHANCE,
    forget_chance: float = CHANCE,
) -> float:
    """Retention of what should stay times loss of what should go, in [0, 1], higher is better (arXiv 2503.11127)."""
    return retention(retain, retain_base, retain_chance) * (1 - retention(forget, forget_base, forget_chance))
