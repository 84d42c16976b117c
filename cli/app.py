"""The Typer app; every verb is one file beside this one."""

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
    """Run the command line."""
    app()
