"""Selections under one edit: the table that says what correlated latents cost."""

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from tiny_run import TinyRun, forge

from sae_forge.features.selection import Selection
from sae_forge.results.report import Cell, Change, Report, Row
from sae_forge.show.html import Section, page
from sae_forge.statistics.estimate import Estimate
from sae_forge.study.selections import compared
from sae_forge.tasks.table import TASKS


@pytest.fixture(scope="module")
def run(new_run: Callable[[], TinyRun]) -> TinyRun:
    return new_run()


@pytest.mark.slow
def test_every_selection_is_measured_under_the_same_edit(run: TinyRun):
    forge("features", *run.where, "--method", "top_mean,random,frequency", "--num_features", "20", "--snippets", "0",
          "--retain_threshold", "0.5")  # fmt: skip
    flags = ["--methods", "scale", "--compare_selections", "--json"]
    metrics = json.loads(forge("eval", *run.where, *run.asked, *flags))["metrics"]
    rows = metrics["selections"]["rows"]
    assert {row["selection"] for row in rows} == {"inlp", "top_mean", "random", "frequency"}
    assert {row["latents"] for row in rows} == {20}
    assert all(0 <= row["auroc"] <= 1 and set(row["retain_loss"] or {"value"}) >= {"value"} for row in rows)
    measured = {row["settings"].get("selection"): row for row in metrics["methods"]}
    for row in rows:
        assert row["forget_accuracy"] == measured[row["selection"]]["change"]["roles"]["forget"]["accuracy"]
        assert row["overlap"]
    text = page("m", [Section(title="t", report=Report.from_json(metrics))])
    assert "Every selection under the same edit" in text and "top_mean" in text


def test_selections_of_one_method_are_numbered_and_equal_ones_measured_once(run: TinyRun):
    fewer = replace(run.selection, latents=run.selection.latents[:9])
    same = replace(run.selection, settings={})
    metrics = run.evaluate(rivals=(fewer, same), methods=("zero",)).metrics
    assert [row["selection"] for row in metrics["selections"]["rows"]] == ["inlp 1", "inlp 2"]
    assert {row["latents"] for row in metrics["selections"]["rows"]} == {9}
    assert "selections" not in run.evaluate(rivals=(same,), methods=("zero",)).metrics


def row_of(name: str, loss: float, accuracy: float) -> Row:
    cell = Cell(estimates={"accuracy": Estimate(accuracy, accuracy, accuracy)})
    roles = dict.fromkeys(("forget", "neighbour", "retain"), cell)
    change = Change(domains={}, roles=roles, groups={"loss": {"retain": Estimate(loss, loss, loss)}})
    return Row(
        name="zero", kind="hook", title=name, settings={"selection": name, "num_features": 3}, seed=None,
        domains={}, roles={}, groups={}, edited_share={}, edit_norm={}, change=change,
    )  # fmt: skip


def test_the_rank_correlation_is_over_sizes_of_side_effects(run: TinyRun):
    analysis = run.selection.analysis
    assert analysis is not None
    selections: dict[str, Selection] = {}
    for number, correlation in enumerate((0.1, 0.2, 0.3, 0.4)):
        separation = replace(analysis.separation, mean_correlation=correlation)
        selections[str(number)] = replace(run.selection, analysis=replace(analysis, separation=separation))
    rows = [row_of("0", 0.01, -0.4), row_of("1", -0.02, -0.3), row_of("2", 0.05, -0.2), row_of("3", 0.03, -0.1)]
    against = compared(selections, rows, TASKS).correlation_against
    assert against["retain_loss"].spearman == pytest.approx(0.8)
    assert against["retain_loss"].selections == 4
    assert against["neighbour_accuracy"].spearman == pytest.approx(-1.0)
    assert compared(dict(list(selections.items())[:3]), rows[:3], TASKS).correlation_against == {}
