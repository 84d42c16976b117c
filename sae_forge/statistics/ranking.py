"""Statistics of order alone, of two samples or of pairs: any rising function of the values leaves them as they are.

SciPy is loaded where it is used: it takes longer than all else a report needs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sae_forge.statistics.bootstrap import Bootstrap, interval
from sae_forge.statistics.estimate import Estimate

Values = Sequence[float] | np.ndarray


def auroc(positive: Values, negative: Values) -> float:
    """Chance that a positive exceeds a negative, a tie counting half; exact in the number of pairs.

    Costs a sort of either side, and 16 bytes a positive; SciPy's U, which is this times the number of pairs, ranks
    both sides together and adds a p-value that tokens of one text would make too small.
    """
    ordered, wanted = np.sort(negative), np.sort(positive)
    # ties count half: (#negatives below + #negatives below or equal) / 2
    below = np.searchsorted(ordered, wanted, side="left")
    reached = np.searchsorted(ordered, wanted, side="right")
    return int((below + reached).sum()) / (2 * len(wanted) * len(ordered))


def auroc_estimate(positive: Values, negative: Values, bootstrap: Bootstrap) -> Estimate:
    """The AUROC of two samples with its interval, either side resampled apart from the other."""
    one, other = np.asarray(positive, dtype=float), np.asarray(negative, dtype=float)
    # [positives, negatives]: 1 where the positive is higher, 1/2 at a tie
    above = (np.sign(one[:, None] - other) + 1) / 2
    drawn = bootstrap.draws(len(one)), replace(bootstrap, seed=bootstrap.seed + 1).draws(len(other))
    # r resamples, h positives, f negatives; each row of draws sums to the size of its sample
    replicates = np.einsum("rh,hf,rf->r", drawn[0], above, drawn[1], optimize=True) / above.size
    return interval(auroc(one, other), replicates)


def spearman(x: Values, y: Values) -> float | None:
    """Rank correlation, equal values sharing their mean rank; None where one side does not vary."""
    from scipy.stats import rankdata

    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(np.corrcoef(rankdata(x), rankdata(y))[0, 1])  # spearmanr lays them out otherwise and rounds otherwise


@dataclass(frozen=True)
class KolmogorovSmirnov:
    """Whether two samples come from one distribution."""

    distance: float
    """Largest gap between the shares of either sample that lie below a value, in [0, 1]."""
    p_value: float
    """Chance of a gap as large between two samples of one distribution; TOFU calls it forget quality."""


def kolmogorov_smirnov(one: Values, other: Values) -> KolmogorovSmirnov:
    """The two-sided test of two samples, exact where they are small."""
    from scipy.stats import ks_2samp

    # its own choice: exact while the larger sample has 10,000 values or fewer, else the limit law
    distance, p_value = ks_2samp(one, other)
    return KolmogorovSmirnov(float(distance), float(p_value))  # pyright: ignore[reportArgumentType]
