"""Clamp Prime (arXiv 2503.11127): a strong clamp of few latents."""

from typing import TYPE_CHECKING

from sae_forge.methods.edits.latents import clamping
from sae_forge.methods.method import Strength

if TYPE_CHECKING:
    from sae_forge.interventions.intervention import Intervention
    from sae_forge.interventions.values import Value


def clamp_prime(latents: tuple[int, ...], value: "Value" = -300.0, theta: float = 0.0) -> "Intervention":
    """``value`` where a latent's act exceeds ``theta``, with the paper's defaults."""
    from sae_forge.interventions.clamping import ClampFiring
    from sae_forge.interventions.intervention import Intervention

    return Intervention("clamp_prime", latents, ClampFiring(value, theta))


METHOD = clamping(
    clamp_prime,
    "value",
    axes=lambda size, _: (
        {"num_features": sorted({min(size, few) for few in (5, 10, 20)})},
        Strength("times", 0.5, 16.0),
    ),
)
