"""Statistics of order, against SciPy and against their definitions, to the last digit where a report holds them."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sae_forge.statistics.bootstrap import Bootstrap
from sae_forge.statistics.ranking import auroc, auroc_estimate, kolmogorov_smirnov, spearman


@given(seed=st.integers(0, 999), sizes=st.tuples(st.integers(1, 40), st.integers(1, 40)))
@settings(max_examples=40, deadline=None)
def test_auroc_is_the_share_of_pairs_in_order_ties_counting_half(seed: int, sizes: tuple[int, int]):
    drawn = np.random.default_rng(seed)
    positive, negative = (drawn.integers(0, 6, size).astype(np.float32) for size in sizes)
    won = sum(1.0 if p > n else 0.5 if p == n else 0.0 for p in positive for n in negative)
    assert auroc(positive, negative) == won / (sizes[0] * sizes[1])
    assert auroc(positive, negative) == stats.mannwhitneyu(positive, negative).statistic / (sizes[0] * sizes[1])


def test_auroc_of_nothing_but_silence_is_a_half():
    assert auroc(np.zeros(7), np.zeros(3)) == 0.5
    assert auroc([1.0], np.zeros(3)) == 1.0


def test_an_auroc_resamples_either_side_apart():
    drawn = np.random.default_rng(4)
    positive, negative = drawn.normal(0.5, size=7), drawn.normal(size=5)
    found = auroc_estimate(positive, negative, Bootstrap(300, 2))
    times = Bootstrap(300, 2).draws(7).astype(int), Bootstrap(300, 3).draws(5).astype(int)
    written = [auroc(np.repeat(positive, mine), np.repeat(negative, its)) for mine, its in zip(*times, strict=True)]
    assert found.value == auroc(positive, negative)
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(written, (2.5, 97.5))), abs=1e-6)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=3, max_size=9))
def test_spearman_is_pearson_of_mean_ranks_to_the_last_digit(pairs: list[tuple[int, int]]):
    """Of the ranks from 0 on that earlier reports were made with; SciPy counts them from 1."""
    x, y = (np.array(side, dtype=float) for side in zip(*pairs, strict=True))
    ranks = []
    for side in (x, y):
        below, equal = (side[None] < side[:, None]).sum(1), (side[None] == side[:, None]).sum(1)
        ranks.append(below + (equal - 1) / 2)
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert spearman(x, y) is None
    else:
        assert spearman(x, y) == np.corrcoef(*ranks)[0, 1]
        assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)


def test_the_largest_gap_between_two_samples():
    found = kolmogorov_smirnov([1.0, 2.0, 3.0, 4.0], [3.5, 4.5, 5.5, 6.5])
    assert found.distance == 0.75, "below 3.5 lie three of four and none of four"
    assert found.p_value == pytest.approx(16 / 70), "of the 70 orders of four and four, 16 leave a gap of 3/4 or more"
    assert kolmogorov_smirnov([1.0, 2.0], [1.0, 2.0]).p_value == 1.0


def test_statistics_need_neither_torch_nor_scipy_before_they_are_asked():
    names = "estimate, answers, bootstrap, ranking, proportions"
    code = f"import sys; from sae_forge.statistics import {names}; print({{'torch', 'scipy'}} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
