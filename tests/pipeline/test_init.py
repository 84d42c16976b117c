"""``init``: the file it writes is one that ``run`` takes, and says what was seen and reckoned."""

import json
import tomllib

import pytest
from typer.testing import CliRunner

from cli.app import build
from sae_forge import collect_plan
from sae_forge.settings import read_config_file
from sae_forge.study.settings import run_config


@pytest.fixture
def asked(model_folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sae_forge.pipeline.reckoning.PROBE_SECONDS", 0.01)
    for name, text in (("saga", "The wizard of the north keeps a silver owl."), ("rocks", "Granite is a rock.")):
        (tmp_path / f"{name}.jsonl").write_text((json.dumps({"story": text, "n": 1}) + "\n") * 40)
    where = ["--model", str(model_folders["llama"]), "--run_dir", "run", "--text_field", "story"]
    return [*where, "--forget", "saga.jsonl", "--retain", "rocks.jsonl"]


def forge(*args, code=0):
    result = CliRunner().invoke(build(only=args[0]), list(args))
    assert result.exit_code == code, f"{result.output}{result.exception!r}"
    return result.stdout if code == 0 else result.output


def test_the_file_says_what_was_named_and_run_takes_it(asked, tmp_path, model_folders):
    told = json.loads(
        forge("init", *asked, "--k", "8", "--max_steps", "7", "--no_include_forget", "--out", "mine.toml", "--json")
    )
    values = tomllib.loads((tmp_path / "mine.toml").read_text())
    assert values["forget"] == "saga.jsonl" and values["retain"] == ["rocks.jsonl"] and values["text_field"] == "story"
    assert (values["run_dir"], values["max_steps"], values["include_forget"]) == ("run", 7, False)
    assert values["k"] == [8] and values["layer"] == [2] and values["model"] == str(model_folders["llama"])
    assert values["ctx_len"] == 128, "as long as this model takes"
    assert "batch_size" not in values, "what nobody named stays a comment"
    lines = (tmp_path / "mine.toml").read_text().splitlines()
    assert f'model = "{model_folders["llama"]}" # ' in "\n".join(lines), "a long value and its reason are kept apart"
    assert read_config_file(tmp_path / "mine.toml", run_config())["k"] == (8,)
    metrics = told["metrics"]
    assert metrics["tokens"] > 400 and metrics["d_sae"] == 8 * 56 and metrics["tokens_per_second"] > 0
    collected = json.loads(forge("collect", *asked, "--json"))["metrics"]
    assert abs(collected["tokens"] - metrics["tokens"]) <= 0.1 * collected["tokens"]
    assert 0.5 < collected["bytes"] / metrics["shards_bytes"] < 2


@pytest.mark.slow
def test_text_that_is_collected_already_is_counted(asked):
    tokens = json.loads(forge("collect", *asked, "--json"))["metrics"]["tokens"]
    assert json.loads(forge("init", *asked, "--json"))["metrics"]["tokens"] == tokens


def test_beside_a_run_on_other_text_the_file_names_a_folder_of_its_own(asked, tmp_path, model_folders):
    asked = [*asked[:2], *asked[4:]]
    folder = tmp_path / "checkpoints" / str(model_folders["llama"]).strip("/").replace("/", "--")
    (folder / "shards" / "forget-saga").mkdir(parents=True)
    forge("init", *asked, "--out", "same.toml")
    assert "run_dir" not in tomllib.loads((tmp_path / "same.toml").read_text())
    (folder / "shards" / "forget-wizards").mkdir()
    forge("init", *asked, "--out", "other.toml")
    assert tomllib.loads((tmp_path / "other.toml").read_text())["run_dir"] == f"checkpoints/{folder.name}-saga"


def test_what_nobody_can_count_is_no_nothing(asked, monkeypatch, tmp_path):
    monkeypatch.setattr(collect_plan, "_expected_tokens", lambda config, lm, source, tally: None)
    told = forge("init", *asked, "--out", "mine.toml")
    assert "beside forget-saga and retain-rocks, not counted (--max_tokens)" in told and "less than a batch" not in told
    assert "retain-rocks: unknown tokens" in (tmp_path / "mine.toml").read_text()


def test_what_stands_there_is_not_written_over_and_text_must_be_named(asked, tmp_path):
    (tmp_path / "forge.toml").write_text("mine")
    assert "forge.toml is there" in forge("init", *asked, code=2)
    assert (tmp_path / "forge.toml").read_text() == "mine"
    assert "less than a batch of 4,096" in forge("init", *asked, "--out", "little.toml")
    assert "name the text to forget" in forge("init", *asked[:6], "--out", "other.toml", code=2)
