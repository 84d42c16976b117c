"""The verdict says yes only where no interval leaves another reading, and no where something was measured."""

from typing import Any

import pytest
from reports import filled

from sae_forge.results.report import load_report
from sae_forge.results.verdict import QUESTIONS, unproven, unseen, verdict_sheet, verdicts

CHANCE = 0.25
SETTINGS = {"num_features": 100, "scale": -3.0}


def near(value: float, reach: float = 0.03) -> dict[str, float]:
    return {"value": value, "low": value - reach, "high": value + reach}


def row(name: str, forget: float, retain: float = 0.98, *, loss: float = 1.0, reach: float = 0.03, **more: Any):
    """A row of a report of 0.1: accuracies of two roles and the loss on retain text, with changes to 0.95, 0.98, 1."""
    roles = {role: {"accuracy": near(value, reach)} for role, value in (("forget", forget), ("retain", retain))}
    changes = {
        "roles": {
            "forget": {"accuracy": near(forget - 0.95, reach)}, "retain": {"accuracy": near(retain - 0.98, reach)},
        },
        "loss": {"retain": near(loss - 1.0, 0.005)},
    }  # fmt: skip
    kind = "weights" if name.startswith("rmu") else "hook"
    made = {"name": name, "kind": kind, "roles": roles, "loss": {"retain": near(loss, 0.01)}, "change": changes}
    return made | {"settings": SETTINGS} | more


def control(forget: float, seed: int = 0, **more: Any):
    return row("random", forget, settings={"of": "scale", **SETTINGS, "kind": "isotropic"}, seed=seed, **more)


def summary(minus: dict[str, float]) -> dict[str, Any]:
    settings = {"of": "scale", **SETTINGS, "kind": "isotropic"}
    return {"settings": settings, "seeds": [0], "edit_minus_control": {"forget": {"accuracy": minus}}}


def report(*rows: dict[str, Any], controls: tuple[dict[str, Any], ...] = ()):
    base = row("baseline", 0.95, kind="baseline", settings={}) | {"change": None}
    del base["change"]
    base["domains"] = {"wizards": base["roles"]["forget"]}
    return filled({"methods": [base, *rows], "controls": list(controls)})


def marks(*rows: dict[str, Any], **more: Any) -> list[str]:
    (one,) = verdicts(report(*rows, **more))
    return [answer.mark for answer in one.answers]


def test_all_is_well_only_at_guessing_beyond_every_control():
    assert marks(row("scale", CHANCE), control(0.9)) == ["yes", "yes", "yes", "not measured"]


@pytest.mark.parametrize(
    ("forget", "reach", "mark"),
    [
        (CHANCE, 0.03, "yes"),
        (0.5, 0.03, "partly"),  # it is still known better than by guessing
        (0.1, 0.03, "partly"),  # turned round
        (0.95, 0.03, "no"),
        (0.93, 0.03, "no"),  # within the interval of the change
        (0.99, 0.03, "no"),
    ],
)
def test_forgotten_is_to_guessing(forget: float, reach: float, mark: str):
    assert marks(row("scale", forget, reach=reach), control(0.99, reach=0.001))[0] == mark


def test_where_a_controls_interval_overlaps_nothing_is_a_yes():
    """Though the paired difference is clear: the issue is what a reader of the table sees."""
    edit, beside = row("scale", CHANCE), control(0.29)
    paired = {"value": -0.04, "low": -0.06, "high": -0.02}
    assert marks(edit, beside, controls=(summary(paired),)) == ["unclear", "yes", "partly", "not measured"]
    paired = {"value": -0.04, "low": -0.09, "high": 0.01}
    assert marks(edit, beside, controls=(summary(paired),))[2] == "no"
    assert marks(edit, control(0.9, 0), control(0.29, 1))[2] == "no", "one seed is enough"


@pytest.mark.parametrize(
    ("retain", "loss", "reach", "mark"),
    [
        (0.98, 1.0, 0.03, "yes"),
        (0.975, 1.0, 0.03, "yes"),  # half a point, and no more than chance
        (0.98, 1.008, 0.03, "yes"),  # a rise that is measured and small
        (0.94, 1.0, 0.03, "partly"),
        (0.8, 1.0, 0.03, "no"),
        (0.98, 1.3, 0.03, "partly"),
        (0.98, 1.6, 0.03, "no"),
        (0.98, 1.0, 0.2, "unclear"),  # so few questions that 20 points could be gone
    ],
)
def test_kept_is_said_of_the_worst(retain: float, loss: float, reach: float, mark: str):
    edit = row("scale", CHANCE, retain, loss=loss)
    edit["change"]["roles"]["retain"]["accuracy"] = near(retain - 0.98, reach)
    assert marks(edit, control(0.9))[1] == mark


