"""What is estimated over several domains, or over items of which some have no value."""

import numpy as np
import pytest
from reports import estimate, filled

from sae_forge.results.claims import claims
from sae_forge.results.measure import Measure
from sae_forge.results.report import SHIFT_RATIO
from sae_forge.statistics.bootstrap import Bootstrap
from sae_forge.study.controls import _beyond
from sae_forge.study.estimates import Pool, change, differences, shift_ratios
from sae_forge.study.measure import Answers, Measurement, Touched
from sae_forge.tasks.completions import Completions
from sae_forge.tasks.item import Item
from sae_forge.tasks.task import Asked

FEW = Bootstrap(resamples=500)
TOKENS = 4


def completed(shifts: dict[str, tuple[str, list[float]]], moved: float) -> Measurement:
    """Answers to prompts of each domain, whose log-probs a token are -2 and, moved, what its shifts add."""
    answers = []
    for domain, (role, each) in shifts.items():
        ids = tuple(f"{domain}{n}" for n in range(len(each)))
        asked = Asked(task=Completions(), domain=domain, role=role, kind="prompt", ids=ids, facts=ids, units=len(ids))
        logprobs = [TOKENS * (-2.0 + moved * one) for one in each]
        items = [asked.answered(n, {"logprob": value}, {"tokens": TOKENS}) for n, value in enumerate(logprobs)]
        answers.append(Answers(asked, tuple(items), Touched(0, 0, 0)))
    return tuple(answers)


def around(mean: float, reach: float, count: int = 24) -> list[float]:
    return list(mean + reach * np.linspace(-1, 1, count))


SHIFTS = {
    "wizards": ("forget", around(-0.812, 0.3)),
    "magic": ("neighbour", around(-0.099, 0.08)),
    "real_world": ("retain", around(-0.027, 0.01)),
    "unmoved": ("retain", around(0.0, 0.3)),
}


def test_shifts_are_set_against_the_forget_shift_where_they_are_told_apart_from_none() -> None:
    now, before = completed(SHIFTS, 1.0), completed(SHIFTS, 0.0)
    found = shift_ratios(now, before, FEW)
    assert set(found) == {"magic", "real_world"}, "8 and 30 times; what has no shift of its own has no ratio"
    assert found["magic"].value == pytest.approx(0.812 / 0.099)
    assert found["real_world"].value == pytest.approx(0.812 / 0.027)
    assert found["magic"].low < 8.2 < found["magic"].high
    assert found["magic"].low > 5 and found["magic"].high < 16
    told = change(now, before, {}, FEW)
    assert SHIFT_RATIO in told.domains["magic"].estimates
    assert SHIFT_RATIO not in told.domains["wizards"].estimates
    assert shift_ratios(now[1:], before[1:], FEW) == {}, "without a forget domain there is nothing to compare"


def test_the_ratios_are_a_sentence_of_the_report() -> None:
    cells = {
        "wizards": {"logprob": estimate(-0.8)},
        "magic": {"logprob": estimate(-0.1), SHIFT_RATIO: estimate(8.2, 2)},
    }
    row = {"name": "scale", "domains": cells, "roles": {"forget": {"logprob": estimate(-2.8)}}}
    row |= {"change": {"domains": cells, "roles": {"forget": {"logprob": estimate(-0.8)}}}}
    base = {"name": "baseline", "kind": "baseline", "domains": cells, "roles": {"forget": {"logprob": estimate(-2.0)}}}
    domains = {"wizards": {"role": "forget", "items": 3}, "magic": {"role": "neighbour", "items": 3}}
    said = "\n".join(claims(filled({"methods": [base, row], "domains": domains})))
    assert "The log-prob shift on what is forgotten is 8.2 [6.2, 10.2] times that on magic." in said


def test_what_has_no_value_on_one_side_is_in_no_difference() -> None:
    measure = Measure(name="judged", words="judged")

    def pool(*values: float | None) -> Pool:
        told = [{} if value is None else {"judged": value} for value in values]
        return Pool(measure, tuple(
            Item(task="judge", domain="d", role="", id=str(n), fact=str(n), values=one) for n, one in enumerate(told)
        ))  # fmt: skip

    now, before = {"judged": pool(1.0, None, 1.0, 0.5)}, {"judged": pool(0.0, 1.0, None, 0.5)}
    assert differences(now, before, FEW)["judged"].value == pytest.approx(0.5), "of the first and the last"
    assert differences(now, {}, FEW) == {}
    assert differences({"judged": pool(None, 1.0)}, {"judged": pool(1.0, None)}, FEW) == {}
    beyond = _beyond(now, [before, {"judged": pool(0.5, 0.5, 0.5, None)}], FEW)
    assert beyond["judged"].value == pytest.approx(1.0 - 0.25), "only the first has a value under both controls"
