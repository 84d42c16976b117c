"""Clamping (arXiv 2410.19278): a given act where a latent fires, each latent for itself."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sae_forge.methods.edits.latents import clamping, parts
from sae_forge.methods.method import Strength

if TYPE_CHECKING:
    from sae_forge.interventions.intervention import Intervention
    from sae_forge.interventions.values import Value


def clamp(latents: tuple[int, ...], value: "Value" = -20.0) -> "Intervention":
    """``value`` where a latent fires; one that steers away is negative."""
    from sae_forge.interventions.clamping import ClampFiring
    from sae_forge.interventions.intervention import Intervention

    return Intervention("clamp", latents, ClampFiring(value))


def clamp_max(latents: tuple[int, ...], multiple: float, peaks: Sequence[float]) -> "Intervention":
    """Where a latent fires, minus ``multiple`` times the largest act it was seen to have (same paper)."""
    from sae_forge.interventions.clamping import ClampFiring
    from sae_forge.interventions.intervention import Intervention
    from sae_forge.interventions.values import relative_to_peaks

    return Intervention("clamp_max", latents, ClampFiring(relative_to_peaks(-multiple, peaks)))


METHOD = clamping(clamp, "value", axes=lambda size, _: ({"num_features": parts(size, 3)}, Strength("times", 0.5, 16.0)))
