"""Zero ablation: nothing of what the latents wrote is left. A control itself, for it only puts latents to rest."""

from typing import TYPE_CHECKING

from sae_forge.methods.edits.latents import editing
from sae_forge.methods.method import latents_in_words

if TYPE_CHECKING:
    from sae_forge.interventions.intervention import Intervention


def zero(latents: tuple[int, ...]) -> "Intervention":
    """Nothing of what the latents wrote is left."""
    from sae_forge.interventions.ablation import ZeroAblation
    from sae_forge.interventions.intervention import Intervention

    return Intervention("zero", latents, ZeroAblation())


METHOD = editing(
    zero,
    title=lambda settings: f"Zero ablation of {latents_in_words(settings)}",
    from_flags=lambda size, _: [{"num_features": size}],
    at_rest=True,
)
