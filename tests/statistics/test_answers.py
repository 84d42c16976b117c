"""Numbers about answers: what the papers print, and chance on either side of them."""

import pytest

from sae_forge.statistics.answers import alignment, chance_distance, letter_shares, retention
from sae_forge.statistics.estimate import Estimate


def test_chance_distance_counts_both_sides():
    below, around = chance_distance(Estimate(0.01, 0.0, 0.04)), chance_distance(Estimate(0.3, 0.2, 0.4))
    assert (below.value, below.low, below.high) == pytest.approx((0.24, 0.21, 0.25))
    assert (around.value, around.low, around.high) == pytest.approx((0.05, 0.0, 0.15))


def test_alignment_is_the_published_one():
    """The headline of conditional clamping: R_good 0.880 and WMDP 0.5860 to 0.2718 make 0.8226."""
    assert retention(0.2718, 0.5860) == pytest.approx(1 - 0.935, abs=1e-3)
    assert alignment(0.25 + 0.880 * 0.3238, 0.5738, 0.2718, 0.5860) == pytest.approx(0.8226, abs=1e-3)
    assert retention(0.9, 0.5) == 1.0
    assert retention(0.1, 0.5) == pytest.approx(0.0, abs=1e-6)


def test_letter_shares_count_letters_nobody_chose():
    assert letter_shares([0, 0, 3, 0]) == {"A": 0.75, "B": 0.0, "C": 0.0, "D": 0.25}
    assert letter_shares([0, 1, 1, 1], "AB") == {"A": 0.25, "B": 0.75}


def test_chance_is_what_is_said_it_is():
    """Two options on the side to forget and five on the side to keep, each measured from its own guessing."""
    assert chance_distance(Estimate(0.5, 0.375, 0.5625), 0.5) == Estimate(0.0, 0.0, 0.125)
    assert retention(0.75, 1.0, 0.5) == 0.5
    assert alignment(0.6, 1.0, 0.5, 1.0, retain_chance=0.2, forget_chance=0.5) == pytest.approx(0.5, abs=1e-6)
