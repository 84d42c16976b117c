"""Steering: a multiple of each latent's direction is added to every token."""

from typing import TYPE_CHECKING

from sae_forge.methods.edits.latents import ClampSettings, from_clamp_value, from_times, gated, latents_of, needs, parts
from sae_forge.methods.method import Method, Strength, titled

if TYPE_CHECKING:
    from sae_forge.interventions.intervention import Intervention
    from sae_forge.interventions.values import Value


def steer(latents: tuple[int, ...], alpha: "Value") -> "Intervention":
    """``alpha`` times each latent's direction is added to every token."""
    from sae_forge.interventions.intervention import Intervention
    from sae_forge.interventions.steering import AddConstant

    return Intervention("steer", latents, AddConstant(alpha))


METHOD = Method(
    name="steer",
    kind="hook",
    title=titled("steer", "value"),
    from_flags=from_clamp_value,
    axes=lambda size, _: ({"num_features": parts(size, 3)}, Strength("times", 0.05, 2.0)),
    finished=from_times,
    needs=needs("steer", writes=True),
    build=lambda settings, materials: gated(steer(latents_of(settings, materials), settings["value"]), materials),
    settings=ClampSettings,
)
