"""Plain numbers about answers among given options, each beside what guessing gives."""

from collections import Counter
from collections.abc import Sequence

from sae_forge.statistics.estimate import Estimate

LETTERS = "ABCD"
"""What four options are called."""
CHANCE = 1 / len(LETTERS)
"""Where guessing among them lies."""
RETENTION_FLOOR = 1e-8
"""Least accuracy above chance, so that a base model that guesses divides by something."""


def chance_distance(accuracy: Estimate, chance: float = CHANCE) -> Estimate:
    """How far an accuracy is from guessing, on either side: knowledge turned round is not knowledge gone."""
    ends = abs(accuracy.low - chance), abs(accuracy.high - chance)
    nearest = 0.0 if accuracy.low <= chance <= accuracy.high else min(ends)
    return Estimate(abs(accuracy.value - chance), nearest, max(ends))


def letter_shares(chosen: Sequence[int], letters: str = LETTERS) -> dict[str, float]:
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


def privleak(auroc: float, reference: float) -> float:
    """How far, in percent, an AUROC is above that of a model retrained without the text (MUSE, arXiv 2407.06460).

    Args:
        auroc: Chance that a text the model never saw looks likelier to it than a text it is to forget.

    Returns:
        0 where forget text looks as it does to the retrained model. Negative where it looks too familiar, -100 at
        most, as to a model that still knows it; positive where it looks odder than text never seen.
    """
    return 100 * (auroc - reference) / reference
