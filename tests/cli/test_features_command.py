"""``features`` and ``train`` through the command line: shards that contradict a flag, several methods, refusal text."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.app import build
from sae_forge.data.shards import ShardReader
from sae_forge.features.selection import Selection
from sae_forge.features.sparsity_files import read_sparsity
from sae_forge.store.runs import Run

pytestmark = pytest.mark.usefixtures("unpainted")

SMALL = ["--max_tokens", "3000", "--model_batch_size", "8"]
TRAIN = ["--max_steps", "20", "--batch_size", "512", "--expansion_factor", "2", "--loss_tokens", "500"]
FEATURES = ["--num_features", "4", "--max_neutral_freq", "0.2", "--min_ratio", "1", "--min_target_fires", "2"]
FEATURES += ["--snippets", "1", "--max_freq", "1"]


def forge(*args: str, code: int = 0) -> str:
    """What a command prints, after checking its exit code; an error must be one line without a traceback."""
    result = CliRunner().invoke(build(only=args[0]), list(args))
    assert result.exit_code == code, f"exit {result.exit_code}: {result.output}{result.exception!r}"
    if code:
        assert result.output.count("error: ") == 1, result.output
    return result.stdout if code == 0 else result.output


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with shards of one forget and three retain corpora, and a small SAE."""
    folder = tmp_path_factory.mktemp("features") / "run"
    forge("train", "--model", "tiny-llama", "--run_dir", str(folder), *SMALL, *TRAIN)
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "features"])
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--ctx_len", "64"], ["--ctx_len expected 64, found 128"]),
        (["--bos", "none"], ["--bos expected 'none', found 'row'"]),
        (["--max_tokens", "2000"], ["--max_tokens expected 2000, found 3000"]),
        (["--storage_dtype", "bf16"], ["--storage_dtype expected 'bf16', found 'fp32'"]),
        (["--dtype", "bf16"], ["--dtype expected 'bfloat16', found 'float32'"]),
        (["--retain", "world:corpora/geography"], ["--retain expected 'world:corpora/geography", "everyday"]),
        (["--forget", "world:corpora/geography"], ["--forget expected 'world:corpora/geography", "wizards"]),
    ],
)
def test_a_flag_that_the_shards_contradict_is_named(
    trained: Path, command: str, flags: list[str], words: list[str]
) -> None:
    before = sorted(trained.rglob("*"))
    output = forge(command, "--model", "tiny-llama", "--run_dir", str(trained), *flags, code=2)
    for word in words:
        assert word in output
    assert "Leave the flag out" in output
    assert sorted(trained.rglob("*")) == before


@pytest.mark.slow
def test_a_file_spells_settings_out_and_a_preset_does_not(trained: Path, tmp_path: Path) -> None:
    """The preset's max_tokens is a default, and the shards have another: no contradiction."""
    where = ["--model", "tiny-llama", "--run_dir", str(trained)]
    forge("features", *where, *FEATURES)
    forge("features", *where, *FEATURES, "--max_tokens", "3000", "--ctx_len", "128", "--dtype", "fp32")
    file = tmp_path / "mine.toml"
    file.write_text("ctx_len = 32\n")
    assert "--ctx_len expected 32, found 128" in forge("features", *where, "--config", str(file), code=2)


