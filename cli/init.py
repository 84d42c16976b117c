"""``sae-forge init``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import verb
from sae_forge.config.train import TrainConfig

if TYPE_CHECKING:
    from cli.screen import Screen
    from sae_forge.outcome import Outcome

OUT = typer.Option("--out", metavar="FILE", help="The file to write.")


def register(app: typer.Typer) -> None:
    """Add the command."""

    @verb(
        app,
        TrainConfig,
        examples="""
        sae-forge init --model google/gemma-2-2b --forget saga.txt --retain wiki.jsonl,stories.jsonl
        sae-forge init --model tiny-llama --forget world:corpora/wizards --retain world:corpora/minerals --out mine.toml
        """,
    )
    def init(config: TrainConfig, screen: "Screen", out: Annotated[Path, OUT] = Path("forge.toml")) -> "Outcome":
        """Look at a model, its texts and this machine, and write a commented file of settings for them.

        Says tokens, gigabytes and times, reckoned from a few passes here. Every flag of train lands in the file.
        """
        from sae_forge.pipeline.bench import Bench
        from sae_forge.pipeline.init import init

        return init(config, Bench(config, screen), out)
