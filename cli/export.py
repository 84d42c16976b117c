"""``sae-forge export``."""

from typing import TYPE_CHECKING

import typer

from cli.options import verb
from sae_forge.config.export import ExportConfig

if TYPE_CHECKING:
    from cli.screen import Screen
    from sae_forge.outcome import Outcome


def register(app: typer.Typer) -> None:
    """Add the command."""

    @verb(
        app,
        ExportConfig,
        reads_run=True,
        examples="""
        sae-forge export --model tiny-llama --to delphi
        sae-forge export --model tiny-llama --to neuronpedia --include_contexts --out dashboards
        sae-forge export --to neuronpedia --neuronpedia_id gemma-2-2b/12-gemmascope-res-16k
        """,
    )
    def export(config: ExportConfig, screen: "Screen") -> "Outcome":
        """Write what the selected latents fire on in the formats of delphi and of Neuronpedia's dashboards.

        Text of the forget corpus stays home unless --include_contexts is given.
        """
        from sae_forge.pipeline.bench import Bench
        from sae_forge.pipeline.export import export

        return export(config, Bench(config, screen))
