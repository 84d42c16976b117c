"""The Typer app; every verb is one file beside this one."""

import signal
from typing import NoReturn

import typer

from cli import collect, evaluate, features, generate, push, report, run, train, verify

app = typer.Typer(
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


for command in (run, collect, train, features, evaluate, push, generate, report, verify):
    command.register(app)


def main() -> None:
    """Run the command line; Ctrl-C before a verb has begun ends it as one that comes later does."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)
    try:
        app()
    except KeyboardInterrupt:  # a second one, while the first was being obeyed
        raise SystemExit(128 + signal.SIGINT) from None


def _leave(number: int, frame: object) -> NoReturn:
    del frame
    raise SystemExit(128 + number)
