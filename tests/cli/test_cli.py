"""The command line: its flags are frozen, its help is light, its errors are one line with their own exit code."""

import inspect
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer.main
from tiny_run import TinyRun
from typer.testing import CliRunner

import sae_forge
from cli import screen
from cli.app import build
from cli.called import _program as called_by
from cli.called import as_called
from cli.options import Call
from cli.screen import Screen
from sae_forge.config.collect import CollectConfig
from sae_forge.config.evaluate import EvalConfig
from sae_forge.config.features import FeaturesConfig
from sae_forge.config.fields import described
from sae_forge.config.model import ModelConfig
from sae_forge.config.run import RunConfig
from sae_forge.config.train import TrainConfig
from sae_forge.errors import ConfigError
from sae_forge.outcome import Outcome
from sae_forge.settings import parse_value, presets, resolve
from sae_forge.store.runs import Run
from sae_forge.study.settings import eval_config, features_config, run_config

COMMANDS = ("run", "collect", "train", "features", "eval", "push", "generate", "demo", "report", "verify", "convert")
FLAGS = Path(__file__).parent / "flags.txt"


@pytest.fixture
def resolved(monkeypatch: pytest.MonkeyPatch) -> list[ModelConfig]:
    """Configs that commands would have worked with; the work itself is left out."""
    found: list[ModelConfig] = []

    def run(call: Call, values: dict, **_: bool) -> None:
        found.extend(call._configs(values))

    monkeypatch.setattr(Call, "run", run)
    return found


def invoke(*args: str, code: int = 0) -> str:
    """What a command prints, after checking its exit code."""
    result = CliRunner().invoke(build(only=next(iter(args), None)), list(args))
    assert result.exit_code == code, f"exit {result.exit_code}: {result.output}{result.exception!r}"
    return result.output


def test_flags_are_frozen() -> None:
    """A new flag is a decision: add it to flags.txt; a renamed one breaks somebody's script."""
    group = typer.main.get_command(build())
    listed = [
        f"{name} {'/'.join((*parameter.opts, *parameter.secondary_opts))}"
        for name, command in sorted(group.commands.items())  # pyright: ignore[reportAttributeAccessIssue]
        for parameter in command.params
    ]
    assert sorted(listed) == sorted(FLAGS.read_text().splitlines())


@pytest.mark.slow
def test_help_loads_nothing_that_takes_long(tmp_path: Path) -> None:
    """Of no command: one process prints every page, and what the first loads is still loaded after the last."""
    code = inspect.cleandoc(
        f"""
        import sys
        from cli.app import main
        for command in ((), *((name,) for name in {tuple(COMMANDS)!r})):
            sys.argv = ["sae-forge", *command, "--help"]
            try:
                main()
            except SystemExit as end:
                assert end.code == 0, (command, end.code)
            heavy = [name for name in ("torch", "transformers", "datasets", "numpy", "pydantic") if name in sys.modules]
            assert not heavy, (command, heavy)
        """
    )
    where = {"cwd": tmp_path, "env": os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}}  # of no run
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, **where)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Examples:") == len(COMMANDS)


def test_a_help_page_shows_the_defaults_of_the_run_in_hand(plugged_run: TinyRun) -> None:
    """How it was collected and what its model's preset says, not what stands in the code."""
    assert "default here" not in invoke("collect", "--help")
    page = " ".join(invoke("collect", "--run_dir", str(plugged_run.folder), "--help").split())
    assert "[default here: 24]" in page and "[default here: fp32]" in page
    assert f"in{plugged_run.folder}." in page.replace(" ", "")
    assert "[default here: 64]" in " ".join(invoke("train", "--model=google/gemma-2-2b", "--help").split())
    assert "[default: bf16]" in " ".join(invoke("collect", "--run_dir", "/nowhere", "--help").split())


@pytest.mark.parametrize(
    ("called", "found", "program"),
    [
        ("venv/bin/sae-forge", None, "venv/bin/sae-forge"),
        ("venv/bin/sae-forge", "venv/bin/sae-forge", "sae-forge"),
        ("sae_forge/__main__.py", None, f"{sys.executable} -m sae_forge"),
        ("sae_forge/__main__.py", "venv/bin/sae-forge", "sae-forge"),
        ("pytest/__main__.py", None, "sae-forge"),
    ],
)
def test_a_command_to_paste_is_spelled_as_it_was_called(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, called: str, found: str | None, program: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "venv/bin").mkdir(parents=True)
    (tmp_path / "venv/bin/sae-forge").write_text("")
    monkeypatch.setattr(sys, "argv", [called])
    monkeypatch.setattr(shutil, "which", lambda _: found)
    called_by.cache_clear()
    said = as_called("make one with: sae-forge train --model x, or pip install 'sae-forge[demo]'")
    called_by.cache_clear()
    assert said == f"make one with: {program} train --model x, or pip install 'sae-forge[demo]'"


