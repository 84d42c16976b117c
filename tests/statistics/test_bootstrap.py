"""Intervals that resample facts: what they must be exactly, and that they cover the truth as often as they say."""

import numpy as np
import pytest

from sae_forge.errors import NumericalError
from sae_forge.statistics.bootstrap import Bootstrap
from sae_forge.statistics.estimate import Estimate

BOOTSTRAP = Bootstrap(resamples=400, seed=3)


def test_one_item_has_an_interval_of_no_width():
    assert BOOTSTRAP.mean([0.7], ["fact"]) == Estimate(0.7, 0.7, 0.7)


def test_equal_values_open_no_interval_by_rounding():
    estimate = BOOTSTRAP.mean([0.1] * 7, list("aabbccd"))
    assert estimate.low == estimate.value == estimate.high == pytest.approx(0.1)


def test_one_cluster_has_an_interval_of_no_width_however_its_items_differ():
    assert BOOTSTRAP.mean([0, 1, 1], ["fact"] * 3) == Estimate(2 / 3, 2 / 3, 2 / 3)


def test_the_order_of_items_changes_nothing():
    rng = np.random.default_rng(0)
    values, clusters = rng.random(37), [f"fact {index % 9}" for index in range(37)]
    order = rng.permutation(37)
    shuffled = BOOTSTRAP.mean(values[order], [clusters[index] for index in order])
    straight = BOOTSTRAP.mean(values, clusters)
    for name in ("value", "low", "high"):
        assert getattr(shuffled, name) == pytest.approx(getattr(straight, name), abs=1e-12)


def test_a_ratio_weighs_items_by_their_counts():
    assert BOOTSTRAP.ratio([10.0, 1.0], [100, 1], ["a", "b"]).value == pytest.approx(11 / 101)


def test_an_item_that_counts_for_nothing_is_left_out():
    assert BOOTSTRAP.ratio([3.0, 0.0], [2, 0], ["a", "b"]) == Estimate(1.5, 1.5, 1.5)


def test_a_difference_is_paired():
    """Items that differ wildly but all move by the same amount have a difference known exactly."""
    before = np.random.default_rng(1).normal(0, 100, 50)
    clusters = [str(index // 5) for index in range(50)]
    estimate = BOOTSTRAP.difference(before - 2.0, before, clusters)
    assert estimate.high - estimate.low < 1e-9
    assert estimate.value == pytest.approx(-2.0)
    assert BOOTSTRAP.mean(before, clusters).high - BOOTSTRAP.mean(before, clusters).low > 10


def test_replicates_match_a_loop_over_the_drawn_clusters():
    rng = np.random.default_rng(2)
    values, clusters = rng.random(23), [f"{index % 6}" for index in range(23)]
    _, replicates = BOOTSTRAP.replicates(values, np.ones(23), clusters)
    members = {name: [value for value, its in zip(values, clusters, strict=True) if its == name] for name in clusters}
    slow = np.random.default_rng(5)
    drawn = [np.concatenate([members[str(pick)] for pick in slow.integers(6, size=6)]).mean() for _ in range(4000)]
    assert replicates.mean() == pytest.approx(np.mean(drawn), abs=0.02)
    assert replicates.std() == pytest.approx(np.std(drawn), rel=0.15)


@pytest.mark.parametrize("share_in_cluster", [0.0, 1.0])
def test_intervals_cover_the_truth_about_as_often_as_they_say(share_in_cluster: float):
    """Paraphrases of a fact that agree perfectly, or not at all: resampling facts is right for both."""
    truth, covered, trials = 0.6, 0, 300
    rng = np.random.default_rng(7)
    clusters = [str(index // 4) for index in range(240)]
    for _ in range(trials):
        facts = np.repeat(rng.random(60) < truth, 4)
        values = np.where(rng.random(240) < share_in_cluster, facts, rng.random(240) < truth)
        estimate = Bootstrap(resamples=200).mean(values, clusters)
        covered += estimate.low <= truth <= estimate.high
    assert 0.90 <= covered / trials <= 0.985


def test_resampling_questions_instead_of_facts_would_promise_too_much():
    rng = np.random.default_rng(9)
    values = np.repeat(rng.random(40) < 0.5, 6).astype(float)
    by_fact = BOOTSTRAP.mean(values, [str(index // 6) for index in range(240)])
    by_question = BOOTSTRAP.mean(values, [str(index) for index in range(240)])
    assert by_fact.high - by_fact.low > 1.8 * (by_question.high - by_question.low)


def test_the_seed_decides_the_interval_and_nothing_else_does():
    values, clusters = list(np.random.default_rng(4).random(30)), [str(index) for index in range(30)]
    assert BOOTSTRAP.mean(values, clusters) == Bootstrap(resamples=400, seed=3).mean(values, clusters)
    assert BOOTSTRAP.mean(values, clusters) != Bootstrap(resamples=400, seed=4).mean(values, clusters)


def test_a_value_that_is_not_finite_is_refused():
    with pytest.raises(NumericalError, match="1 of 2"):
        BOOTSTRAP.mean([0.5, float("nan")], ["a", "b"])
