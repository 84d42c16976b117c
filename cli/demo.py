"""``sae-forge demo``."""

import importlib.util
from typing import TYPE_CHECKING

import typer

from cli.options import verb
from sae_forge.errors import BackendError

if TYPE_CHECKING:
    from cli.screen import Screen
    from sae_forge.config.generate import DemoConfig
    from sae_forge.outcome import Outcome


def register(app: typer.Typer, kind: "type[DemoConfig]") -> None:
    """Add the command; its flags are the settings of ``kind``."""

    @verb(
        app,
        kind,
        reads_run=True,
        makes_run=True,
        examples="""
        sae-forge demo
        sae-forge demo --methods scale,clamp --max_new_tokens 40
        sae-forge demo --model google/gemma-2-2b --sae you/your-repository --selection features.json
        """,
    )
    def demo(config: "DemoConfig", screen: "Screen") -> "Outcome":
        """Talk with a model as it is and under an edit, side by side, in a full-screen terminal.

        Enter or Ctrl+S sends, Ctrl+A or a click switches the edit, Escape stops an answer, Ctrl+Q quits. Without
        --model: the newest run, and where there is none the built-in world, for which an SAE is trained first.
        """
        if importlib.util.find_spec("textual") is None:
            raise BackendError("demo needs textual, which is not installed: pip install 'sae-forge[demo]'")
        from cli.demo_app import Demo

        screen.stop()
        return Demo(config).outcome()
