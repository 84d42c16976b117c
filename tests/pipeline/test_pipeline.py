"""All commands end to end on both built-in models, through the real command line, and what goes wrong on the way."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
from shared import commanded, ended, made_once
from typer.testing import CliRunner

from cli.app import build
from sae_forge import builtin
from sae_forge.results.claims import REVERSIBLE
from sae_forge.store.runs import Run

SMALL = {
    "collect": ["--max_tokens", "6000", "--model_batch_size", "8"],
    "train": ["--max_steps", "60", "--batch_size", "1024", "--expansion_factor", "4", "--loss_tokens", "500"],
    "features": ["--num_features", "5,20", "--max_neutral_freq", "0.05", "--min_target_fires", "4", "--snippets", "2"],
    "eval": [
        *("--limit", "2", "--num_features", "5,20", "--ablation_scale=-1,-3", "--loss_tokens", "80"),
        *("--max_new_tokens", "4", "--bootstrap", "100", "--controls", "latents"),
    ],
}


def forge(*args: str, code: int = 0) -> str:
    """What a command prints, after checking its exit code; an error must be one line without a traceback."""
    result = CliRunner().invoke(build(only=args[0]), list(args))
    assert result.exit_code == code, f"exit {result.exit_code}: {result.output}{result.exception!r}"
    if code:
        assert result.output.count("error: ") == 1, result.output
        assert "Traceback" not in result.output
    return result.stdout if code == 0 else result.output


def forge_json(*args: str) -> dict[str, Any]:
    """The one object a command prints on stdout with --json."""
    return json.loads(forge(*args, "--json"))


Made = tuple[str, Path, dict[str, Any]]
"""A model, its run folder, and what each of the first four commands printed."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    """The run of a built-in model, made when it is first asked for."""

    def make(root: Path, model: str) -> None:
        where = ["--model", model, "--run_dir", str(root / model)]
        printed = {name: forge_json(name, *where, *flags) for name, flags in SMALL.items()}
        (root / "printed.json").write_text(json.dumps(printed))

    @cache
    def made(model: str) -> Made:
        root = made_once(tmp_path_factory, f"pipeline-{model}", partial(make, model=model))
        folder = Path(shutil.copytree(root / model, tmp_path_factory.mktemp("run") / model))
        printed = (root / "printed.json").read_text().replace(str(root / model), str(folder))
        return model, folder, json.loads(printed)

    return made


@pytest.fixture(params=builtin.MODELS)
def run(request: pytest.FixtureRequest, runs: Callable[[str], Made]) -> Made:
    """The run of each built-in model."""
    return runs(request.param)


@pytest.fixture
def llama(runs: Callable[[str], Made]) -> Made:
    """One of them, for what is about files and flags."""
    return runs("tiny-llama")


def tree(folder: Path) -> dict[str, bytes]:
    """Every file that must be the same in two equal runs."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and "logs" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.slow
def test_every_command_prints_the_object_it_promises(run: Made) -> None:
    model, folder, printed = run
    for name, found in printed.items():
        assert found["command"] == name
        assert found["run"] == str(folder)
        assert found["seconds"] >= 0
        assert all(Path(path).exists() for path in found["outputs"].values())
    collected = {"tokens", "bytes", "shards", "tokens_per_second", "dropped", "rounding_fvu", "unmeasured"}
    collected |= {"control_tokens_in_text", "skipped_documents"}
    assert set(printed["collect"]["metrics"]) == collected
    train = printed["train"]["metrics"]
    assert {"steps", "tokens", "tokens_per_second", "fvu", "l0", "dead_share", "ce_recovered"} <= set(train)
    assert train["steps"] == 60
    assert 0 < train["fvu"] < 1
    assert {"method", "candidates", "filtered", "latents"} <= set(printed["features"]["metrics"])
    assert Run(folder).model == model


