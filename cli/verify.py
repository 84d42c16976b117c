"""``sae-forge verify``."""

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import DEBUG, JSON, Call, Given
from cli.pages import Page
from sae_forge.config.model import ModelConfig
from sae_forge.store.runs import Run, newest_run

if TYPE_CHECKING:
    from cli.screen import Screen
    from sae_forge.outcome import Outcome

EXAMPLES = """
sae-forge verify
sae-forge verify --run_dir checkpoints/tiny-llama --json
"""


@dataclass(frozen=True, kw_only=True)
class _RunCall(Call):
    """A call about a run folder as it lies there: no model is named, and what describes the run may be damaged too."""

    def _configs(self, values: Given) -> list[Any]:
        run = Run(values["run_dir"]) if values["run_dir"] is not None else newest_run()
        typer.echo(f"run folder: {run.folder}", err=True)
        return [run]


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("verify", cls=Page, epilog="Examples:\n\n\b\n" + inspect.cleandoc(EXAMPLES))
    def verify(
        run_dir: Annotated[
            Path | None, typer.Option("--run_dir", metavar="PATH", help="Unset: the newest run.")
        ] = None,
        json: JSON = False,
        debug: DEBUG = False,
    ) -> None:
        """Read every file of a run folder and say which are not what was written; nothing is changed.

        Ends with 0 when all are whole, and with 2 after a line for each that is damaged or missing.
        """
        call = _RunCall(
            name="verify", body=_verify, kind=ModelConfig, extra={}, reads_run=True, each_model=None, file=None
        )
        call.run({"run_dir": run_dir}, machine=json, debug=debug)


def _verify(run: Run, screen: "Screen") -> "Outcome":
    from sae_forge.pipeline.verify import verify

    return verify(run, screen)
