"""Randomness that is a function of seed, purpose and index: the same everywhere, and apart for any other three."""

from itertools import product

import numpy as np

from sae_forge.rng import generator, torch_seed

THREES = list(product((0, 1, 2**40), ("row order", "bootstrap"), (0, 1, 2**40)))


def test_the_same_three_give_the_same_numbers_on_any_machine():
    assert generator(3, "row order", 5).integers(1000, size=4).tolist() == [547, 87, 577, 343]
    assert torch_seed(3, "row order", 5) == 805764015121245828


def test_any_other_three_give_others():
    drawn = {generator(*three).bytes(16) for three in THREES}
    assert len(drawn) == len(THREES)
    assert len({torch_seed(*three) for three in THREES}) == len(THREES)


def test_streams_of_one_seed_are_independent_of_one_another():
    rows = np.array([generator(0, "bootstrap", index).standard_normal(4000) for index in range(8)])
    correlations = np.corrcoef(rows) - np.eye(8)
    assert np.abs(correlations).max() < 5 / np.sqrt(4000)


def test_a_seed_is_one_that_torch_takes():
    assert all(0 <= torch_seed(*three) < 2**63 for three in THREES)