@pytest.mark.slow
def test_the_report_holds_every_method_beside_its_controls(run: Made) -> None:
    metrics = run[2]["eval"]["metrics"]
    assert {name: domain["role"] for name, domain in metrics["domains"].items()} == builtin.world()["domains"]
    rows = metrics["methods"]
    assert rows[0]["name"] == "baseline"
    settings = {(row["settings"]["num_features"], row["settings"]["scale"]) for row in rows if row["name"] == "scale"}
    assert len(settings) == 4
    for count, scale in settings:
        seeds = [
            row["seed"]
            for row in rows
            if row["name"] == "random" and (row["settings"]["num_features"], row["settings"]["scale"]) == (count, scale)
        ]
        assert len(set(seeds)) >= 3, "a control needs at least three seeds"
    assert {row["settings"]["num_features"] for row in rows if row["name"] == "zero"} == {n for n, _ in settings}
    for row in rows:
        for domain in row["domains"].values():
            assert domain["accuracy"]["low"] <= domain["accuracy"]["value"] <= domain["accuracy"]["high"]
    claims = metrics["claims"]
    (other,) = (number for number, line in enumerate(claims) if line.startswith("Scale -3 on 5 latents: forget"))
    assert claims.index(REVERSIBLE) < other, "it is said before every setting but the first"


@pytest.mark.slow
def test_the_same_commands_again_return_what_is_there(run: Made) -> None:
    model, folder, printed = run
    before = tree(folder)
    for name, flags in SMALL.items():
        again = forge_json(name, "--model", model, "--run_dir", str(folder), *flags)
        assert again["outputs"] == printed[name]["outputs"]
    assert tree(folder) == before


@pytest.mark.slow
def test_without_a_model_the_run_folder_says_which(llama: Made) -> None:
    model, folder, _ = llama
    output = CliRunner().invoke(build(only="features"), ["features", "--run_dir", str(folder), *SMALL["features"]])
    assert output.exit_code == 0, output.output
    assert f"({model})" in output.stderr


@pytest.mark.slow
def test_report_generate_and_push_stand_on_the_run(run: Made) -> None:
    _, folder, _ = run
    where = ["--run_dir", str(folder)]
    page = Path(forge_json("report", *where)["outputs"]["page"]).read_text()
    assert "restores everything" in page
    assert page.count("<figure>") >= 3
    assert page.count("sae-forge ") >= 3 and str(folder) not in page
    written = forge_json("generate", *where, "The young wizard", "--max_new_tokens", "5")["metrics"]["texts"]
    assert len(written) == 2
    assert written["baseline"]["edited_tokens"] == 0
    assert all(text["edited_tokens"] <= text["tokens"] <= 5 for text in written.values())
    pushed = forge_json("push", "someone/some-sae", *where, "--dry_run")["metrics"]
    paths = {file["path"] for file in pushed["files"]}
    assert {"README.md", "config.json", "eval.json"} <= paths
    assert any(path.endswith("sae_weights.safetensors") for path in paths)


@pytest.mark.slow
def test_push_and_report_pair_a_report_with_the_selection_it_measured(llama: Made) -> None:
    """A selection made after the report is newer, and still not the one its numbers are about."""
    _, folder, printed = llama
    where = ["--run_dir", str(folder)]
    measured = [latent["index"] for latent in printed["features"]["metrics"]["latents"]]
    forge("features", *where, *SMALL["features"], "--num_features", "3")
    pushed = forge_json("push", "someone/some-sae", *where, "--dry_run")
    kept = json.loads(Path(pushed["outputs"]["selection"]).read_text())
    assert [latent["index"] for latent in kept["latents"]] == measured
    again = forge_json("eval", *where, *SMALL["eval"], "--selection", printed["features"]["outputs"]["selection"])
    assert again["outputs"] == printed["eval"]["outputs"]


@pytest.mark.slow
def test_a_damaged_part_of_a_run_ends_a_report_in_one_line(llama: Made, tmp_path: Path) -> None:
    """Nothing seals a log, and a report's protocol is any JSON."""
    folder = Path(shutil.copytree(llama[1], tmp_path / "run"))
    where = ["report", "--run_dir", str(folder)]
    log = next(folder.glob("logs/train-*.jsonl"))
    log.write_text(log.read_text() + '{"step": ')
    assert f"{log} is not a log of training" in forge(*where, code=2).replace("\n", " ")
    log.unlink()
    forge(*where)
    for measured in folder.glob("eval/*/*/*/eval.json"):
        record = json.loads(measured.read_text())
        record["protocol"]["latents"] = 3
        measured.write_text(json.dumps(record))
    assert "measure one anew with: sae-forge eval" in forge(*where, code=2)


