"""Counts of yes and no: an interval that holds at 0 and at 1, and whether two models answer the same items alike."""

from math import sqrt

from sae_forge.statistics.estimate import Estimate

_Z = 1.959963984540054
"""Standard deviations on either side of which a normal distribution has 2.5 %."""


def wilson(successes: int, trials: int) -> Estimate:
    """A share with its 95 % Wilson interval, which neither leaves [0, 1] nor closes where every trial went one way.

    Trials must be independent of one another; shares of clustered items take :class:`bootstrap.Bootstrap`.
    """
    # (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n): Wilson 1927. SciPy works out an exact test with it, which
    # takes a hundred times as long; written as SciPy writes it, it is the same to the last bit but one
    failures, twice = trials - successes, 2 * (trials + _Z**2)
    middle = (2 * successes + _Z**2) / twice
    reach = _Z / twice * sqrt(4 * successes * failures / trials + _Z**2)
    low, high = 0.0 if successes == 0 else middle - reach, 1.0 if failures == 0 else middle + reach
    return Estimate(successes / trials, low, high)


def unanimous(value: float, trials: int, *, paired: bool = False) -> Estimate:
    """A share, or with ``paired`` a change of one, of trials that all went one way, with Wilson's room for another.

    Resampling them would give an interval of no width, as if ten trials said as much as ten thousand.
    """
    # 0 of n and n of n have the same room, on either side
    room, least = wilson(0, trials).high, -1.0 if paired else 0.0
    return Estimate(value, max(least, value - room), min(1.0, value + room))


def mcnemar(only_before: int, only_after: int) -> float:
    """The exact two-sided p-value that two models are right equally often, from the items that only one gets right.

    Items that both or neither get right say nothing of a change; without any other there is no evidence, so p is 1.
    """
    from scipy.stats import binomtest

    # under the null hypothesis either of the two is right in a discordant pair with probability 1/2
    discordant = only_before + only_after
    return 1.0 if discordant == 0 else float(binomtest(only_before, discordant, 0.5).pvalue)
