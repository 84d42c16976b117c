"""The Typer app; every verb is one file beside this one."""

import signal
import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import NoReturn

import typer

from cli import collect, evaluate, features, generate, push, report, run, train, verify
from sae_forge.errors import ForgeError
from sae_forge.study.settings import catalogue, eval_config, features_config, run_config


def build(plugins: Sequence[str] = ()) -> typer.Typer:
    """The app, whose flags and choices are those of the tasks, methods and selections that ship and of the plug-ins.

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
        },
    )
    known = catalogue(tuple(plugins))
    run.register(made, run_config(known))
    collect.register(made)
    train.register(made)
    features.register(made, features_config(known))
    evaluate.register(made, eval_config(known))
    for command in (push, generate, report, verify):
        command.register(made)
    return made


app = build()


def main() -> None:
    """Run the command line; Ctrl-C before a verb has begun ends it as one that comes later does."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)
    try:
        plugins = named_plugins(sys.argv[1:])
        (build(plugins) if plugins else app)()
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