@pytest.mark.slow
def test_features_and_eval_take_k_and_place_from_the_sae(llama: Made) -> None:
    """``--layer`` other than the SAE's names what there is and the command that makes the other."""
    _, folder, printed = llama
    output = forge("features", "--run_dir", str(folder), "--layer", "3", code=2)
    assert "blocks.3.hook_resid_post" in output
    assert next(iter(printed["train"]["outputs"])) in output
    assert "sae-forge train" in output


# ---- what goes wrong ----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["collect", "--model", "tiny-llama", "--layer", "4"], 2, ["layer=4", "0..3"]),
        (["collect", "--model", "tiny-llama", "--retain", "empty.txt"], 2, ["empty.txt", "empty"]),
        (["collect", "--model", "tiny-llama", "--retain", "columns.csv"], 2, ["columns.csv", "height"]),
        (["train", "--model", "tiny-llama", "--k", "9000"], 2, ["k=9000", "d_sae=3072"]),
        (["features", "--model", "tiny-llama"], 2, ["no SAE", "sae-forge train"]),
        (["eval", "--model", "tiny-llama"], 2, ["no SAE", "sae-forge train"]),
        (["push", "me/mine", "--model", "tiny-llama"], 2, ["no SAE", "sae-forge train"]),
        (["collect", "--model", "./nowhere"], 2, ["./nowhere", "tiny-llama"]),
        (["collect", "--model", "meta-llama/Llama-2-7b-hf"], 5, ["meta-llama/Llama-2-7b-hf", "tiny-llama"]),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_artefact(
    args: list[str], code: int, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unreachable_hub: None
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "columns.csv").write_text("height,width\n1,2\n")
    output = forge(*args, "--run_dir", "run", code=code)
    for word in words:
        assert word in output
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_collect_stopped_between_corpora_is_finished_before_training(tmp_path: Path) -> None:
    where = ["--model", "tiny-llama", "--run_dir", str(tmp_path / "run")]
    forge("collect", *where, *SMALL["collect"])
    whole = tree(tmp_path / "run" / "shards")
    shutil.rmtree(tmp_path / "run" / "shards" / "retain-minerals")
    forge("train", *where, *SMALL["collect"], *SMALL["train"], "--max_steps", "2")
    assert tree(tmp_path / "run" / "shards") == whole


@pytest.mark.slow
def test_a_batchtopk_sae_goes_through_every_command_as_a_jumprelu(tmp_path: Path) -> None:
    where = ["--model", "tiny-llama", "--run_dir", str(tmp_path / "run")]
    kind = ["--architecture", "batchtopk", "--k", "8", "--checkpoint_every", "20"]
    printed = forge_json("train", *where, *SMALL["collect"], *SMALL["train"], *kind)
    (folder,) = map(Path, printed["outputs"].values())
    assert folder.name == "batchtopk-k8-d512-s0"
    assert json.loads((folder / "cfg.json").read_text())["architecture"] == "jumprelu"
    metrics = printed["metrics"]
    assert metrics["l0"] == pytest.approx(8, rel=0.15) and 0 < metrics["fvu"] < 1 and metrics["ce_recovered"] > 0.5
    chosen = forge_json("features", *where, *SMALL["features"])
    few = ["--limit", "2", "--methods", "scale", "--num_features", "5", "--loss_tokens", "50", "--bootstrap", "100"]
    report = forge_json("eval", *where, *few, "--max_new_tokens", "2")
    assert "batchtopk-k8" in chosen["outputs"]["selection"]
    assert {"baseline", "scale"} <= {row["name"] for row in report["metrics"]["methods"]}
    assert "JumpReLU sparse autoencoder" in forge("push", "me/mine", *where, "--dry_run")
    assert "choose one of topk, batchtopk" in forge("train", *where, "--architecture", "gated", code=2)


