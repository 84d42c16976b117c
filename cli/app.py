"""The Typer app; every verb is one file beside this one."""

import importlib
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, NoReturn

import typer

import sae_forge
from sae_forge.errors import ForgeError
from sae_forge.study.settings import (
    catalogue,
    demo_config,
    eval_config,
    features_config,
    generate_config,
    run_config,
)

VERBS = {
    "run": "run", "collect": "collect", "train": "train", "features": "features", "eval": "evaluate", "push": "push",
    "generate": "generate", "demo": "demo", "init": "init", "report": "report", "verify": "verify", "doctor": "doctor", "saes": "saes",
    "convert": "convert", "export": "export",
}  # fmt: skip
"""The file of each command. Only that of the one at work is imported, since every file brings its config."""
COMPOSED = {
    "run": run_config,
    "features": features_config,
    "eval": eval_config,
    "generate": generate_config,
    "demo": demo_config,
}
"""Commands whose settings are those of tasks, methods and selections too."""


def build(plugins: Sequence[str] = (), only: str | None = None) -> typer.Typer:
    """The app, whose flags and choices are those of the tasks, methods and selections that ship and of the plug-ins.

    Args:
        only: The one command to make flags for, which are hundreds in all; where it names none, every one is made.

    Raises:
        ConfigError: a plug-in cannot be imported or does not hold what one may.
    """
    made = typer.Typer(
        name="sae-forge",
        help="From a language model to an audited unlearning result: collect, train, features, eval, push.",
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={
            "help_option_names": ["-h", "--help"],
            "token_normalize_func": lambda name: name.replace("-", "_"),
            "max_content_width": 110,
            # unset, they are None, which Typer loads pydantic to read: a third of the time that a help page takes
            "default_map": dict.fromkeys(("help", "install_completion", "show_completion"), False),
        },
    )
    known = catalogue(tuple(plugins))
    for name in [only] if only in VERBS else VERBS:
        verb, composed = importlib.import_module(f"cli.{VERBS[name]}"), COMPOSED.get(name)
        verb.register(made, *([] if composed is None else [composed(known)]))

    def above(version: Annotated[bool, VERSION] = False) -> None:
        del version

    made.callback()(above)  # without one Typer takes a command that stands alone without its name
    return made


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"sae-forge {sae_forge.__version__}")
        raise typer.Exit


VERSION = typer.Option("--version", help="Show the version.", is_eager=True, callback=_show_version)


def main() -> None:
    """Run the command line; Ctrl-C before a verb has begun ends it as one that comes later does.

    What other libraries have to say of themselves is kept out of what a user reads, unless the user asked for it.
    """
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", module=r"(?!sae_forge\b|cli\b)")
    for name in ("TRANSFORMERS_VERBOSITY", "DATASETS_VERBOSITY", "HF_HUB_VERBOSITY"):
        os.environ.setdefault(name, "error")
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)
    try:
        build(named_plugins(sys.argv[1:]), only=next(iter(sys.argv[1:]), None))()
    except ForgeError as error:  # of a plug-in, since a verb tells its own
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:  # a second one, while the first was being obeyed
        raise SystemExit(128 + signal.SIGINT) from None


def named_plugins(arguments: Sequence[str]) -> tuple[str, ...]:
    """The modules that ``--plugin`` names: they are looked for before flags are read, because they bring flags."""
    spaced = [value for flag, value in pairwise(arguments) if flag == "--plugin"]
    joined = [value for flag, _, value in (each.partition("=") for each in arguments) if flag == "--plugin"]
    return tuple(dict.fromkeys(name for value in (*spaced, *joined) for name in value.split(",") if name))


def _leave(number: int, frame: object) -> NoReturn:
    del frame
    raise SystemExit(128 + number)
