"""The Typer app; every verb is one file beside this one."""

import sys

import typer

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


def main() -> None:
    """Run the command line; Ctrl-C before a verb has begun exits 130 as it does later."""
    try:
        from cli import collect, evaluate, features, generate, push, report, run, train

        for command in (run, collect, train, features, evaluate, push, generate, report):
            command.register(app)
        app()
    except KeyboardInterrupt:
        sys.exit(130)
