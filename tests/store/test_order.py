"""The newest SAE, selection, report and run are those that were asked for last, whatever became of files' times."""

import json
import os
import shutil
from pathlib import Path

import pytest

from sae_forge.errors import DataError
from sae_forge.hookpoint import HookPoint
from sae_forge.store.runs import Run, newest_run

POINT = HookPoint(1)


def made(run: Run, *names: str) -> list[Path]:
    """Files of a run, by their paths in it; the first has the newest time."""
    paths = [run.folder / name for name in names]
    for age, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
        os.utime(path, (2e9 - age, 2e9 - age))
    return paths


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Of each kind of artefact two, noted against the order of their times."""
    run = Run(tmp_path / "run")
    saes = [path.parent for path in made(run, f"saes/{POINT}/k8/cfg.json", f"saes/{POINT}/k4/cfg.json")]
    run.note(*saes)
    run.note(*made(run, f"features/{POINT}/k4/crisp-0.json", f"features/{POINT}/k4/inlp-0.json"))
    run.note(*(path.parent for path in made(run, f"eval/{POINT}/k4/a/eval.json", f"eval/{POINT}/k4/b/eval.json")))
    return run


def newest(run: Run) -> list[str]:
    sae = run.newest_sae(POINT, "train")
    selection, report = run.selection_of(sae), run.newest_eval(sae)
    assert selection is not None and report is not None
    return [sae.name, selection.stem, report.name]


def test_the_order_is_the_same_after_copying_and_touching(run: Run, tmp_path: Path) -> None:
    copied = Run(shutil.copytree(run.folder, tmp_path / "copy", copy_function=shutil.copyfile))
    for path in sorted(copied.folder.rglob("*"), reverse=True):
        path.touch()
    assert newest(run) == newest(copied) == ["k4", "inlp-0", "b"]
    assert [path.name for path in copied.saes()] == ["k8", "k4"]


def test_what_is_asked_for_again_becomes_the_newest_and_nothing_is_written_where_it_was(run: Run) -> None:
    before = (run.folder / "order.json").read_bytes()
    run.note(run.folder / f"saes/{POINT}/k4")
    assert (run.folder / "order.json").read_bytes() == before
    run.note(run.folder / f"features/{POINT}/k4/crisp-0.json")
    assert newest(run) == ["k4", "crisp-0", "b"]


def test_where_nothing_says_it_the_flag_is_asked_for(run: Run) -> None:
    shutil.rmtree(run.folder / "logs")
    (run.folder / "order.json").unlink()
    with pytest.raises(DataError, match=r"does not say which of .*k4, .*k8 is the newest; name one with --sae"):
        run.newest_sae(POINT, "train")
    shutil.rmtree(run.folder / f"saes/{POINT}/k8")
    assert run.newest_sae(POINT, "train").name == "k4"


def test_an_older_run_is_read_off_its_log_of_commands(run: Run) -> None:
    (run.folder / "order.json").unlink()
    place = f"/somewhere/else/{run.folder.name}"
    lines = [
        {"command": "train", "outputs": {"a": f"{place}/saes/{POINT}/k4", "b": f"{place}/saes/{POINT}/k8"}},
        {"command": "features", "outputs": {name: f"{place}/features/{POINT}/k8/{name}-0.json" for name in "ab"}},
        {"command": "push", "outputs": {"sae": f"{place}/saes/{POINT}/k4"}},
    ]
    run.log("collect", {})
    with (run.logs / "commands.jsonl").open("a") as log:
        log.write("\n".join(map(json.dumps, lines)) + '\n{"command": "train", "outp')
    assert [path.name for path in run.saes()] == ["k4", "k8"]
    made(run, f"saes/{POINT}/k16/cfg.json")
    assert run.newest_sae(POINT, "train").name == "k8", "what the log does not name is older"
    run.note(run.folder / f"saes/{POINT}/k4")
    assert [path.name for path in run.saes()] == ["k16", "k8", "k4"]


def test_the_newest_run_is_the_one_whose_log_ends_last(tmp_path: Path) -> None:
    for name, at in (("a", 20.0), ("b", 10.0)):
        made(Run(tmp_path / name), "run.json")
        Run(tmp_path / name).log("train", {"at": at})
    assert newest_run(tmp_path).folder.name == "a"
    shutil.copytree(tmp_path / "a", tmp_path / "c")
    with pytest.raises(DataError, match="nothing says which was worked on last; name one with --run_dir"):
        newest_run(tmp_path)
