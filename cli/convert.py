"""``sae-forge convert``."""

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import DEBUG, JSON, PlainCall
from cli.pages import Page
from sae_forge.sae.formats.table import WRITTEN, flag

if TYPE_CHECKING:
    from cli.screen import Screen
    from sae_forge.outcome import Outcome

EXAMPLES = """
sae-forge convert google/gemma-scope-2b-pt-res:layer_12/width_16k/average_l0_82 --to saelens --out converted/l12
sae-forge convert checkpoints/tiny-llama/saes/blocks.1.hook_resid_post/k16-d3072-s0 --to sparsify --out converted
sae-forge convert ae/resid_post_layer_3 --to gemma-scope-2 --out converted/l3 --allow_pickle
"""


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("convert", cls=Page, epilog="Examples:\n\n\b\n" + inspect.cleandoc(EXAMPLES))
    def convert(
        sae: Annotated[str, typer.Argument(metavar="SAE", help="Whatever --sae takes elsewhere.")],
        to: Annotated[str, typer.Option("--to", metavar="|".join(map(flag, WRITTEN)), help="Format to write.")],
        out: Annotated[Path, typer.Option("--out", metavar="PATH", help="Folder that it goes into.")],
        model: Annotated[str | None, typer.Option("--model", help="Its model, where its files do not say it.")] = None,
        layer: Annotated[int | None, typer.Option("--layer", min=0, help="Its layer, where nothing says it.")] = None,
        site: Annotated[str | None, typer.Option("--site", help="Its site, where nothing says it.")] = None,
        allow_pickle: Annotated[
            bool, typer.Option("--allow_pickle", help="Read weights that are a pickle, in a limited process.")
        ] = False,
        json: JSON = False,
        debug: DEBUG = False,
    ) -> None:
        """Write an SAE in a format of another tool, acts and output as they were; refused where it cannot say them.

        Nothing is written before that is known, and the folder is there whole or not at all.
        """
        call = PlainCall(name="convert", body=_convert)
        asked = {"source": sae, "to": to, "out": out, "model": model, "layer": layer, "site": site}
        call.run(asked | {"allow_pickle": allow_pickle}, machine=json, debug=debug)


def _convert(asked: dict[str, Any], screen: "Screen") -> "Outcome":
    from sae_forge.pipeline.convert import convert

    return convert(asked.pop("source"), **asked, progress=screen)
