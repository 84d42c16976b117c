"""``sae-forge run``."""

from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import DRY_RUN, Given, verb
from sae_forge.config.model import ModelConfig
from sae_forge.settings import presets

if TYPE_CHECKING:
    from cli.screen import Screen
    from sae_forge.config.run import RunConfig
    from sae_forge.outcome import Outcome

DEFAULT_PRESET = "tiny"
PRESET = typer.Option(
    "--preset",
    metavar="NAME",
    rich_help_panel=ModelConfig.heading,
    help="Start from a preset; those there are stand below.",
)


def register(app: typer.Typer, kind: "type[RunConfig]") -> None:
    """Add the command; its flags are the settings of ``kind``."""

    @verb(
        app,
        kind,
        each_model=_models,
        examples="""
        sae-forge run
        sae-forge run --model tiny-gemma2 --ablation_scale -1,-3,-10
        sae-forge run --preset inlp-llama2-7b --forget saga.txt --dry_run
        sae-forge run --preset dsg-bio
        sae-forge run --model google/gemma-2-2b --sae google/gemma-scope-2b-pt-res:layer_3/width_16k/average_l0_59

        Presets:

        \b
        """
        + "\n        ".join(f"{name:18} {preset['description']}" for name, preset in presets().items()),
    )
    def run(
        configs: "list[RunConfig]",
        screen: "Screen",
        preset: Annotated[str | None, PRESET] = None,
        dry_run: DRY_RUN = False,
    ) -> "Outcome":
        """Run the whole pipeline: collect, train, features, eval, report.

        Without --model and --preset it takes both built-in models in turn: no network, no GPU. A stage whose output
        is there under the same settings is skipped. With --sae nothing is trained.
        """
        from sae_forge.pipeline.dry_run import of_run
        from sae_forge.pipeline.run import run

        return of_run(configs, screen, preset) if dry_run else run(configs, screen, preset)


def _models(given: Given, preset: str | None) -> list[str]:
    """The model that was asked for; else the preset's first; else, without either, both built-in ones."""
    if "model" in given:
        return [given["model"]]
    models = presets().get(preset or DEFAULT_PRESET, {}).get("models", [ModelConfig.model])
    return models if preset in (None, DEFAULT_PRESET) else models[:1]
