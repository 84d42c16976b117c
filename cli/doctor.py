"""``sae-forge doctor``."""

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import DEBUG, JSON, Call, Given
from cli.pages import Page
from sae_forge.config.model import ModelConfig

if TYPE_CHECKING:
    from cli.screen import Screen
    from sae_forge.outcome import Outcome

EXAMPLES = """
sae-forge doctor
sae-forge doctor --model meta-llama/Llama-2-7b-chat-hf
sae-forge doctor --tokens 100000000 --json
"""


@dataclass(frozen=True, kw_only=True)
class _MachineCall(Call):
    """A call about this machine, no run and no model."""

    def _configs(self, values: Given) -> list[Any]:
        return [values]


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("doctor", cls=Page, epilog="Examples:\n\n\b\n" + inspect.cleandoc(EXAMPLES))
    def doctor(
        model: Annotated[str | None, typer.Option("--model", help="One whose access is tried.")] = None,
        run_dir: Annotated[
            Path | None, typer.Option("--run_dir", metavar="PATH", help="Where runs would go. Unset: checkpoints.")
        ] = None,
        tokens: Annotated[int, typer.Option("--tokens", min=1, help="Tokens to reckon the shards of.")] = 10_000_000,
        json: JSON = False,
        debug: DEBUG = False,
    ) -> None:
        """Say what is installed and reachable here, and how large a model, its shards and an SAE may be.

        Ends with 0 when the commands can run, and with 2 when a line marked ! says why not. No token is ever shown.
        """
        call = _MachineCall(
            name="doctor", body=_doctor, kind=ModelConfig, extra={}, reads_run=False, each_model=None, file=None
        )
        call.run({"model": model, "run_dir": run_dir, "tokens": tokens}, machine=json, debug=debug)


def _doctor(asked: dict[str, Any], screen: "Screen") -> "Outcome":
    from sae_forge.pipeline.doctor import doctor

    del screen
    return doctor(**asked)
