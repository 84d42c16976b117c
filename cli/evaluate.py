"""``sae-forge eval``."""

from typing import TYPE_CHECKING

import typer

from cli.options import DRY_RUN, verb

if TYPE_CHECKING:
    from cli.screen import Screen
    from sae_forge.config.evaluate import EvalConfig
    from sae_forge.outcome import Outcome


def register(app: typer.Typer, kind: "type[EvalConfig]") -> None:
    """Add the command; its flags are the settings of ``kind``."""

    @verb(
        app,
        kind,
        name="eval",
        reads_run=True,
        examples="""
        sae-forge eval
        sae-forge eval --methods all --sweep --dry_run
        sae-forge eval --layer 15 --num_features 100 --ablation_scale -3.0
        sae-forge eval --ablation_scales=-1,-3,-10 --num_features=10,50,100
        sae-forge eval --methods all --sweep --part 2/8
        sae-forge eval --model google/gemma-2-2b --forget_questions bio.jsonl --retain_questions history.csv,geography.csv
        """,
    )
    def evaluate(config: "EvalConfig", screen: "Screen", dry_run: DRY_RUN = False) -> "Outcome":
        """Measure forgetting and side effects: the baseline, the edit, and its controls beside it.

        Every estimate has a 95 % interval. Zero ablation and random pushes of the same norm are measured with the
        edit unless --methods leaves out zero or random. Without --model: the newest run.
        """
        from sae_forge.pipeline.bench import Bench
        from sae_forge.pipeline.dry_run import of_eval
        from sae_forge.pipeline.evaluate import evaluate
        from sae_forge.pipeline.several import on_each

        if dry_run:
            return of_eval(config, Bench(config, screen))
        return on_each("eval", evaluate, config, Bench(config, screen))
