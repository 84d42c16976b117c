"""``--dry_run``: what is told is what is done then, refusals are the same, and nothing is written."""

import json
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
from tiny_run import FORGET, RETAIN, SMALL, TinyRun, forge

from sae_forge.config.collect import CollectConfig
from sae_forge.errors import DataError
from sae_forge.hookpoint import HookPoint
from sae_forge.pipeline import dry_run, reckoning
from sae_forge.progress import SILENT
from sae_forge.settings import resolve
from sae_forge.study import rehearsal
from sae_forge.study.measure import measure
from sae_forge.study.settings import run_config

LITTLE = ("--max_steps", "6", "--batch_size", "64", "--d_sae", "48", "--k", "4", "--loss_tokens", "60")


@pytest.fixture(autouse=True)
def tried_shortly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sae_forge.pipeline.reckoning.PROBE_SECONDS", 0.01)
    monkeypatch.setattr(rehearsal, "FEW", 2)


@pytest.fixture(scope="module")
def run(new_run: Callable[[], TinyRun]) -> TinyRun:
    return new_run()


@pytest.fixture
def texts(tmp_path: Path, model_folders: dict[str, Path]) -> list[str]:
    """Flags for a run that is not there yet, on texts of its own."""
    for name, lines in {"saga": FORGET, **RETAIN}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    where = ["--model", str(model_folders["llama"]), "--run_dir", str(tmp_path / "run"), "--layer", "1"]
    return [*where, "--forget", f"{tmp_path}/saga.jsonl", "--retain", f"{tmp_path}/stones.jsonl", "--ctx_len", "24"]


def told(command: str, *flags: str) -> dict[str, Any]:
    return json.loads(forge(command, *flags, "--dry_run", "--json"))["metrics"]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_collect_and_train_do_what_was_told_of_them(texts: list[str], tmp_path: Path):
    forget, retain, sae = told("train", *texts, *LITTLE)["pieces"]
    assert not (tmp_path / "run").exists()
    assert sae["steps"] == 6 and sae["seconds"] > 0 and sae["basis"]
    collected = json.loads(forge("collect", *texts, "--json"))
    assert {forget["path"], retain["path"]} == set(collected["outputs"].values())
    assert abs(forget["tokens"] + retain["tokens"] - collected["metrics"]["tokens"]) < 0.1 * forget["tokens"]
    assert forget["bytes"] + retain["bytes"] == pytest.approx(collected["metrics"]["bytes"], rel=0.2)
    assert [piece["is_there"] for piece in told("collect", *texts)["pieces"]] == [True, True]
    before = tree(tmp_path / "run")
    assert [piece["is_there"] for piece in told("train", *texts, *LITTLE)["pieces"]] == [True, True, False]
    assert tree(tmp_path / "run") == before
    trained = json.loads(forge("train", *texts, *LITTLE, "--json"))
    assert list(trained["outputs"].values()) == [sae["path"]] and trained["metrics"]["steps"] == sae["steps"]
    assert all(piece["is_there"] for piece in told("train", *texts, *LITTLE)["pieces"])
    longer = told("train", *texts, *LITTLE, "--max_steps", "9")["pieces"][-1]
    assert longer["steps"] == 9 and "going on after about 6 steps" in longer["told"]


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("collect", ["--layer", "99"]),
        ("collect", ["--forget", "/nowhere/saga.txt"]),
        ("train", ["--k", "4000"]),
        ("train", ["--batch_size", "1000000"]),
        ("train", ["--architecture", "none"]),
    ],
)
def test_what_the_command_refuses_is_refused(texts: list[str], tmp_path: Path, command: str, flags: list[str]):
    said = forge(command, *texts, *flags, "--dry_run", code=2)
    assert not (tmp_path / "run").exists()
    if "--batch_size" not in flags:  # which training finds out from the shards, to the token
        assert said == forge(command, *texts, *flags, code=2)


@pytest.mark.slow
def test_an_sae_under_other_settings_is_refused_as_train_does(run: TinyRun):
    forge("train", *run.where, "--layer", "1", *LITTLE)
    for flags in (["--max_steps", "3"], ["--lr", "0.5"]):
        again = [*run.where, "--layer", "1", *LITTLE, *flags]
        before = tree(run.folder)
        said = forge("train", *again, "--dry_run", code=2)
        assert tree(run.folder) == before
        assert said == forge("train", *again, code=2)


@pytest.mark.slow
def test_eval_has_the_rows_and_items_that_were_told(run: TinyRun):
    before = tree(run.folder)
    sae = ["--sae", str(run.named.folder), "--methods", "scale,zero,random", "--controls", "latents"]
    (piece,) = told("eval", *run.where, *run.asked, *sae)["pieces"]
    assert tree(run.folder) == before
    done = json.loads(forge("eval", *run.where, *run.asked, *sae, "--json"))
    assert piece["path"] == done["outputs"]["folder"]
    assert piece["rows"] == len(done["metrics"]["methods"]) and piece["seconds"] > 0
    items = sum(domain["items"] for domain in done["metrics"]["domains"].values())
    assert f"{items} items a row" in piece["told"]
    (again,) = told("eval", *run.where, *run.asked, *sae)["pieces"]
    assert again["is_there"] and again["path"] == piece["path"]


