"""Attribution by hand, and the tests of a latent by a made-up model: the method knows no other."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from sae_forge.errors import DataError
from sae_forge.features.methods import attribution
from sae_forge.features.methods.attribution import Candidate, attributions, find, put_forward, try_each
from sae_forge.progress import SILENT
from sae_forge.sae.topk import TopKSAE


class Parrot:
    """Two questions. Latent 0 turns the first, 1 turns both and breaks five, 2 turns none; loss as it is told."""

    def __init__(self, costs: dict[int, float] | None = None) -> None:
        self.questions = 2
        self.settings = {"scoring": "letter"}
        self.turns = {0: {0}, 1: {0, 1}, 3: {1}}
        self.latent: int | None = None
        self.value = 0.0
        self.costs = costs or {}

    def gradients(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        yield 0, torch.tensor([[3.0, 2.0, 1.0, 0.0]]), torch.ones(1, 4)
        yield 1, torch.tensor([[0.0, 5.0, 0.5, 0.25]]), torch.ones(1, 4)

    def clamped(self, latent: int, value: float) -> AbstractContextManager[None]:
        @contextmanager
        def clamp() -> Iterator[None]:
            self.latent, self.value = latent, value
            yield
            self.latent = None

        return clamp()

    def turned(self, number: int) -> bool:
        return number in self.turns.get(self.latent, set()) if self.latent in self.turns else bool(self.costs)

    def broken(self) -> int:
        return 5 if self.latent == 1 and not self.costs else 0

    def loss(self) -> float:
        return 2.0 if self.latent is None else 2.0 + self.costs.get(self.latent, 0.1)


def flags(**changes: Any) -> SimpleNamespace:
    given = {"attribution_sign": "+", "attribution_candidates": 4, "attribution_clamp": -9.0}
    return SimpleNamespace(**given | {"attribution_max_broken": 3, "num_features": (1, 2)} | changes)


def plain_sae(width: int) -> TopKSAE:
    """Latent j answers exactly x[j]."""
    eye = torch.eye(width)
    return TopKSAE.from_weights(eye, torch.zeros(width), eye, torch.zeros(width), k=width)


def test_attributions_by_hand() -> None:
    """Act times gradient at each place, the best place counting; silent latents argue for nothing."""
    x = torch.tensor([[1.0, 2.0, -3.0, 0.5], [4.0, 0.0, 1.0, 0.0]])
    g = torch.tensor([[2.0, -1.0, 9.0, 1.0], [-1.0, 5.0, 0.5, 7.0]])
    assert attributions(plain_sae(4), x, g, "+").tolist() == [2.0, 0.0, 0.5, 0.5]
    assert attributions(plain_sae(4), x, g, "-").tolist() == [4.0, 2.0, 0.0, 0.0]
    assert attributions(plain_sae(4), x, g, "abs").tolist() == [4.0, 2.0, 0.5, 0.5]


def test_a_place_puts_forward_only_its_highest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attribution, "PER_POSITION", 1)
    x, g = torch.tensor([[1.0, 2.0, 3.0], [3.0, 1.0, 0.0]]), torch.ones(2, 3)
    assert attributions(plain_sae(3), x, g, "+").tolist() == [3.0, 0.0, 3.0]


def test_a_question_puts_forward_its_highest_and_no_silent_latent() -> None:
    """Latents are ordered by the highest attribution that any question gave them."""
    asked = {
        latent: (one.attribution, one.asked)
        for latent, one in put_forward(Parrot(), plain_sae(4), flags(), SILENT).items()
    }
    assert list(asked.items()) == [(1, (5.0, [0, 1])), (0, (3.0, [0])), (2, (1.0, [0, 1])), (3, (0.25, [1]))]
    best = put_forward(Parrot(), plain_sae(4), flags(attribution_candidates=1), SILENT)
    assert {latent: one.asked for latent, one in best.items()} == {1: [1], 0: [0]}


def test_a_latent_stays_that_turns_an_answer_and_breaks_few_others() -> None:
    ask = Parrot()
    found = find(ask, plain_sae(4), flags(), SILENT)
    assert found.scores == {0: 3.0, 3: 0.25}
    assert found.removed == {"not_put_forward": 0, "turns_no_answer": 1, "attribution_max_broken": 1, "loss_added": 0}
    assert ask.value == -9.0
    assert found.settings["scoring"] == "letter"
    assert found.settings["num_features"] == 2
    assert {name for name in found.settings if name.startswith("attribution_")} == {
        "attribution_sign", "attribution_candidates", "attribution_clamp", "attribution_max_broken",
    }  # fmt: skip
    harsh = find(ask, plain_sae(4), flags(attribution_max_broken=5), SILENT)
    assert list(harsh.scores) == [0, 1, 3]


def test_no_latent_that_passes_says_which_test_removed_them() -> None:
    with pytest.raises(
        DataError, match=r"no latent of 4 passes .*turns_no_answer removed 1, attribution_max_broken removed 3"
    ):
        find(Parrot(), plain_sae(4), flags(attribution_max_broken=-1), SILENT)


def test_the_latents_that_add_most_loss_are_dropped() -> None:
    """Of 40 that pass, two; the rest by rising loss."""
    added = torch.randperm(40).tolist()
    nominated = {latent: Candidate(1.0, [latent in (3,)]) for latent in range(40)}
    ask = Parrot({latent: float(added[latent]) for latent in range(40)})
    left, removed = try_each(ask, nominated, 60, flags(), SILENT)
    assert left == [added.index(value) for value in range(38)]
    assert removed["loss_added"] == 2
    assert sum(removed.values()) + len(left) == 60
