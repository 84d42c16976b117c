"""Conditional clamping (arXiv 2503.11127): a given act where a latent's own exceeds a threshold."""

from typing import TYPE_CHECKING

from sae_forge.methods.edits.latents import clamping, from_clamp_value, from_times, latents_of, parts, peak
from sae_forge.methods.method import Settings, Strength, short

if TYPE_CHECKING:
    from sae_forge.interventions.intervention import Intervention
    from sae_forge.interventions.values import Value
    from sae_forge.methods.materials import Materials


def conditional_clamp(latents: tuple[int, ...], value: "Value", theta: float) -> "Intervention":
    """``value`` where a latent's act exceeds ``theta``."""
    from sae_forge.interventions.clamping import ClampFiring
    from sae_forge.interventions.intervention import Intervention

    return Intervention("conditional_clamp", latents, ClampFiring(value, theta))


def _finished(point: Settings, materials: "Materials") -> Settings:
    """Acts for ``times``, a threshold for ``share`` of the latents' peak."""
    settings = from_times({name: value for name, value in point.items() if name != "share"}, materials)
    return settings | {"theta": short(point["share"] * peak(latents_of(point, materials), materials))}


METHOD = clamping(
    conditional_clamp,
    "value",
    "theta",
    from_flags=lambda size, materials: [
        settings | {"theta": materials.config.theta} for settings in from_clamp_value(size, materials)
    ],
    axes=lambda size, _: ({"num_features": parts(size, 2), "share": [0.1, 0.3]}, Strength("times", 1.0, 16.0)),
    finished=_finished,
)
