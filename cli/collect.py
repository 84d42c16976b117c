"""``sae-forge collect``."""

from typing import TYPE_CHECKING

import typer

from cli.options import DRY_RUN, verb
from sae_forge.config.collect import CollectConfig

if TYPE_CHECKING:
    from cli.screen import Screen
    from sae_forge.outcome import Outcome


def register(app: typer.Typer) -> None:
    """Add the command."""

    @verb(
        app,
        CollectConfig,
        examples="""
        sae-forge collect --model tiny-llama
        sae-forge collect --model google/gemma-2-2b --layer 12 --forget bio.jsonl --dry_run
        sae-forge collect --model google/gemma-2-2b --layer 3,7 --forget bio.jsonl --retain wiki.parquet
        sae-forge collect --layer 15 --forget saga.txt --quantize 4bit --max_tokens 200000
        sae-forge collect --model google/gemma-2-2b --shards_dir s3://bucket/gemma
        """,
    )
    def collect(config: CollectConfig, screen: "Screen", dry_run: DRY_RUN = False) -> "Outcome":
        """Store a model's activations on forget and retain text as sharded safetensors.

        One forward pass serves any number of layers and ends above the highest of them. The same command run
        again continues where it stopped.
        """
        from sae_forge.pipeline.bench import Bench
        from sae_forge.pipeline.collect import collect
        from sae_forge.pipeline.dry_run import of_collect

        return (of_collect if dry_run else collect)(config, Bench(config, screen))