def test_a_sweep_says_how_many_settings_it_tries(run: TinyRun):
    swept = ["--sae", str(run.named.folder), "--methods", "scale,clamp,random", "--sweep", "--configurations", "8"]
    (piece,) = told("eval", *run.where, *run.asked, *swept)["pieces"]
    assert "16 settings tried beforehand" in piece["told"]


def test_what_nobody_can_count_is_not_reckoned(texts: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sae_forge.collect_plan._expected_tokens", lambda config, lm, source, tally: None)
    forget, _, sae = told("train", *texts, "--k", "4", "--d_sae", "48")["pieces"]
    for piece in (forget, sae):
        assert (piece["tokens"], piece["steps"], piece["seconds_known"]) == (None, None, False)


def test_run_tells_of_all_stages(texts: list[str], run: TinyRun, tmp_path: Path):
    asked = [flag for flag in run.asked if not flag.startswith(("--ctx_len", "--eval_batch"))]
    said = forge("run", *texts, *LITTLE, *asked, "--dry_run")
    assert not (tmp_path / "run").exists()
    for word in ("collect  ", "train    ", "features ", "eval     ", "leave --dry_run out"):
        assert word in said
    assert max(map(len, [line for line in said.splitlines() if str(tmp_path) not in line])) <= 80


def test_run_takes_the_selection_of_its_settings_and_refuses_what_eval_would(
    run: TinyRun, monkeypatch: pytest.MonkeyPatch
):
    given = {"model": str(run.model), "run_dir": run.folder, "sae": str(run.named.folder), **SMALL, **run.questions}
    given |= {"snippets": 0, "min_target_fires": 1, "max_freq": 1.0, "max_neutral_freq": 0.03, "min_ratio": 1.0}
    given |= {"forget": str(run.texts / "wizards.jsonl"), "storage_dtype": "fp32"}
    given |= {"retain": tuple(str(run.texts / f"{name}.jsonl") for name in RETAIN)}
    given |= {"refusal": str(run.texts / "refusals.jsonl")}
    seen: list[Any] = []

    def damaged(config: Any, bench: Any) -> None:
        seen.append(config.selection)
        raise DataError("the questions are damaged")

    monkeypatch.setattr(dry_run, "_evaluation", damaged)
    with pytest.raises(DataError, match="the questions are damaged"):
        dry_run.of_run([resolve(run_config(), given)], SILENT)
    assert seen == [*run.folder.glob("features/*/*/*.json")]
    told = dry_run.of_run([resolve(run_config(), given | {"num_features": (3,)})], SILENT)
    assert [piece["verb"] for piece in told.metrics["pieces"]][-2:] == ["features", "eval"]
    assert len(seen) == 1, "that selection is yet to be made"


def test_how_fast_a_model_reads_is_tried_once_for_all_layers(run: TinyRun, monkeypatch: pytest.MonkeyPatch):
    tried: list[HookPoint] = []
    monkeypatch.setattr(reckoning, "capture", lambda lm, points, *batch: tried.extend(points))
    monkeypatch.setattr(reckoning, "PROBE_SECONDS", 0)
    monkeypatch.setattr(reckoning, "_TRIED", {})
    config = CollectConfig(ctx_len=16, model_batch_size=2)
    first, *others = [reckoning.pace_of(config, run.lm, [HookPoint(layer)]) for layer in (0, 1, 3)]
    assert tried == [HookPoint(2)] * 2, "once for warmth, and once that counts"
    assert others == [first] * 2
    assert first.up_to([HookPoint(0), HookPoint(3)]) == pytest.approx(first.rate * 3 / 4)
    assert "up to layer 2 " in first.said


def test_layers_that_are_collected_in_one_pass_take_its_time_once(texts: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dry_run, "pace_of", lambda *_: reckoning.Pace(100.0, 2))
    done = json.loads(forge("train", *texts, *LITTLE, "--layer", "1,2", "--dry_run", "--json"))
    seconds = [piece["seconds"] for piece in done["metrics"]["pieces"] if piece["verb"] == "collect"]
    tokens = [piece["tokens"] for piece in done["metrics"]["pieces"] if piece["verb"] == "collect"]
    assert seconds == [0, 0, *(count / 100 for count in tokens[2:])]
    assert {
        piece["basis"] for piece in done["metrics"]["pieces"] if piece["seconds"] and piece["verb"] == "collect"
    } == {"100 tokens a second were read up to layer 2 here just now"}


def test_a_few_items_are_tried_under_an_edit_with_the_layers_below_it_spared(
    run: TinyRun, monkeypatch: pytest.MonkeyPatch
):
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(rehearsal, "measure", lambda *asked, **how: given.append(how))
    materials = run.materials(**run.questions)
    plain, edited = rehearsal._seconds_an_item(materials, materials.config, None, SILENT)
    assert plain.keys() == edited.keys() == {"questions"}
    first, second = given
    assert first["tapes"] is second["tapes"] and not set(first) - set(signature(measure).parameters)


def test_no_judge_is_asked(run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sae_forge.tasks.engines.judges.Asked.replies", lambda *_: pytest.fail("a judge was asked"))
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "The owl"}\n')
    judge = {"judge": ("https://host/v1#m",), "judge_prompts": (f"{tmp_path}/prompts.jsonl",), "judge_topic": "owls"}
    materials = run.materials(**run.questions, **judge, max_new_tokens=2)
    plain, _ = rehearsal._seconds_an_item(materials, materials.config, None, SILENT)
    assert plain["judge"] > 0 and not list(run.folder.rglob("judged"))