def test_several_next_commands_stand_a_line_each(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for then, shown in ((("a", "b"), "next:\n  a\n  b\n"), (("a",), "next: a\n"), ("a", "next: a\n")):
        Screen().show(Outcome(run=Run(tmp_path), outputs={}, metrics={}, summary="done", then=then))
        assert capsys.readouterr().out == f"done\n\n{shown}"


def test_somebody_who_watches_sees_that_work_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line now and then in a pipe, a moving one on a terminal, and neither on stdout or after the end."""
    monkeypatch.setattr(screen, "LOG_EVERY", 0.02)
    with Screen(machine=True) as piped:
        time.sleep(0.3)
        with piped.task("load it", None, ""):
            pass
        with piped.task("read", 100, "tokens") as task:
            task.advance(50)
            time.sleep(0.05)
            task.advance(1)
    time.sleep(0.1)
    out, told = capsys.readouterr()
    assert 1 <= told.count("working, ") <= 6 and "load it" not in told
    assert "read: 51/100 tokens, 0 s, about 0 s left" in told and out == ""
    time.sleep(0.1)
    assert capsys.readouterr().err == "", "it is over"
    monkeypatch.setenv("FORCE_COLOR", "1")
    with Screen() as watched:
        with watched.task("load it", None, ""):
            time.sleep(0.2)
        time.sleep(0.2)
    told = capsys.readouterr().err
    assert 0 <= told.index("starting") < told.index("load it") < told.index("working")


def test_seed_commands_parse_verbatim(resolved: list[ModelConfig], tmp_path: Path) -> None:
    """The three commands the field pastes (architecture of the prior repositories) mean what they meant."""
    seed = (
        "train --layer 15 --epochs 5 --batch_size 128 --expansion_factor 8 --k 32 --sae_device cpu --model_device cuda"
    )
    invoke(*seed.split())
    invoke(*["features", "--model", "x/y", "--layer", "15", "--num_features", "100", "--sort_by", "score"])
    invoke(*["eval", "--model", "x/y", "--layer", "15", "--num_features", "100", "--ablation_scale", "-3.0"])
    train, features, evaluation = resolved
    assert isinstance(train, TrainConfig)
    assert (train.layer, train.epochs, train.batch_size, train.k, train.model_device) == ((15,), 5, 128, (32,), "cuda")
    assert isinstance(features, FeaturesConfig)
    assert (features.num_features, features.sort_by) == ((100,), "score")
    assert isinstance(evaluation, EvalConfig)
    assert evaluation.ablation_scale == (-3.0,)


@pytest.mark.parametrize(
    "spelling",
    ["--ablation_scale=-1,-3,-10", "--ablation-scale=-1,-3,-10", "--ablation_scales=-1,-3,-10"],
)
def test_dashes_underscores_and_comma_lists(resolved: list[ModelConfig], spelling: str) -> None:
    invoke("eval", "--model", "x/y", spelling, "--max_samples", "7")
    assert isinstance(resolved[0], EvalConfig)
    assert resolved[0].ablation_scale == (-1.0, -3.0, -10.0)
    assert resolved[0].limit == 7


def test_run_without_a_model_takes_both_built_in_ones(resolved: list[ModelConfig]) -> None:
    invoke("run")
    invoke("run", "--model", "tiny-gemma2")
    invoke("run", "--preset", "inlp-llama2-7b", "--forget", "saga.txt")
    models = [config.model for config in resolved]
    assert models == ["tiny-llama", "tiny-gemma2", "tiny-gemma2", "meta-llama/Llama-2-7b-chat-hf"]
    assert isinstance(resolved[-1], RunConfig)
    assert (resolved[-1].k, resolved[-1].forget) == ((8,), "saga.txt")


def test_flags_beat_the_file_and_the_file_beats_the_preset(resolved: list[ModelConfig], tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('model = "tiny-llama"\nk = 24\nlayer = [2]\nretain = ["a.txt", "b.txt"]\nlr = 1e-3\n')
    invoke("train", "--k", "12", "--config", str(file))
    config = resolved[0]
    assert isinstance(config, TrainConfig)
    assert config.model == "tiny-llama"
    assert (config.k, config.layer, config.retain, config.lr) == ((12,), (2,), ("a.txt", "b.txt"), 1e-3)
    assert config.ctx_len == presets()["tiny"]["settings"]["ctx_len"]


def test_every_preset_resolves_for_every_verb_and_model() -> None:
    for name, preset in presets().items():
        for kind in (CollectConfig, TrainConfig, features_config(), eval_config(), run_config()):
            for model in preset["models"]:
                assert resolve(kind, {"model": model}, preset=name).model == model
        assert set(preset["settings"]) <= set(described(run_config())), name


def test_the_file_names_the_model_of_a_run_and_of_a_verb_that_reads_one(
    resolved: list[ModelConfig], tmp_path: Path
) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('model = "tiny-gemma2"\n')
    invoke("run", "--config", str(file))
    invoke("features", "--config", str(file))
    assert [config.model for config in resolved] == ["tiny-gemma2", "tiny-gemma2"]


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["train", "--k", "many"], 2, ["--k many", "integer"]),
        (["train", "--k", "64", "--d_sae", "32"], 2, ["k=64", "d_sae=32"]),
        (["train", "--bach_size", "3"], 2, ["batch_size"]),
        (["train", "--site", "middle"], 2, ["middle", "resid_post"]),
        (["train", "--layer", "-3"], 2, ["layer=-3"]),
        (["train", "--layer", "3,3"], 2, ["3,3", "once"]),
        (["run", "--preset", "nothing"], 2, ["nothing", "tiny"]),
        (["train", "--config", "absent.toml"], 2, ["absent.toml"]),
        (["eval", "--model", "tiny-llama", "--random_seeds", "1"], 2, ["random_seeds 1", "3"]),
        (["eval", "--model", "tiny-llama", "--ablation_scale", "inf"], 2, ["ablation_scale inf", "finite"]),
        (["generate", "x", "--model", "tiny-llama", "--max_new_tokens", "0"], 2, ["max_new_tokens 0"]),
        (["generate", "x", "--model", "tiny-llama", "--top_p", "0"], 2, ["top_p 0"]),
        (["run", "--model", "tiny-llama", "--layer", "0,2"], 2, ["0,2", "one layer"]),
        (["eval", "--run_dir", "absent"], 2, ["absent", "run.json"]),
        (["train", "--bach_size", "3"], 2, ["Did you mean --batch_size?"]),
        (["eval", "--methods", "scale,clmp"], 2, ["--methods clmp (did you mean clamp?)", "dsg"]),
        (["run", "--preset", "tyni"], 2, ["'tyni'", "did you mean tiny?"]),
        (["collect", "--model", "./tiny-lama"], 2, ["./tiny-lama", "did you mean tiny-llama?"]),
    ],
)
def test_bad_flags_are_one_line(
    args: list[str], code: int, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    output = invoke(*args, code=code)
    for word in words:
        assert word in output
    assert "Traceback" not in output
    assert not list(tmp_path.iterdir()), "nothing may be left behind"


def test_a_config_file_with_an_unknown_setting_lists_the_possible_ones(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("latents_per_token = 3\n")
    output = invoke("train", "--config", str(tmp_path / "bad.toml"), code=2)
    assert "latents_per_token" in output
    assert "batch_size" in output


def test_whole_numbers_are_read_as_people_write_them() -> None:
    kind = features_config()
    assert parse_value(kind, "latents", "0-3,7") == (0, 1, 2, 3, 7)
    assert [parse_value(kind, "max_tokens", raw) for raw in ("1e6", "100M", "2k", "1.5B", "7")] == [
        1_000_000, 100_000_000, 2_000, 1_500_000_000, 7,
    ]  # fmt: skip
    for name, raw in {"latents": "3-0", "max_tokens": "1.5", "num_features": "1-9999999"}.items():
        with pytest.raises(ConfigError, match=f"--{name} {raw}"):
            parse_value(kind, name, raw)


def test_the_version_is_shown() -> None:
    assert invoke("--version") == f"sae-forge {sae_forge.__version__}\n"


@pytest.mark.parametrize("raw", ["", "1,x", "1.5"])
def test_values_of_the_wrong_type_are_refused(raw: str) -> None:
    if raw == "":
        assert parse_value(TrainConfig, "layer", raw) == ()
    else:
        with pytest.raises(ConfigError, match="layer"):
            parse_value(TrainConfig, "layer", raw)
