"""Estimates with 95 % intervals from a bootstrap that resamples whole clusters: the facts, not the questions.

Paraphrases of one fact are right or wrong together, so resampling questions would promise too much. Every
estimate over the same number of clusters is resampled alike, which is what makes differences paired.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float

from sae_forge.errors import NumericalError
from sae_forge.rng import generator
from sae_forge.statistics.estimate import Estimate

TAILS = (2.5, 97.5)
"""Percentiles of the replicates that bound a 95 % interval."""

DRAWN_AT_ONCE = 256
"""Resamples drawn in one go, so that many clusters need little memory; part of what fixes the draws."""

Values = Sequence[float] | np.ndarray


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made: how many resamples, from which seed."""

    resamples: int = 2000
    seed: int = 0

    def mean(self, values: Values, clusters: Sequence[str]) -> Estimate:
        """Mean over items, each counting once, with the interval over clusters."""
        return self.ratio(values, np.ones(len(values)), clusters)

    def ratio(self, sums: Values, counts: Values, clusters: Sequence[str]) -> Estimate:
        """Sum of ``sums`` over sum of ``counts``: a mean per token when an item brings many tokens."""
        return interval(*self.replicates(sums, counts, clusters))

    def difference(self, after: Values, before: Values, clusters: Sequence[str]) -> Estimate:
        """Mean of the paired differences ``after - before`` of the same items in the same order."""
        return self.mean(np.asarray(after, dtype=float) - np.asarray(before, dtype=float), clusters)

    def replicates(self, sums: Values, counts: Values, clusters: Sequence[str]) -> tuple[float, np.ndarray]:
        """The ratio of all items, and the ratio of each resample.

        Two calls over the same clusters resample alike, so a function of several ratios may be
        bootstrapped by applying it to their replicates.

        Raises:
            NumericalError: a value is not finite.
        """
        if odd := int((~np.isfinite(np.asarray(sums, dtype=float))).sum()):
            raise NumericalError(f"{odd} of {len(sums)} measured values are not finite")
        # totals of each cluster that counts for anything, in the order of the clusters' names
        count, member = _members(tuple(clusters))
        total = np.bincount(member, weights=np.asarray(sums, dtype=float), minlength=count)
        weight = np.bincount(member, weights=np.asarray(counts, dtype=float), minlength=count)
        total, weight = total[weight > 0], weight[weight > 0]
        if len(total) == 0:
            raise ValueError("an estimate needs at least one item that counts")
        value = float(total.sum() / weight.sum())
        if np.ptp(total / weight) == 0:  # rounding must not open an interval where nothing varies
            return value, np.full(self.resamples, value)
        # by how many clusters there are alone: estimates over the same facts are resampled alike, and so are paired
        drawn = self.draws(len(total))
        return value, (drawn @ total) / (drawn @ weight)

    def draws(self, clusters: int) -> Float[np.ndarray, "resamples clusters"]:
        """How often each resample draws each cluster; rows sum to ``clusters``."""
        return _draws(clusters, self.resamples, self.seed)


def interval(value: float, replicates: np.ndarray) -> Estimate:
    """``value`` between the 2.5th and the 97.5th percentile of its replicates."""
    low, high = np.percentile(replicates, TAILS)  # the percentile bootstrap: Efron & Tibshirani 1993, chapter 13
    return Estimate(float(value), float(low), float(high))


@lru_cache(maxsize=256)
def _members(clusters: tuple[str, ...]) -> tuple[int, np.ndarray]:
    """How many clusters there are, and which one each item is in, by their names' order."""
    names, member = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    member.setflags(write=False)
    return len(names), member


@lru_cache(maxsize=32)
def _draws(clusters: int, resamples: int, seed: int) -> Float[np.ndarray, "resamples clusters"]:
    """How often each resample draws each cluster; rows sum to ``clusters``."""
    rng = generator(seed, "bootstrap", clusters)
    # float32 holds every count up to 2**24, in half the memory: 2,000 resamples of 10,000 facts are 80 MB
    drawn = np.empty((resamples, clusters), dtype=np.float32)
    for start in range(0, resamples, DRAWN_AT_ONCE):
        rows = drawn[start : start + DRAWN_AT_ONCE]
        # a row's picks are shifted by its number, so that one bincount counts all rows
        picks = rng.integers(clusters, size=rows.shape) + clusters * np.arange(len(rows))[:, None]
        rows[:] = np.bincount(picks.ravel(), minlength=rows.size).reshape(rows.shape)
    drawn.setflags(write=False)
    return drawn