def test_what_was_not_asked_is_not_measured():
    assert marks(row("rmu", CHANCE)) == ["yes", "yes", "not measured", "not measured"]
    bare = row("scale", CHANCE) | {"roles": {}, "change": {"roles": {}}, "loss": {}}
    assert marks(bare) == ["not measured"] * 4


@pytest.mark.parametrize(("again", "mark"), [(CHANCE, "yes"), (CHANCE + 0.05, "yes"), (0.5, "partly"), (0.94, "no")])
def test_whether_it_lasts_is_what_relearning_leaves(again: float, mark: str):
    (one,) = verdicts(report(row("rmu", CHANCE), row("rmu+relearned", again)))
    assert one.answers[3].mark == mark and "relearned" in one.answers[3].words


def test_each_setting_lasts_as_its_own_relearning_says():
    weak, strong = SETTINGS | {"scale": -1.0}, SETTINGS
    rows = [row("rmu", CHANCE, settings=one) for one in (weak, strong)]
    again = [
        row("rmu+relearned", left, settings=one | {"relearn_steps": 9}) for one, left in ((weak, 0.94), (strong, 0.5))
    ]
    assert [one.answers[3].mark for one in verdicts(report(*rows, *again))] == ["no", "partly"]
    assert [one.answers[3].mark for one in verdicts(report(*rows, again[0]))] == ["no", "not measured"]


def test_a_run_without_questions_is_judged_by_its_loss():
    edit, beside = row("scale", 0.0), control(0.0)
    for one, forget in ((edit, 2.0), (beside, 1.1)):
        one["roles"], one["change"]["roles"] = {}, {}
        one["loss"], one["change"]["loss"] = {"forget": near(forget)}, {"forget": near(forget - 1)}
    base = {"name": "baseline", "kind": "baseline", "loss": {"forget": near(1.0)}}
    (one,) = verdicts(filled({"methods": [base, edit, beside]}))
    assert [answer.mark for answer in one.answers] == ["partly", "not measured", "yes", "not measured"]
    assert "no guessing to hold it against" in one.answers[0].words


def test_the_sheet_has_a_row_for_each_method_and_none_for_controls(request: pytest.FixtureRequest):
    sheet = verdict_sheet(report(row("scale", CHANCE), control(0.9), row("rmu", 0.5)))
    assert sheet.columns == ("method", *QUESTIONS) and len(sheet.rows) == 2
    assert sheet.rows[0][1:] == ("✓ yes", "✓ yes", "✓ yes", "– not measured")
    old = verdict_sheet(load_report(request.path.with_name("report-0.1.json")))
    assert [one[0] for one in old.rows] == ["Scale -3 on 200 latents"], "zero ablation is a control itself"


def test_what_goes_no_further_than_chance_or_than_zeroing_is_said_before_all_else():
    chance, zero = row("scale", 0.6), {"at_rest": True, "settings": {"num_features": 100}}
    assert unproven(report(row("scale", CHANCE), control(0.9))) == []
    shown = "Scale -3 on 100 latents: forgetting is not shown to come from its latents"
    assert unproven(report(chance, control(0.62))) == [f"{shown} (not told apart from a random push: isotropic)."]
    (idle,) = unproven(report(row("scale", 0.95), row("zero", 0.94, **zero), control(0.95)))
    assert idle == f"{shown} (it does not forget measurably itself)."
    (said,) = unproven(report(chance, row("zero", 0.6, **zero), control(0.9)))
    assert said.endswith("which only lays latents to rest, forgets as much as Scale -3 on 100 latents.")
    assert unproven(report(chance, row("zero", 0.7, **zero), control(0.9))) == []
    alone = row("scale", 0.6, settings={**SETTINGS, "latent": 7})  # one latent is no match for a hundred
    assert unproven(report(alone, row("zero", 0.6, **zero), control(0.9))) == []


@pytest.mark.parametrize("rule", ["spared", "utility_99"])
def test_a_setting_chosen_for_sparing_says_what_loss_its_questions_could_not_show(rule: str):
    point = {"settings": SETTINGS, "forget": 0.3, "utility": 0.9, "neighbour": None, "alignment": 0.0}
    wide = {"forget": near(-0.6), "retain": {"value": -0.2, "low": -0.45, "high": 0.0}, "neighbour": near(0, 0.1)}
    tuned = {
        "configurations": 1, "points": [], "front": [], "best_at": {}, "saebench_score": None, "hypervolume": 0.0,
        "best_alignment": 0.0, "chosen": {**point, "changes": wide}, "rule": rule, "end": None,
    }  # fmt: skip
    sweep = {"half": "dev", "domains": {}, "base": point, "floors": {}, "methods": {"scale": tuned}}
    said = unseen(filled({"methods": [row("baseline", 0.95, kind="baseline", settings={})], "sweep": sweep}))
    assert len(said) == (rule == "spared")
    assert all(one.endswith("in points: scale (retain -20 [-45, +0], neighbour +0 [-10, +10]).") for one in said)
