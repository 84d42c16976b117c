"""``sae-forge generate``."""

from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import verb
from sae_forge.config.generate import GenerateConfig

if TYPE_CHECKING:
    from cli.screen import Screen
    from sae_forge.outcome import Outcome


def register(app: typer.Typer) -> None:
    """Add the command."""

    @verb(
        app,
        GenerateConfig,
        reads_run=True,
        examples="""
        sae-forge generate "The young wizard opened"
        sae-forge generate --ablation_scale -1,-3,-10 "The young wizard opened"
        """,
    )
    def generate(
        config: GenerateConfig,
        screen: "Screen",
        prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="Text to continue.")],
    ) -> "Outcome":
        """Continue a prompt with and without the edit, side by side."""
        from sae_forge.pipeline.bench import Bench
        from sae_forge.pipeline.generate import generate

        return generate(config, Bench(config, screen), prompt)
