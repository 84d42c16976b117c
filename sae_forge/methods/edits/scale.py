"""Negative scaling (INLP): each latent's act times a factor where it fires."""

from typing import TYPE_CHECKING

from sae_forge.methods.edits.latents import editing, parts
from sae_forge.methods.method import Strength, latents_in_words

if TYPE_CHECKING:
    from sae_forge.interventions.intervention import Intervention


def scale(latents: tuple[int, ...], factor: float = -3.0) -> "Intervention":
    """Acts times ``factor`` where a latent fires; special tokens and the SAE's error stay as they are."""
    from sae_forge.interventions.ablation import NegativeScaling
    from sae_forge.interventions.intervention import Intervention

    return Intervention("scale", latents, NegativeScaling(factor))


def scale_anthropic(latents: tuple[int, ...], multiple: float) -> "Intervention":
    """``multiple`` times what a latent wrote is taken away (an alternative in arXiv 2410.19278)."""
    from sae_forge.interventions.ablation import NegativeScaling
    from sae_forge.interventions.intervention import Intervention

    return Intervention("scale_anthropic", latents, NegativeScaling(1.0 - multiple))


METHOD = editing(
    scale,
    "scale",
    title=lambda settings: f"Scale {settings['scale']:g} on {latents_in_words(settings)}",
    from_flags=lambda size, materials: [
        {"num_features": size, "scale": factor} for factor in materials.config.ablation_scale
    ],
    axes=lambda size, _: ({"num_features": parts(size, 3)}, Strength("times", 1.0, 16.0)),
    finished=lambda point, _: {"num_features": point["num_features"], "scale": -point["times"]},
)
