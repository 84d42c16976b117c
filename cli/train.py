"""``sae-forge train``."""

from typing import TYPE_CHECKING

import typer

from cli.options import DRY_RUN, verb
from sae_forge.config.train import TrainConfig

if TYPE_CHECKING:
    from cli.screen import Screen
    from sae_forge.outcome import Outcome


def register(app: typer.Typer) -> None:
    """Add the command."""

    @verb(
        app,
        TrainConfig,
        examples="""
        sae-forge train --model tiny-llama
        sae-forge train --model google/gemma-2-2b --layer 12 --forget bio.jsonl --dry_run
        sae-forge train --layer 15 --epochs 5 --batch_size 128 --expansion_factor 8 --k 32 --sae_device cpu --model_device cuda
        sae-forge train --model google/gemma-2-2b --layer 3,7,15 --k 64 --max_steps 20000
        sae-forge train --model tiny-llama --architecture batchtopk
        sae-forge train --model tiny-llama --track trackio:wizards
        sae-forge train --model google/gemma-2-2b --layer 12 --max_tokens 1000000000 --max_disk_gb 200
        """,
    )
    def train(config: TrainConfig, screen: "Screen", dry_run: DRY_RUN = False) -> "Outcome":
        """Train a TopK or BatchTopK SAE on collected activations; collects them first when they are missing.

        With --max_disk_gb it trains on more tokens than the disk holds: collecting and training take turns.

        The folder it writes (cfg.json, sae_weights.safetensors) loads in SAELens 6 as it is. The same command run
        again continues from the last checkpoint.
        """
        from sae_forge.pipeline.bench import Bench
        from sae_forge.pipeline.dry_run import of_train
        from sae_forge.pipeline.train import train

        return (of_train if dry_run else train)(config, Bench(config, screen))
