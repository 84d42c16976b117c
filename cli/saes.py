"""``sae-forge saes``."""

import inspect
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import DEBUG, JSON, PlainCall
from cli.pages import Page

if TYPE_CHECKING:
    from cli.screen import Screen
    from sae_forge.outcome import Outcome

EXAMPLES = """
sae-forge saes --model google/gemma-2-2b --layer 12
sae-forge saes "gemma-scope 16k" --site mlp_out
sae-forge saes qwen --json
"""


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("saes", cls=Page, epilog="Examples:\n\n\b\n" + inspect.cleandoc(EXAMPLES))
    def saes(
        words: Annotated[str | None, typer.Argument(metavar="[FILTER]", help="Words that its name holds.")] = None,
        model: Annotated[str | None, typer.Option("--model", help="Made on this model, however it is spelled.")] = None,
        layer: Annotated[int | None, typer.Option("--layer", min=0, help="Reads in this layer.")] = None,
        site: Annotated[str | None, typer.Option("--site", help="Reads at this site: resid_post, mlp_out, z …")] = None,
        json: JSON = False,
        debug: DEBUG = False,
    ) -> None:
        """List released SAEs that --sae opens by name, and why it does not open the rest; needs SAELens installed."""
        call = PlainCall(name="saes", body=_saes)
        call.run({"words": words, "model": model, "layer": layer, "site": site}, machine=json, debug=debug)


def _saes(asked: dict[str, Any], screen: "Screen") -> "Outcome":
    from sae_forge.pipeline.saes import saes

    del screen
    return saes(asked.pop("words"), **asked)
