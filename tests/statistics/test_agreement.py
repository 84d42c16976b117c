"""Cohen's kappa against its own example and against what is known without counting."""

import random

import pytest

from sae_forge.statistics.agreement import cohen_kappa
from sae_forge.statistics.bootstrap import Bootstrap

FEW = Bootstrap(resamples=400)


def kappa(one: list[int], other: list[int]):
    return cohen_kappa(one, other, [str(n) for n in range(len(one))], FEW)


def test_it_is_what_a_table_of_fifty_gives():
    """20 of 50 both say yes, 15 both no, 5 and 10 differ: p_o 0.7, p_e 0.5 x 0.6 + 0.5 x 0.4 = 0.5, so 0.4."""
    one, other = [1] * 20 + [1] * 5 + [0] * 10 + [0] * 15, [1] * 20 + [0] * 5 + [1] * 10 + [0] * 15
    found = kappa(one, other)
    assert found.value == pytest.approx(0.4)
    assert found.low < 0.4 < found.high
    assert 0.4 < found.high - found.low < 0.6, "Cohen's own standard error is 0.127, so about 0.50 wide"


@pytest.mark.interop
@pytest.mark.slow
def test_it_is_that_of_scikit_learn():
    """``make interop`` installs it."""
    cohen_kappa_score = pytest.importorskip("sklearn.metrics").cohen_kappa_score
    draw = random.Random(0)
    for _ in range(20):
        one = [draw.randrange(4) for _ in range(40)]
        other = [said if draw.random() < 0.6 else draw.randrange(4) for said in one]
        assert kappa(one, other).value == pytest.approx(cohen_kappa_score(one, other), abs=1e-12)


def test_full_agreement_is_one_and_two_that_say_one_thing_agree_by_nothing_but_chance():
    assert kappa([0, 1, 2, 3] * 5, [0, 1, 2, 3] * 5).value == 1
    same = kappa([2] * 9, [2] * 9)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    assert kappa([0, 1] * 10, [1, 0] * 10).value == pytest.approx(-1)
