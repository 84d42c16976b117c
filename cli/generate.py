"""``sae-forge generate``."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import verb

if TYPE_CHECKING:
    from cli.screen import Screen
    from sae_forge.config.generate import GenerateConfig
    from sae_forge.outcome import Outcome

STDIN = "-"


def register(app: typer.Typer, kind: "type[GenerateConfig]") -> None:
    """Add the command; its flags are the settings of ``kind``."""

    @verb(
        app,
        kind,
        reads_run=True,
        examples="""
        sae-forge generate "The young wizard opened"
        sae-forge generate --ablation_scale -1,-3,-10 "The young wizard opened"
        sae-forge generate --methods scale,clamp,dsg "The young wizard opened" "Granite is"
        sae-forge generate --methods all --prompts prompts.jsonl --json
        cat prompts.txt | sae-forge generate -
        sae-forge generate --interactive
        """,
    )
    def generate(
        config: "GenerateConfig",
        screen: "Screen",
        prompt: Annotated[
            list[str] | None, typer.Argument(metavar="[PROMPT]…", help="Texts to continue; - reads lines from stdin.")
        ] = None,
        interactive: Annotated[
            bool, typer.Option("--interactive", help="Talk with the model; /help lists what can be changed.")
        ] = False,
    ) -> "Outcome":
        """Continue prompts with and without edits, side by side.

        Tokens on which an edit fired are marked with its latents. Without --model: the newest run.
        """
        from sae_forge.pipeline.bench import Bench
        from sae_forge.pipeline.generate import generate

        bench = Bench(config, screen)
        if interactive:
            from cli.talk import talk

            return talk(config, bench, prompt or [], screen)
        lines = [line for each in prompt or [] for line in (_lines() if each == STDIN else [each])]
        return generate(config, bench, lines, screen.writer())


def _lines() -> list[str]:
    """Prompts from stdin, a line each, empty ones left out."""
    return [line.rstrip("\r\n") for line in sys.stdin if line.strip()]
