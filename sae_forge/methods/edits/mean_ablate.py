"""Mean ablation: every latent takes its mean over retain text. A control itself, for it only puts latents to rest."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sae_forge.methods.edits.latents import gated, latents_of, needs
from sae_forge.methods.method import Method, Settings

if TYPE_CHECKING:
    from sae_forge.interventions.intervention import Intervention
    from sae_forge.methods.materials import Materials
    from sae_forge.methods.subjects import Subject


def mean_ablate(latents: tuple[int, ...], means: Sequence[float]) -> "Intervention":
    """Every latent takes its mean over retain text, on every token."""
    from sae_forge.interventions.clamping import MeanAblation
    from sae_forge.interventions.intervention import Intervention

    return Intervention("mean_ablate", latents, MeanAblation(tuple(means)))


def _build(settings: Settings, materials: "Materials") -> "Subject":
    latents = latents_of(settings, materials)
    known = {latent.index: latent for latent in materials.selection.latents}
    tokens = {name: corpus.tokens for name, corpus in materials.selection.retain_corpora.items()}
    total = sum(tokens.values())
    # corpora count by their tokens, as if they were one text
    means = [
        sum(stats.mean * tokens[name] for name, stats in known[latent].retain.items()) / total for latent in latents
    ]
    return gated(mean_ablate(latents, means), materials)


METHOD = Method(
    name="mean_ablate",
    kind="hook",
    from_flags=lambda size, _: [{"num_features": size}],
    needs=needs("mean_ablate"),
    build=_build,
    at_rest=True,
)
