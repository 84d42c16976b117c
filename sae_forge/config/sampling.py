"""How text is generated, and the edit it is generated under."""

from dataclasses import dataclass
from math import isfinite
from typing import Annotated

from sae_forge.config.fields import Alias
from sae_forge.config.model import ModelConfig


@dataclass(frozen=True, kw_only=True)
class SamplingConfig(ModelConfig):
    """How text is generated, and the scales of the edit it is generated under."""

    num_features: Annotated[tuple[int, ...], "Latents to edit, best first; several (10,50,100) sweep."] = (100,)
    ablation_scale: Annotated[tuple[float, ...], "Negative scale; several (-1,-3) sweep.", Alias("ablation_scales")] = (
        -3.0,
    )
    max_new_tokens: Annotated[int, "Tokens to generate per prompt."] = 64
    temperature: Annotated[float, "Sampling temperature; 0 is greedy."] = 0.7
    top_p: Annotated[float, "Nucleus of the sampling."] = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(
            num_features=(bool(self.num_features) and min(self.num_features) >= 1, "give at least 1 latent"),
            ablation_scale=(
                bool(self.ablation_scale) and all(map(isfinite, self.ablation_scale)),
                "give finite scales",
            ),
            max_new_tokens=(self.max_new_tokens >= 1, "give at least 1 token"),
            temperature=(self.temperature >= 0 and isfinite(self.temperature), "give 0 (greedy) or more"),
            top_p=(0 < self.top_p <= 1, "give a share above 0 and at most 1"),
        )
