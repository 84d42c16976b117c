"""Projection (arXiv 2410.19278): what lies along the latents' directions is taken out of every token."""

from typing import TYPE_CHECKING

from sae_forge.methods.edits.latents import editing, parts
from sae_forge.methods.method import Strength

if TYPE_CHECKING:
    from sae_forge.interventions.intervention import Intervention


def project(latents: tuple[int, ...], strength: float = 1.0) -> "Intervention":
    """``strength`` times what lies along the latents' directions is taken out of every token."""
    from sae_forge.interventions.intervention import Intervention
    from sae_forge.interventions.steering import RemoveProjection

    return Intervention("project", latents, RemoveProjection(strength))


# a projection of strength s leaves 1 - s of what lies along a latent, as scaling by 1 - s does
METHOD = editing(
    project,
    "strength",
    from_flags=lambda size, materials: [
        {"num_features": size, "strength": 1 - scale} for scale in materials.config.ablation_scale
    ],
    axes=lambda size, _: ({"num_features": parts(size, 3)}, Strength("strength", 0.25, 4.0)),
)
