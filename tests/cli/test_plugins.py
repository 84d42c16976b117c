"""Tasks, methods and selections of one's own: named with ``--plugin``, listed with those that ship, or refused."""

import signal
import sys
import warnings
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.app import build, main, named_plugins
from sae_forge.errors import ConfigError
from sae_forge.study.settings import catalogue, catalogue_of, eval_config, features_config, run_config

PLUGIN = '''
"""A task with a setting of its own, a method and a way of selecting."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from sae_forge.config.fields import Setting
from sae_forge.config.model import ModelConfig
from sae_forge.features.methods.method import SelectionMethod
from sae_forge.methods.method import Method, titled


@dataclass(frozen=True, kw_only=True)
class ToySettings(ModelConfig):
    heading: ClassVar[str] = "Toys"
    toys: Annotated[int, "Toys to play with.", Setting(at_least=1)] = 2


@dataclass(frozen=True, kw_only=True)
class Toy:
    name = "toy"
    title = "Toys"
    group = None
    measures = ()
    settings = ToySettings
    tuned_on = True
    writes = False

    def load(self, lm, config, *, half, limit, progress):
        return ()

    def ask(self, lm, asked, *, batch_size, done):
        return []


def nothing(*given):
    return []


TASKS = (Toy(),)
METHODS = (Method(name="nudge", kind="hook", title=titled("Nudge"), from_flags=nothing, build=nothing),)
SELECTIONS = (SelectionMethod(name="lucky", words="any", rank=nothing),)
'''


@pytest.fixture
def plugin(tmp_path: Path) -> str:
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN)
    return str(path)


def test_what_a_plugin_brings_is_a_flag_a_choice_and_a_part_of_the_config(plugin: str) -> None:
    known = catalogue((plugin,))
    for kind in (eval_config(known), run_config(known)):
        config = kind(toys=3)  # pyright: ignore[reportCallIssue]
        assert config.deciding("report")["toys"] == 3
        assert catalogue_of(config) is known
        with pytest.raises(ConfigError, match="--toys 0: give a value at least 1"):
            kind(toys=0)  # pyright: ignore[reportCallIssue]
    assert [entry.name for entry in known.tasks][-1] == "toy"
    assert [name for name, _ in known.plugins] == [plugin]
    assert "toys" not in eval_config()().settings()
    assert catalogue_of(features_config()()) is catalogue()


def test_a_plugin_is_named_on_the_command_line(plugin: str) -> None:
    page = CliRunner().invoke(build((plugin,)), ["eval", "--help"]).output
    assert "Toys:\n  --toys INT" in page
    assert "nudge" in page
    assert "lucky" in CliRunner().invoke(build((plugin,)), ["features", "--help"]).output
    assert "--toys" not in CliRunner().invoke(build(), ["eval", "--help"]).output


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ("eval --plugin a,b --plugin=c --json", ("a", "b", "c")),
        ("eval --limit 3", ()),
        ("eval --plugin", ()),
    ],
)
def test_plugins_are_found_before_there_are_flags(arguments: str, names: tuple[str, ...]) -> None:
    assert named_plugins(arguments.split()) == names


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ('name = "toy"', 'name = "Toy!"', "'Toy!'"),
        ('name="nudge"', 'name="scale"', "holds scale, and there is one of that name"),
        ("toys:", 'half: Annotated[int, "Half a toy."] = 1\n    toys:', "--half of toy is a setting already"),
        ("settings = ToySettings", "settings = int", "settings of toy must be"),
        ("title = ", "subtitle = ", "holds a Toy without title"),
        ("METHODS = (", "METHODS = (3,", "holds a int; give a Method"),
        ("TASKS = (Toy(),)", "TASKS = [Toy()]", "TASKS is a list"),
        ("group = None", 'group = "domains"', "the group domains of toy is a key of every row"),
        (
            "def nothing",
            'raise RuntimeError("no\\nluck")\n\n\ndef nothing',
            "cannot be imported: RuntimeError: no luck",
        ),
        ("def nothing", "1 / 0\n\n\ndef nothing", "cannot be imported: ZeroDivisionError"),
        ("def nothing", "raise SystemExit(3)\n\n\ndef nothing", "cannot be imported: SystemExit: 3"),
        ("def nothing", "assert False\n\n\ndef nothing", "cannot be imported: AssertionError"),
        ("from dataclasses import", "from dataklasses import", "cannot be imported: ModuleNotFoundError"),
    ],
)
def test_a_plugin_that_does_not_fit_ends_in_one_line(
    plugin: str,
    before: str,
    after: str,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path(plugin).write_text(PLUGIN.replace(before, after))
    for name in ("TRANSFORMERS", "DATASETS", "HF_HUB"):  # which are set for the process that a command has to itself
        monkeypatch.setenv(f"{name}_VERBOSITY", "error")
    monkeypatch.setattr(signal, "signal", lambda *given: None)
    monkeypatch.setattr(sys, "argv", ["sae-forge", "eval", "--plugin", plugin])
    with warnings.catch_warnings(), pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("error: --plugin")
    assert words in told
    assert told.count("\n") == 1


def test_a_module_without_tables_is_no_plugin() -> None:
    with pytest.raises(ConfigError, match="has none of TASKS, METHODS, SELECTIONS"):
        catalogue(("json",))
    with pytest.raises(ConfigError, match="no_such_module"):
        catalogue(("no_such_module",))