@pytest.mark.slow
def test_a_corpus_that_was_named_and_is_missing_is_collected_like_the_others(run: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept.txt"
    kept.write_text("\n\n".join(f"The granite of hill {number} is grey and old." for number in range(200)))
    named = ",".join(f"world:corpora/{name}" for name in ("geography", "minerals", "everyday"))
    where = ["--model", "tiny-llama", "--run_dir", str(run), *FEATURES]
    found = json.loads(forge("features", *where, "--retain", f"{named},{kept}", "--json"))
    selection = Selection.load(Path(found["outputs"]["selection"]))
    assert set(selection.retain_corpora) == {"everyday", "geography", "kept", "minerals"}
    fingerprint = ShardReader(next(run.glob("shards/retain-kept/*"))).fingerprint
    assert (fingerprint.max_tokens, fingerprint.ctx_len, fingerprint.batch_size) == (3000, 128, 8)


@pytest.mark.slow
def test_the_first_method_named_is_what_eval_takes(run: Path) -> None:
    where = ["--model", "tiny-llama", "--run_dir", str(run), *FEATURES]
    folder = Run(run)
    (sae,) = folder.saes()

    def newest() -> str:
        found = folder.selection_of(sae)
        return Selection.load(found).method if found else ""

    printed = json.loads(forge("features", *where, "--method", "top_mean,inlp,random_matched", "--json"))
    assert newest() == printed["metrics"]["method"] == "top_mean"
    assert list(printed["metrics"]["selections"]) == ["top_mean", "inlp", "random_matched"]
    assert {"selection", "plot", "top_mean", "inlp", "random_matched"} == set(printed["outputs"])
    made = Path(printed["outputs"]["inlp"])
    content = made.read_bytes()
    forge("features", *where, "--method", "inlp")
    assert newest() == "inlp"
    assert made.read_bytes() == content
    forge("features", *where, "--method", "top_mean,inlp,random_matched")
    assert newest() == "top_mean"
    assert "eval takes random" in forge("features", *where, "--method", "random,all")
    assert newest() == "random"


@pytest.mark.slow
def test_refusal_text_is_read_and_never_trained_on(run: Path, tmp_path: Path) -> None:
    refusals = tmp_path / "refusals.txt"
    refusals.write_text("\n\n".join(f"I cannot help with question {number}." for number in range(120)))
    where = ["--model", "tiny-llama", "--run_dir", str(run)]
    before = (run / "saes").rglob("sae_weights.safetensors").__next__().read_bytes()
    flags = [*FEATURES, "--method", "conditional", "--retain_threshold", "0.9", "--refusal", str(refusals)]
    found = json.loads(forge("features", *where, *flags, "--json"))["metrics"]["refusal_latent"]
    assert isinstance(found, int)
    assert ShardReader(next(run.glob("shards/refusal-refusals/*"))).fingerprint.role == "refusal"
    again = json.loads(forge("features", *where, *flags, "--json"))
    assert again["metrics"]["refusal_latent"] == found
    named = [*FEATURES, "--refusal_latent", "7", "--json"]
    assert json.loads(forge("features", *where, *named))["metrics"]["refusal_latent"] == 7
    forge("train", *where, *SMALL, *TRAIN)
    assert (run / "saes").rglob("sae_weights.safetensors").__next__().read_bytes() == before
    assert "give one of them" in forge("features", *where, *flags, "--refusal_latent", "7", code=2)


@pytest.mark.slow
def test_a_threshold_left_open_is_each_methods_own(run: Path) -> None:
    where = ["--model", "tiny-llama", "--run_dir", str(run), *FEATURES]
    output = forge("features", *where, "--method", "conditional", code=2)
    assert "none of the" in output and "retain_threshold removed" in output
    forge("features", *where, "--method", "conditional", "--retain_threshold", "0.5")
    # in SAEBench's files the rule of the method takes the same latents, wherever frequencies differ
    (folder,) = run.glob("features/*/*/saebench")
    (selection,) = folder.parent.glob("conditional-*.json")
    forget, retain = read_sparsity(folder)
    chosen = json.loads(selection.read_text())["latents"]
    assert len(forget) == json.loads(selection.read_text())["d_sae"]
    assert [forget[one["index"]] for one in chosen] == [round(one["forget_frequency"], 6) for one in chosen]
    assert [retain[one["index"]] for one in chosen] == [round(one["retain_frequency"], 6) for one in chosen]
    assert "method" in forge("features", *where, "--method", "fisher", code=2)