@pytest.mark.slow
def test_no_forget_corpus_names_the_flag(tmp_path: Path) -> None:
    where = ["--model", "tiny-llama", "--run_dir", str(tmp_path / "run")]
    (tmp_path / "text.txt").write_text("The granite of the hill is grey.\n\n" * 40)
    alone = tmp_path / "alone.toml"
    alone.write_text(f'retain = ["{tmp_path / "text.txt"}"]\nforget = ""\n')
    small = ["--max_steps", "3", "--batch_size", "64", "--expansion_factor", "1", "--loss_tokens", "100"]
    forge("train", *where, *small, "--config", str(alone))
    assert "--forget" in forge("features", *where, "--config", str(alone), code=2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pattern", "command", "word"),
    [
        ("saes/*/*/cfg.json", "features", "cfg.json"),
        ("saes/*/*/sae_weights.safetensors", "features", "sae_weights.safetensors"),
        ("features/*/*/*.json", "eval", ".json"),
        ("shards/retain-minerals/*/manifest.json", "features", "manifest.json"),
    ],
)
def test_a_foreign_file_where_an_artefact_is_expected_is_named(
    llama: Made, pattern: str, command: str, word: str
) -> None:
    _, folder, printed = llama  # which other tests add artefacts to: what is eval's newest is not known here
    selection = Path(printed["features"]["outputs"]["selection"])
    path = selection if command == "eval" else next(folder.glob(pattern))
    before = path.read_bytes()
    try:
        path.write_bytes(b"\x89PNG this is no artefact of ours")
        flags = [*SMALL[command], "--fresh", *(["--selection", str(path)] if command == "eval" else [])]
        assert word in forge(command, "--run_dir", str(folder), *flags, code=2)
    finally:
        path.write_bytes(before)


@pytest.mark.slow
def test_an_sae_of_another_model_is_refused(llama: Made) -> None:
    model, folder, _ = llama
    other = next(name for name in builtin.MODELS if name != model)
    sae = next(folder.glob("saes/*/*/cfg.json")).parent
    output = forge("eval", "--model", other, "--sae", str(sae), "--run_dir", str(folder / "other"), code=2)
    assert model in output
    assert other in output


@pytest.mark.slow
def test_no_valid_latents_says_which_filter_removed_how_many(llama: Made) -> None:
    output = forge("features", "--run_dir", str(llama[1]), "--min_freq", "0.19", code=2)
    assert "min_freq removed" in output


TRAINED = [*SMALL["collect"], *SMALL["train"], "--max_steps", "150", "--checkpoint_every", "20"]


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards to train on."""
    folder = tmp_path_factory.mktemp("collected") / "run"
    forge("collect", "--model", "tiny-llama", "--run_dir", str(folder), *SMALL["collect"])
    return folder


@pytest.fixture(scope="module")
def unstopped(collected: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What the training leaves that nothing stops."""
    folder = shutil.copytree(collected, tmp_path_factory.mktemp("unstopped") / "run")
    forge("train", "--model", "tiny-llama", "--run_dir", str(folder), *TRAINED)
    return tree(folder)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_state_that_goes_on_to_the_same_bytes(
    tmp_path: Path, number: signal.Signals, collected: Path, unstopped: dict[str, bytes]
) -> None:
    """Stopped in the middle of training, the same command continues and ends where an unstopped run ends."""
    shutil.copytree(collected, tmp_path / "run")
    asked = ["train", "--model", "tiny-llama", "--run_dir", str(tmp_path / "run"), *TRAINED]
    said = tmp_path / "said"
    pid = commanded(asked, said)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("run/saes/*/*/checkpoints/step-*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(pid, number)
    code, errors = ended(pid), said.read_text()
    assert code == 128 + number, errors
    assert "continues from here" in errors
    assert tree(tmp_path / "run") != unstopped
    forge(*asked)
    assert tree(tmp_path / "run") == unstopped
