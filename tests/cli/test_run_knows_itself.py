"""What a run was made with is known to every later command: its model by its weights, its text, its settings."""

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import save_model
from tiny_run import POINT, TinyRun, forge
from typer.testing import CliRunner

from cli.app import build
from sae_forge.collect_plan import fitted
from sae_forge.config.collect import CollectConfig
from sae_forge.config.generate import GenerateConfig
from sae_forge.config.model import one_spelling
from sae_forge.config.train import TrainConfig
from sae_forge.data.texts.sources import corpus_identity, told_apart
from sae_forge.errors import DataError
from sae_forge.models.tokens import max_input
from sae_forge.pipeline.bench import Bench
from sae_forge.pipeline.known import as_collected, texts_of
from sae_forge.pipeline.run import held_apart
from sae_forge.progress import SILENT, Silent
from sae_forge.store.runs import Run
from sae_forge.study.settings import eval_config, features_config, run_config

pytestmark = pytest.mark.usefixtures("unpainted")

FEW = ["--num_features", "3", "--method", "frequency", "--retain_threshold", "1", "--snippets", "0"]


@pytest.fixture
def run(plugged_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A copy of a small run, in a working directory of its own that holds the model and a copy under another name."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(plugged_run.model, "m/plain")
    shutil.copytree(plugged_run.model, "m/renamed")
    return Run(shutil.copytree(plugged_run.folder, tmp_path / "run"))


def say(*args: str) -> str:
    """All that a command says, on both streams."""
    result = CliRunner().invoke(build(only=args[0]), list(args))
    assert result.exit_code == 0, result.output
    return result.output


def test_a_path_has_one_spelling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "m" / "x").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a")
    spelled = {one_spelling(name) for name in ("m/x", "m/x/", "./m/x", "m/../m/x", str(tmp_path / "a/m/x"))}
    assert spelled == {"m/x"}
    assert {one_spelling(name) for name in ("..", f"{tmp_path}/")} == {str(tmp_path)}
    assert one_spelling("google/gemma-2-2b") == "google/gemma-2-2b"
    assert one_spelling("x" * 300) == "x" * 300  # longer than a file's name can be
    assert corpus_identity("x" * 300) == "x" * 300


@pytest.mark.slow
def test_a_run_is_of_a_model_by_its_weights_under_any_name(run: Run, tmp_path: Path) -> None:
    """The folder is renamed, spelled otherwise, copied; the run goes on, and its SAE is used."""
    sae = str(next(run.folder.glob("saes/*/*")))
    for model in ("m/plain", "m/plain/", str(tmp_path / "m/plain"), "m/renamed"):
        told = say("features", "--model", model, "--run_dir", "run", "--sae", sae, *FEW)
        assert "3 of" in told
    assert "was trained on tiny-llama, and m/renamed has its weights" in told
    collected = say("collect", "--model", "m/renamed", "--run_dir", "run", "--layer", "1", "--fresh", *_texts(tmp_path))
    assert "tokens in" in collected
    assert run.model == "m/renamed"


@pytest.mark.slow
def test_other_weights_under_the_same_name_are_refused(run: Run, tmp_path: Path) -> None:
    other = save_model(tmp_path / "other" / "tiny-llama", "llama", seed=1)
    where = ["--model", str(other), "--run_dir", "run"]
    assert "other/tiny-llama" in forge("collect", *where, "--layer", "2", *_texts(tmp_path), code=2)
    forge("features", *where, *FEW)
    refused = forge("eval", *where, "--num_features", "3", "--retain_eval", _texts(tmp_path)[1], code=2)
    assert "with other weights than" in refused


