"""``sae-forge features``."""

from typing import TYPE_CHECKING

import typer

from cli.options import verb

if TYPE_CHECKING:
    from cli.screen import Screen
    from sae_forge.config.features import FeaturesConfig
    from sae_forge.outcome import Outcome


def register(app: typer.Typer, kind: "type[FeaturesConfig]") -> None:
    """Add the command; its flags are the settings of ``kind``."""

    @verb(
        app,
        kind,
        reads_run=True,
        examples="""
        sae-forge features
        sae-forge features --layer 15 --num_features 100 --sort_by score
        sae-forge features --model google/gemma-2-2b --method frequency --retain_threshold 0.001 --num_features 20
        sae-forge features --method inlp,dsg_ratio,crisp,random_matched --num_features 20
        sae-forge features --method conditional --fire_threshold 0.01 --refusal refusals.txt
        sae-forge features --latents 12,873,4410
        sae-forge features --model google/gemma-2-2b --sae 'google/gemma-scope-2b-pt-res:layer_3/width_16k/*'
        """,
    )
    def features(config: "FeaturesConfig", screen: "Screen") -> "Outcome":
        """Rank the latents that fire on what should be forgotten and not on what should be kept.

        Shows for each chosen latent its statistics and the text it fires on most; of several methods, how well the
        choice of each tells the corpora apart. Eval then takes the first one named. Without --model: the newest run.
        """
        from sae_forge.pipeline.bench import Bench
        from sae_forge.pipeline.features import features
        from sae_forge.pipeline.several import on_each

        return on_each("features", features, config, Bench(config, screen))
