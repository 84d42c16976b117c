"""Counts of yes and no, against their formulas."""

from math import comb, sqrt

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_forge.statistics.proportions import mcnemar, unanimous, wilson

Z = 1.959963984540054


@given(st.integers(1, 60).flatmap(lambda trials: st.tuples(st.integers(0, trials), st.just(trials))))
def test_wilson_is_the_published_formula_and_stays_within_the_possible(counts: tuple[int, int]):
    successes, trials = counts
    share = successes / trials
    middle = (share + Z**2 / (2 * trials)) / (1 + Z**2 / trials)
    half = Z / (1 + Z**2 / trials) * sqrt(share * (1 - share) / trials + Z**2 / (4 * trials**2))
    found = wilson(successes, trials)
    assert (found.value, found.low, found.high) == pytest.approx((share, middle - half, middle + half), abs=1e-9)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.low < found.high


@settings(deadline=None)  # the first call imports scipy
@given(st.integers(0, 20), st.integers(0, 20))
def test_mcnemar_counts_the_coin_tosses_that_are_as_lopsided(only_before: int, only_after: int):
    n = only_before + only_after
    tail = sum(comb(n, count) for count in range(min(only_before, only_after) + 1)) / 2**n
    assert mcnemar(only_before, only_after) == pytest.approx(min(1.0, 2 * tail))


def test_no_item_that_differs_is_no_evidence():
    assert mcnemar(0, 0) == 1.0


def test_trials_that_all_went_one_way_leave_room_for_another():
    for successes in (0, 20):
        alike, counted = unanimous(successes / 20, 20), wilson(successes, 20)
        assert (alike.low, alike.high) == pytest.approx((counted.low, counted.high), abs=1e-12)
    none = unanimous(0.0, 20, paired=True)
    assert (none.low, none.high) == (-wilson(0, 20).high, wilson(0, 20).high)
    fell = unanimous(-1.0, 20, paired=True)
    assert (fell.low, fell.high) == (-1.0, -1 + wilson(0, 20).high)