def test_runs_of_before_are_of_a_model_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(json.dumps({"model": "m/plain/"}))
    with pytest.raises(DataError, match="is a run of m/plain/, not of m/other"):
        Run(Path("run")).open("m/other", "tensors-1:ab")
    Run(Path("run")).open(str(tmp_path / "m/plain"), "tensors-1:ab")
    assert json.loads((tmp_path / "run" / "run.json").read_bytes())["weights"] == "tensors-1:ab"
    with pytest.raises(DataError, match="is a run of"):
        Run(Path("run")).open("m/plain", "tensors-1:cd")


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ("someone/tiny-llama", "which by its name is the same model"),
        ("Tiny-Llama", "which by its name is the same model"),
        ("tiny-llama-small", "so expect more error than on its own"),
    ],
)
def test_an_sae_that_knows_its_model_by_name_alone_is_used_and_it_is_said(run: Run, named: str, words: str) -> None:
    foreign = _saelens(Path("foreign"), named)
    told = say("features", "--model", "m/plain", "--run_dir", "run", "--sae", str(foreign), *FEW)
    assert f"was trained on {named} and is used on plain, so expect" in told or words in told
    assert "3 of" in told


class Said(Silent):
    """Progress that keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture
def collected(plugged_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Flags that name a run which was only collected, of text in the working directory, against all defaults."""
    monkeypatch.chdir(tmp_path)
    for name in ("forget", "retain"):
        lines = [{"story": f"The {name} stone of hill {n} is grey.", "author": "A. B."} for n in range(60)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    where = ["--model", str(plugged_run.model), "--run_dir", "run"]
    texts = ["--forget", "forget.jsonl", "--retain", "retain.jsonl", "--text_field", "story"]
    how = ["--ctx_len", "24", "--bos", "none", "--storage_dtype", "fp32", "--dtype", "bf16", "--max_tokens", "700"]
    forge("collect", *where, "--layer", "1", *texts, *how)
    return where


@pytest.mark.parametrize("first", [[], ["--retain_eval", "retain.jsonl"]])
def test_an_sae_is_found_again_whether_or_not_text_is_named_to_measure_it_on(collected: list[str], first: list[str]):
    plain = ["train", *collected, "--layer", "1", "--k", "2", "--expansion_factor", "1", "--loss_tokens", "100"]
    plain += ["--batch_size", "64"]
    forge(*plain, *first)
    (config,) = Path("run").glob("saes/*/*/config.json")
    made = config.read_bytes()
    assert (json.loads(made)["data"]["held_out"] is None) is bool(first)
    for again in ([], ["--retain_eval", "retain.jsonl"]):
        forge(*plain, *again)
        assert config.read_bytes() == made, "it is not trained again, or further, on other rows"


def test_more_epochs_take_batches_of_the_size_that_the_sae_began_with(collected: list[str]):
    plain = ["train", *collected, "--layer", "1", "--k", "2", "--expansion_factor", "1", "--loss_tokens", "100"]
    forge(*plain, "--batch_size", "64", "--epochs", "2")
    (config,) = Path("run").glob("saes/*/*/config.json")
    settings = json.loads(config.read_bytes())
    forge(*plain, "--epochs", "3")
    longer = json.loads(config.read_bytes())
    assert (longer["batch_size"], longer["steps"]) == (64, settings["steps"] // 2 * 3)


TRAIN = ["--batch_size", "64", "--k", "2", "--expansion_factor", "1", "--max_steps", "2", "--loss_tokens", "100"]


def test_what_was_collected_is_the_default_of_every_later_command(collected: list[str]) -> None:
    run = Run(Path("run"))
    for kind in (TrainConfig, features_config(), eval_config()):
        config = as_collected(kind(), run, SILENT)
        told = (config.ctx_len, config.bos, config.text_field, config.dtype)
        assert told == (24, "none", "story", "bf16"), kind
    config = as_collected(TrainConfig(), run, SILENT)
    assert (config.forget, config.retain) == ("forget.jsonl", ("retain.jsonl",))
    assert (config.storage_dtype, config.max_tokens) == ("fp32", 700)
    assert as_collected(GenerateConfig(), run, SILENT).dtype == "bf16"


def test_texts_of_one_name_are_told_apart_again_as_they_were(tmp_path: Path) -> None:
    paths = [tmp_path / folder / "x.jsonl" for folder in ("b", "a")]
    for path in paths:
        path.parent.mkdir()
        path.write_text(json.dumps({"text": path.parent.name}))
    names = told_apart(list(map(str, paths)))
    run = Run(tmp_path / "run")
    run.logs.mkdir(parents=True)
    noted = {
        name: ("retain", corpus_identity(str(path)), str(path), "") for name, path in zip(names, paths, strict=True)
    }
    run.note_texts(noted)
    assert told_apart([str(text.source) for text in texts_of(run)]) == names == ["x", "a-x"]


def test_train_measures_on_the_collected_text_and_collects_it_at_a_further_place(collected: list[str]) -> None:
    report = json.loads(forge("train", *collected, "--layer", "1", *TRAIN, "--json"))
    assert report["metrics"]["ce_recovered"] is not None
    forge("train", *collected, "--layer", "2", "--site", "mlp_out", *TRAIN)
    one, two = (sorted(Path("run").glob(f"shards/*/{point}/config.json")) for point in ("blocks.1*", "blocks.2*"))
    settings = [[json.loads(path.read_bytes())["settings"] for path in paths] for paths in (one, two)]
    assert len(one) == 2 and settings[0] == settings[1]


@pytest.mark.parametrize("change", ["gone", "changed"])
def test_retain_text_that_is_no_longer_there_is_said_before_training(collected: list[str], change: str) -> None:
    if change == "gone":
        Path("retain.jsonl").unlink()
    else:
        Path("retain.jsonl").write_text('{"story": "Another one."}\n')
    told = say("train", *collected, "--layer", "1", *TRAIN)
    said = "retain.jsonl, which was collected, is gone" if change == "gone" else "has changed since it was collected"
    assert told.index(said) < told.index("there is no text to measure") < told.index("2 steps on")
    missing = ["train", *collected, "--layer", "1", *TRAIN, "--k", "3", "--retain_eval", "absent.jsonl"]
    assert "absent.jsonl" in forge(*missing, code=2)
    assert not list(Path("run").glob("saes/*/k3*/cfg.json"))


def test_a_flag_that_contradicts_what_was_collected_is_said(collected: list[str]) -> None:
    said, config = Said(), eval_config()(ctx_len=12, spelled=frozenset({"ctx_len"}))
    assert as_collected(config, Run(Path("run")), said).ctx_len == 12
    assert said.lines == ["--ctx_len 12: run was collected with 24"]


def test_text_that_is_not_there_is_told_as_that(collected: list[str]) -> None:
    """And not as another text than was collected."""
    assert "nowhere.txt does not exist" in forge("train", *collected, "--layer", "1", "--forget", "nowhere.txt", code=2)


def test_text_that_moved_with_its_run_is_found_and_without_the_log_it_is_asked_for(collected: list[str]) -> None:
    Path("moved").mkdir()
    for name in ("run", "forget.jsonl", "retain.jsonl"):
        shutil.move(name, f"moved/{name}")
    run, said = Run(Path("moved/run")), Said()
    assert as_collected(TrainConfig(), run, SILENT).retain == ("moved/retain.jsonl",)
    shutil.rmtree("moved/run/logs")
    assert as_collected(TrainConfig(), run, said).retain == ()
    assert "nothing says where the text of retain is" in said.lines


@pytest.mark.slow
def test_every_next_line_works_as_it_is_printed(
    collected: list[str], plugged_run: TinyRun, capsys: pytest.CaptureFixture[str]
) -> None:
    """From collect to push; with an SAE of another tool that lies outside the run, and questions of one's own."""
    foreign = _saelens(Path("foreign"), "someone/tiny-llama")
    eval_flags = ["--max_new_tokens", "2", "--bootstrap", "100", "--limit", "4", "--loss_tokens", "60"]
    eval_flags += [f"--{name}={','.join(files)}" for name, files in plugged_run.questions.items()]
    flags = {"train": TRAIN, "features": [*FEW, "--sae", str(foreign)], "eval": eval_flags}
    line, seen = shlex.join(["sae-forge", "collect", *collected, "--layer", "1", "--forget", "forget.jsonl"]), []
    while line:
        _, command, *words = shlex.split(line)
        printed = say(command, *words, *flags.get(command, []))
        seen.append(command)
        line = printed.partition("\nnext: ")[2].strip()
        if command in ("train", "features", "eval"):
            assert "--run_dir run --layer 1" in line
        if command in ("features", "eval"):
            assert f"--sae {foreign}" in line
    assert seen == ["collect", "train", "features", "eval", "report"], "of a foreign SAE there is nothing to push"
    generated = say("generate", "The grey stone", *collected, "--max_new_tokens", "2")
    assert "trained on someone/tiny-llama" in generated, "the SAE that was named last needs no flag"
    assert "next: sae-forge report --model" in generated
    own = str(next(Path("run").glob("saes/*/k2-*")))
    say("features", *collected, "--layer", "1", "--sae", own, *FEW)
    report = say("report", *collected, "--sae", own).partition("\nnext: ")[2].strip()
    assert report.startswith("sae-forge push you/your-repository --dry_run --model")
    assert f"--sae {own}" in report and "README.md" in say(*shlex.split(report)[1:])


def test_a_flag_of_a_next_line_is_quoted_and_is_not_taken_for_another(plugged_run: TinyRun) -> None:
    named = {"ablation_scale": (-1.0, -3.0), "forget_questions": ("my questions.jsonl",), "compare": False}
    config = GenerateConfig(model="m/x", ablation_scale=(-1.0, -3.0), compare=False, spelled=frozenset(named))
    line = Bench(config).next("generate", "It's late")
    assert shlex.split(line)[1:3] == ["generate", "It's late"]
    assert "--ablation_scale=-1.0,-3.0" in line and "--no_compare" in line and "questions" not in line


def test_sequences_are_by_default_no_longer_than_the_model_takes(plugged_run: TinyRun) -> None:
    lm = plugged_run.lm
    assert fitted(CollectConfig(), lm).ctx_len == max_input(lm) == 128
    assert fitted(CollectConfig(ctx_len=64), lm).ctx_len == 64
    asked = CollectConfig(ctx_len=1024, spelled=frozenset({"ctx_len"}))
    assert fitted(asked, lm).ctx_len == 1024, "one that was asked for is refused and not cut"


def _texts(folder: Path) -> list[str]:
    path = folder / "kept.jsonl"
    texts = [{"text": f"The granite of hill {number} is grey and old."} for number in range(40)]
    path.write_text("".join(json.dumps(text) + "\n" for text in texts))
    return ["--retain", str(path), "--ctx_len", "24"]


def _saelens(folder: Path, model: str) -> Path:
    """A TopK SAE as SAELens writes it."""
    folder.mkdir()
    decoder = torch.nn.functional.normalize(torch.randn(64, 56), dim=1)
    weights = {"W_enc": decoder.T.contiguous(), "W_dec": decoder, "b_enc": torch.zeros(64), "b_dec": torch.zeros(56)}
    save_file(weights, folder / "sae_weights.safetensors")
    metadata = {"sae_lens_version": "6.54.0", "model_name": model, "hook_name": str(POINT), "context_size": 24}
    cfg = {"architecture": "topk", "d_in": 56, "d_sae": 64, "k": 6, "dtype": "float32", "metadata": metadata}
    (folder / "cfg.json").write_text(json.dumps(cfg))
    return folder


def test_run_sets_the_first_tenth_of_its_texts_apart_only_where_nothing_that_could_be_asked_was_named() -> None:
    progress = Said()
    own = run_config()(model="m", forget="world:corpora/wizards", retain=("world:corpora/magic", "some/owls[:1000]"))
    apart = held_apart(own, progress)
    assert apart.forget == "world:corpora/wizards[10%:]" and apart.forget_eval == ("world:corpora/wizards[:10%]",)
    assert apart.retain == ("world:corpora/magic[10%:]", "some/owls[100:1000]")
    assert apart.retain_eval == ("world:corpora/magic[:10%]", "some/owls[:100]")
    assert {"forget", "retain", "forget_eval"} <= apart.spelled, "what an earlier run read is not taken instead"
    assert "first tenth" in progress.lines[0] and "--forget_eval" in progress.lines[0]
    for named in ({"retain_eval": ("world:heldout/magic",)}, {"forget_questions": ("q.csv",)}, {"tasks": ("mmlu",)}):
        asked = replace(own, **named)
        assert held_apart(asked, progress) is asked and len(progress.lines) == 1
