"""``run``: every setting of every verb it chains."""

from dataclasses import dataclass

from sae_forge.config.evaluate import EvalConfig
from sae_forge.config.features import FeaturesConfig
from sae_forge.config.train import TrainConfig


@dataclass(frozen=True, kw_only=True)
class RunConfig(TrainConfig, FeaturesConfig, EvalConfig):
    """The whole pipeline: every setting of every verb it chains."""

    def __post_init__(self) -> None:
        super().__post_init__()
        several = {"layer": self.layer, "k": self.k, "expansion_factor": self.expansion_factor, "d_sae": self.d_sae}
        several["sae_seeds"] = self.sae_seeds
        self.require(
            **{
                name: (given is None or len(given) == 1, f"run takes one {name}; train takes several")
                for name, given in several.items()
            }
        )
        self.require(part=(self.part is None, "run makes all of it; give parts to eval"))
        self.require(
            max_disk_gb=(
                self.max_disk_gb is None,
                "run keeps its activations; give it to train, then go on with features and a smaller --max_tokens",
            )
        )
