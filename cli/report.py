"""``sae-forge report``."""

from typing import TYPE_CHECKING

import typer

from cli.options import verb
from sae_forge.config.report import ReportConfig

if TYPE_CHECKING:
    from cli.screen import Screen
    from sae_forge.outcome import Outcome


def register(app: typer.Typer) -> None:
    """Add the command."""

    @verb(
        app,
        ReportConfig,
        reads_run=True,
        examples="""
        sae-forge report
        sae-forge report --model tiny-gemma2
        """,
    )
    def report(config: ReportConfig, screen: "Screen") -> "Outcome":
        """Write one self-contained HTML page about a run: claims, numbers, controls, latents and pictures."""
        from sae_forge.pipeline.bench import Bench
        from sae_forge.pipeline.report import report

        return report(config, Bench(config, screen))
