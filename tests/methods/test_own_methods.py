"""A method of one's own, each in one object: an edit, a retraining and a wrapper, through plan, controls and sweep."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from test_toy_edit import NUDGE
from test_toy_retraining import SHRINK
from test_toy_wrapper import COARSE
from tiny_run import NAMED, TinyRun

from sae_forge.errors import ConfigError
from sae_forge.methods.subjects import AsItIs, Edited, Subject, in_force
from sae_forge.methods.table import METHODS, methods_of
from sae_forge.methods.weights.objectives import nats_per_token
from sae_forge.models.projections import written_through
from sae_forge.study.plan import iter_plans

TABLE = (*METHODS, NUDGE, SHRINK, COARSE)


@pytest.fixture(scope="module")
def run(new_run: Callable[[], TinyRun]) -> TinyRun:
    return new_run()


def own(run: TinyRun, *names: str, **settings: Any) -> dict[str, Any]:
    """A report of methods that the config's own table does not hold."""
    return run.evaluate(table=TABLE, methods=names, **settings).metrics


def test_methods_of_ones_own_are_planned_controlled_and_reported(run: TinyRun):
    metrics = own(run, "nudge", "shrink", "coarse", "random", limit=2, controls=("isotropic", "places"))
    rows = [row for row in metrics["methods"] if row["name"] != "random"]
    assert [(row["name"], row["kind"]) for row in rows] == [
        ("baseline", "baseline"), ("nudge", "hook"), ("shrink", "weights"), ("nudge+coarse", "weights"),
        ("shrink+coarse", "weights"),
    ]  # fmt: skip
    controls = [row["settings"] for row in metrics["methods"] if row["name"] == "random"]
    assert {(one["of"], one["kind"]) for one in controls} == {("nudge", "isotropic")}  # it edits every token
    assert rows[1]["title"] == "nudge, push 2"
    assert rows[3]["title"] == "nudge, push 2, coarse"
    assert rows[3]["settings"] == {"push": 2.0, "level": 1}


@pytest.mark.slow
def test_a_sweep_tunes_them_and_measures_wrappers_at_the_choice(run: TinyRun):
    metrics = own(run, "nudge", "shrink", "coarse", limit=2, sweep=True, configurations=8)
    tuned = metrics["sweep"]["methods"]
    assert {name: one["configurations"] for name, one in tuned.items()} == {"nudge": 8, "shrink": 8}
    rows = {row["name"]: row["settings"] for row in metrics["methods"]}
    for name in ("nudge", "shrink"):
        assert rows[name] == tuned[name]["chosen"]["settings"]
        assert rows[f"{name}+coarse"] == rows[name] | {"level": 1}
    assert metrics["sweep"]["domains"] != metrics["domains"]


def test_a_wrapper_without_anything_to_wrap_is_refused():
    for names in (("quantised",), ("scale", "stacked"), ("random", "relearned")):
        with pytest.raises(ConfigError, match=f"as in scale,steer,{names[-1]}"):
            methods_of(names)


# ---- those that ship ----------------------------------------------------------------------------


def logits(run: TinyRun, subject: Subject) -> torch.Tensor:
    ids = run.lm.tokenizer("The wizard of the north", return_tensors="pt")["input_ids"]
    with in_force(run.lm, subject) as (lm, _), torch.no_grad():
        return lm.model(ids).logits


def planned(run: TinyRun, names: Sequence[str], **settings: Any) -> dict[str, Subject]:
    materials = run.materials(methods=tuple(names), **settings)
    return {plan.name: plan.subject for plan in iter_plans(materials, methods_of(names))}


def test_quantised_weights_take_few_values_and_the_edit_stays(run: TinyRun):
    before = {name: weight.clone() for name, weight in run.lm.model.named_parameters()}
    plans = planned(run, ("scale", "quantised"), quantise_bits=4)
    subject = plans["scale+quantised"]
    assert subject.edits == plans["scale"].edits and subject.changes_weights
    (name,) = written_through(run.lm, 0)
    weight = subject.weights(run.lm).model.get_parameter(name)
    assert max(len(row.unique()) for row in weight) <= 15 < len(before[name][0].unique())
    step = before[name].abs().amax(1, keepdim=True) / 7
    assert bool(((weight - before[name]).abs() <= step / 2 + 1e-6).all())
    assert all(torch.equal(weight, before[name]) for name, weight in run.lm.model.named_parameters())
    fine = planned(run, ("scale", "quantised"), quantise_bits=8)["scale+quantised"]
    plain = logits(run, plans["scale"])
    assert (logits(run, fine) - plain).abs().mean() < (logits(run, subject) - plain).abs().mean()


@pytest.mark.slow
def test_relearning_brings_the_forget_text_back_under_the_edit(run: TinyRun):
    names = ("steer", "gradient_ascent", "relearned")
    plans = planned(run, names, relearn_steps=15, baseline_lr=1e-3)
    batch = run.materials().forget_texts.rows(torch.arange(16))
    before = {name: weight.clone() for name, weight in run.lm.model.named_parameters()}
    for name in ("steer", "gradient_ascent"):
        nats = []
        for subject in (plans[name], plans[f"{name}+relearned"]):
            with in_force(run.lm, subject) as (lm, log), torch.no_grad():
                nats.append(float(nats_per_token(lm, batch)))
                assert (log is None) == (name == "gradient_ascent")
        assert nats[1] < nats[0] - 0.1
    assert all(torch.equal(weight, before[name]) for name, weight in run.lm.model.named_parameters())


def test_stacked_edits_are_one_edit_of_several_and_weights_come_first(run: TinyRun):
    both = planned(run, ("scale", "steer", "stacked"))["scale+steer"]
    assert isinstance(both, Edited) and len(both.edits) == 2
    mixed = planned(run, ("scale", "gradient_ascent", "stacked"))["scale+gradient_ascent"]
    assert mixed.changes_weights and len(mixed.edits) == 1
    assert not torch.equal(logits(run, mixed), logits(run, AsItIs()))
    row = run.evaluate(methods=("scale", "steer", "stacked"), limit=1).metrics["methods"][-1]
    assert row["name"] == "scale+steer" and row["kind"] == "hook"
    assert row["title"].startswith("stacked: Scale -3 on 24 latents and steer of 24 latents, value ")
    assert set(row["settings"]) >= {"scale.scale", "steer.value"}


def test_a_wrapper_belongs_to_what_is_named_beside_it():
    assert [one.name for one in methods_of(("rmu", "relearned"))] == ["rmu", "rmu+relearned"]
    assert [one.name for one in methods_of(("all",))] == list(NAMED)
