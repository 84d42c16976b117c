"""How far two judges agree on the same things beyond what chance alone would have them agree."""

from collections.abc import Sequence

import numpy as np

from sae_forge.statistics.bootstrap import Bootstrap, interval
from sae_forge.statistics.estimate import Estimate


def cohen_kappa(one: Sequence[int], other: Sequence[int], clusters: Sequence[str], bootstrap: Bootstrap) -> Estimate:
    """Cohen's kappa of two judges' categories (Cohen 1960), with its interval over clusters.

    1 is full agreement, 0 what two judges agree who guess each at his own rates. Where both put everything into one
    category nothing beyond chance can be seen, and it is 0.

    Args:
        one: The number of the category that the first judge chose for each thing.
        other: The second judge's, in the same order.
    """
    first, second, each = np.asarray(one), np.asarray(other), np.ones(len(one))
    # over the same clusters the bootstrap draws alike, so kappa of the replicates is the replicate of kappa
    agreed, drawn = bootstrap.replicates(first == second, each, clusters)
    expected, by_chance = 0.0, np.zeros_like(drawn)
    for category in np.union1d(first, second):
        shares = [bootstrap.replicates(judge == category, each, clusters) for judge in (first, second)]
        expected += shares[0][0] * shares[1][0]
        by_chance += shares[0][1] * shares[1][1]
    return interval(_beyond(agreed, expected), np.array([*map(_beyond, drawn, by_chance)]))


def _beyond(agreed: float, expected: float) -> float:
    """(p_o - p_e) / (1 - p_e)."""
    return 0.0 if 1 - expected < 1e-12 else float((agreed - expected) / (1 - expected))
