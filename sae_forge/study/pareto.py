"""Which settings of a method are worth having: the trade-off of forgetting against utility, as pure functions.

A point is a pair of accuracies; forgetting is better the lower, utility the higher. Definitions of the single numbers
that papers quote: SAEBench's unlearning score, the best accuracy at a utility floor, hypervolume.
"""

from collections.abc import Sequence

from sae_forge.config.evaluate import SweepRule
from sae_forge.results.report import Point
from sae_forge.statistics.answers import CHANCE

UTILITY_SHARE = 0.99
"""Of the base model's utility that must be left (SAEBench, DSG)."""
UTILITY_POINT = 0.01
"""Accuracy that may be lost, as the other floor."""


def dominates(one: Point, other: Point) -> bool:
    """Whether a point is at least as good as another in both, and better in one."""
    no_worse = one.forget <= other.forget and one.utility >= other.utility
    return no_worse and (one.forget < other.forget or one.utility > other.utility)


def front(points: Sequence[Point]) -> list[Point]:
    """The points that no other dominates, by falling utility; of equal ones the first."""
    kept = [one for one in points if not any(dominates(other, one) for other in points)]
    # reversed, so that of equal points the first stays
    unique = {(one.forget, one.utility): one for one in reversed(kept)}
    return sorted(unique.values(), key=lambda one: (-one.utility, one.forget))


def best_at(points: Sequence[Point], floor: float, neighbour_floor: float = 0.0) -> Point | None:
    """The lowest forget accuracy among points of at least these accuracies elsewhere, if any has them."""
    kept = (one for one in points if one.utility >= floor and (one.neighbour or 0.0) >= neighbour_floor)
    return min(kept, key=lambda one: one.forget, default=None)


def hypervolume(points: Sequence[Point], base_forget: float, chance: float = CHANCE) -> float:
    """Area that the points dominate between the reference (forget ``base_forget``, utility at chance) and perfection.

    In accuracy squared; 0 when nothing was forgotten above chance utility.
    """
    area, reached = 0.0, base_forget
    # by falling utility: each point adds the strip between the forget accuracy reached so far and its own
    for one in front([one for one in points if one.utility > chance and one.forget < base_forget]):
        area += (reached - one.forget) * (one.utility - chance)
        reached = one.forget
    return area


def choose(
    points: Sequence[Point], base_utility: float, chance: float = CHANCE, rule: SweepRule = "utility_99"
) -> tuple[Point, str]:
    """The point to report, and the rule that chose it.

    ``utility_99``: at least 99 % of the base model's utility if any point has that, else at most one point lost.
    ``spared``: as :func:`spares` has it. Of what a rule allows the lowest forget accuracy wins, where everything below
    chance counts as chance: knowledge turned round is not knowledge gone. Ties go to the better neighbours, then to
    utility, then to the first. Where nothing is allowed, the best alignment.
    """
    allowed = {name: [one for one in points if one.utility >= floor] for name, floor in floors(base_utility).items()}
    if rule == "spared":
        allowed = {"spared": [one for one in points if spares(one)]}
    for name, eligible in allowed.items():
        if eligible:
            return min(eligible, key=lambda one: (max(one.forget, chance), -(one.neighbour or 0.0), -one.utility)), name
    return max(points, key=lambda one: one.alignment), "alignment"


def spares(point: Point) -> bool:
    """Whether nothing that should stay is shown to be lost: retained knowledge and neighbours each within a point of
    the model as it is, or with an interval of the change that reaches zero.

    A share of few questions allows none to be lost, and so chooses edits that do nothing; this allows what chance
    would, which is less the more is asked.
    """
    kept = [change for role, change in point.changes.items() if role != "forget"]
    return all(change.high >= 0 or change.value >= -UTILITY_POINT for change in kept)


def floors(base_utility: float) -> dict[str, float]:
    """Least utility under each rule, by its name in reports."""
    return {"utility_99": UTILITY_SHARE * base_utility, "utility_1pt": base_utility - UTILITY_POINT}
