"""``eval`` and ``report`` through the command line: a sweep on the screen and on the page, and steering CSVs."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_run import TinyRun, forge, made

from sae_forge.interventions.steering_csv import read_steering_csv, write_steering_csv
from sae_forge.interventions.steering_table import steering_table
from sae_forge.results.report import Report
from sae_forge.results.sheets import overview
from sae_forge.show import sweeps
from sae_forge.store.runs import Run

pytestmark = pytest.mark.slow

SWEEP = (
    "--methods",
    "scale,project,mean_ablate,random",
    "--sweep",
    "--configurations",
    "8",
    "--controls",
    "places,direction",
)
SAID = ("clamp", "conditional_clamp", "refusal_clamp", "steer")
"""Methods that a steering CSV can say."""


@pytest.fixture(scope="module")
def run(new_run: Callable[[], TinyRun]) -> TinyRun:
    return new_run()


def evaluated(run: TinyRun, *flags: str) -> dict[str, Any]:
    """The object that ``eval`` prints."""
    return json.loads(forge("eval", *run.where, *run.asked, *flags, "--json"))


@pytest.fixture(scope="module")
def swept(run: TinyRun) -> dict[str, Any]:
    return evaluated(run, *SWEEP)


@pytest.fixture(scope="module")
def exported(run: TinyRun) -> dict[str, Any]:
    return evaluated(run, "--methods", ",".join((*SAID, "scale", "dsg")), "--theta", "0.5", "--num_features", "9")


# ---- a sweep ------------------------------------------------------------------------------------


def test_what_is_printed_is_what_is_kept(run: TinyRun, swept: dict[str, Any]):
    folder = Path(swept["outputs"]["folder"])
    assert json.loads((folder / "eval.json").read_text()) == swept["metrics"]
    assert {path.name for path in folder.iterdir()} >= {"config.json", "items.parquet", "methods.png", "sweep.png"}
    assert (folder / "sweep.png").read_bytes() == sweeps.sweep_panels(Report.from_json(swept["metrics"]))
    before = (folder / "eval.json").read_bytes()
    assert evaluated(run, *SWEEP)["outputs"] == swept["outputs"]
    assert (folder / "eval.json").read_bytes() == before


def test_the_table_of_a_sweep_says_beside_each_method_what_controls_did(swept: dict[str, Any]):
    sheet = overview(Report.from_json(swept["metrics"]))
    column = sheet.columns.index("forget (under random controls)")
    assert [row[0].split()[0] for row in sheet.rows] == ["baseline", "scale", "mean_ablate", "project"]
    shown = {row[0].split()[0]: row[column] for row in sheet.rows}
    for method in ("scale", "project"):
        rows = [row for row in swept["metrics"]["methods"] if row["settings"].get("of") == method]
        assert len(rows) == {"scale": 6, "project": 3}[method]  # a projection edits every token: no other places
        values = [row["roles"]["forget"]["accuracy"]["value"] for row in rows]
        assert shown[method] == f"{min(values):.2f} to {max(values):.2f}"
    assert shown["baseline"] == shown["mean_ablate"] == ""


def test_without_a_sweep_controls_have_rows_of_their_own(run: TinyRun):
    metrics = evaluated(run, "--methods", "scale,random", "--controls", "places")["metrics"]
    sheet = overview(Report.from_json(metrics))
    assert [row[0] for row in sheet.rows][1:] == [
        "scale -3, 24 latents",
        "random places for scale -3, 24 latents (3 seeds)",
    ]
    assert "forget (under random controls)" not in sheet.columns


def test_the_command_says_the_sweep_in_words(run: TinyRun, swept: dict[str, Any]):
    said = " ".join(forge("eval", *run.where, *run.asked, *SWEEP).split())
    assert "3 methods, each tuned over 8 settings on the dev half" in said
    assert "mean_ablate: nothing to tune, one setting" in said
    assert "random controls" in said
    assert "random places" not in said


def test_the_page_shows_the_sweep_and_keeps_controls_apart(run: TinyRun, swept: dict[str, Any]):
    evaluated(run, *SWEEP)  # the newest report
    page = Path(json.loads(forge("report", *run.where, "--json"))["outputs"]["page"]).read_text()
    tables = {part.split("</caption>")[0]: part for part in page.split("<caption>")[1:]}
    (tried,) = (part for caption, part in tables.items() if caption.startswith("The sweep, on the dev half"))
    assert [name for name in ("scale", "project", "mean_ablate", "dsg") if f">{name}<" in tried] == [
        "scale", "project", "mean_ablate",
    ]  # fmt: skip
    edits, controls = tables["Question accuracy"], tables["Random controls: question accuracy"]
    assert "random" not in edits
    assert controls.count("random places for ") == 1
    assert controls.count("random direction for ") == 2
    assert "Every setting of every method on the dev half" in page


# ---- steering CSVs ------------------------------------------------------------------------------


def test_exported_tables_read_back_to_the_same_edit(run: TinyRun, exported: dict[str, Any]):
    folder = Path(exported["outputs"]["folder"]) / "steering"
    rows = {row["name"]: row["settings"] for row in exported["metrics"]["methods"]}
    assert sorted(path.stem.rpartition("-")[0] for path in folder.iterdir()) == sorted(SAID)
    for path in folder.iterdir():
        name = path.stem.rpartition("-")[0]
        edit = made(name, rows[name], run.materials(theta=0.5))
        assert read_steering_csv(path, sae_id=run.named.name).intervention("real") == edit.intervention


@pytest.mark.parametrize("name", SAID)
def test_a_table_is_measured_like_the_edit_it_came_from(run: TinyRun, exported: dict[str, Any], name: str):
    (path,) = (Path(exported["outputs"]["folder"]) / "steering").glob(f"{name}-*.csv")
    flags = ["--methods", "random", "--controls", "direction", "--steering", str(path), "--tokens", "real"]
    metrics = evaluated(run, *flags)["metrics"]
    given, wanted = (
        next(row for row in found["methods"] if row["name"] == name) for found in (metrics, exported["metrics"])
    )
    assert [row["name"] for row in metrics["methods"]] == ["baseline", name, *["random"] * 3]
    assert given["kind"] == "hook"
    assert given["settings"] == {"given": 1 if name == "refusal_clamp" else 9}
    for part in ("roles", "domains", "edited_share", "edit_norm", "change"):
        assert given[part] == wanted[part]


def test_the_table_of_another_tool_is_measured_too(run: TinyRun, tmp_path: Path):
    edit = made("steer", {"num_features": 4, "value": -2.0}, run.materials())
    said = steering_table(edit.intervention, dialect="lm_eval", sae_id=run.named.name)
    write_steering_csv(tmp_path / "steer.csv", said)
    metrics = evaluated(run, "--methods", "zero", "--steering", str(tmp_path / "steer.csv"))["metrics"]
    assert [(row["name"], row["settings"]) for row in metrics["methods"][1:]] == [
        ("zero", {"num_features": 24}), ("steer", {"given": 4}),
    ]  # fmt: skip


def test_another_content_under_the_same_name_is_another_report(run: TinyRun, tmp_path: Path):
    path = tmp_path / "edit.csv"
    outputs = []
    for value in (-1.0, -2.0):
        edit = made("clamp", {"num_features": 4, "value": value}, run.materials())
        write_steering_csv(path, edit.intervention)
        outputs.append(evaluated(run, "--methods", "zero", "--steering", str(path))["outputs"]["report"])
    assert outputs[0] != outputs[1]


def test_an_edit_without_the_error_is_not_exported_as_one_that_keeps_it(run: TinyRun):
    found = evaluated(run, "--methods", "clamp", "--no_keep_error")
    assert not (Path(found["outputs"]["folder"]) / "steering").exists()


def rewritten(change: Callable[[dict[str, str]], dict[str, str]], source: Path, path: Path) -> Path:
    """A steering CSV with every row changed."""
    rows = list(csv.DictReader(source.read_text().splitlines()))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(map(change, rows))
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sae_id": "layer_3/width_16k"}, ["layer_3/width_16k", "blocks.1.hook_resid_post/k6-d280-s4", "use its own"]),
        ({"hook_action": "melt"}, ["edit.csv:2", "melt", "clamp_cond"]),
        ({"latent_idx": "280"}, ["280"]),
        ({"latent_idx": "7"}, ["latent 7 has two rows"]),
        (None, ["absent.csv", "cannot read"]),
    ],
)
def test_a_table_that_cannot_be_meant_is_one_line(
    run: TinyRun, exported: dict[str, Any], tmp_path: Path, change: dict[str, str] | None, words: list[str]
):
    (source,) = (Path(exported["outputs"]["folder"]) / "steering").glob("clamp-*.csv")
    path = tmp_path / ("absent.csv" if change is None else "edit.csv")
    if change is not None:
        rewritten(lambda row: row | change, source, path)
    reports = list(Run(run.folder).evals(run.named.folder).iterdir())
    output = forge("eval", *run.where, *run.asked, "--steering", str(path), code=2)
    for word in words:
        assert word in output
    assert list(Run(run.folder).evals(run.named.folder).iterdir()) == reports


def test_names_of_edits_do_not_matter_to_what_they_are(run: TinyRun):
    """A published name on a threshold of zero is exported as the plain clamp it then is."""
    edit = made("conditional_clamp", {"num_features": 3, "value": -1.0, "theta": 0.0}, run.materials())
    again = steering_table(edit.intervention).intervention("real")
    assert again == replace(edit.intervention, name="clamp")
