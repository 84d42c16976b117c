"""How text is generated, and the edit it is generated under."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from sae_forge.config.fields import Alias, Setting
from sae_forge.config.model import ModelConfig


@dataclass(frozen=True, kw_only=True)
class SamplingConfig(ModelConfig):
    """How text is generated, and the scales of the edit it is generated under."""

    heading: ClassVar[str] = "Generation"

    num_features: Annotated[
        tuple[int, ...],
        "Latents to edit, the first of the selection; several (10,50,100) sweep.",
        Setting(at_least=1, wanted="give at least 1 latent", heading="Edits"),
    ] = (100,)
    ablation_scale: Annotated[
        tuple[float, ...],
        "Negative scale; several (-1,-3) sweep.",
        Alias("ablation_scales"),
        Setting(finite=True, wanted="give finite scales", heading="Edits"),
    ] = (-3.0,)
    max_new_tokens: Annotated[
        int, "Tokens to generate per prompt.", Setting(at_least=1, wanted="give at least 1 token")
    ] = 64
    temperature: Annotated[
        float,
        "Sampling temperature; 0 is greedy.",
        Setting(at_least=0, finite=True, wanted="give 0 (greedy) or more"),
    ] = 0.7
    top_p: Annotated[
        float, "Nucleus of the sampling.", Setting(above=0, at_most=1, wanted="give a share above 0 and at most 1")
    ] = 0.9
