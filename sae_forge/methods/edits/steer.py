"""Steering: a multiple of each latent's direction is added to every token."""

from typing import TYPE_CHECKING

from sae_forge.methods.edits.latents import clamping, parts
from sae_forge.methods.method import Strength

if TYPE_CHECKING:
    from sae_forge.interventions.intervention import Intervention
    from sae_forge.interventions.values import Value


def steer(latents: tuple[int, ...], alpha: "Value") -> "Intervention":
    """``alpha`` times each latent's direction is added to every token."""
    from sae_forge.interventions.intervention import Intervention
    from sae_forge.interventions.steering import AddConstant

    return Intervention("steer", latents, AddConstant(alpha))


METHOD = clamping(steer, "value", axes=lambda size, _: ({"num_features": parts(size, 3)}, Strength("times", 0.05, 2.0)))
