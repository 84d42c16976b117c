"""Suppression: train low-rank adapters until the selected latents no longer fire on forget text, then merge them.

After CRISP (arXiv 2508.13650), whose released loss is ``crisp``'s. On the forget batch ``|z + alpha mean(z)|``,
averaged over the (token, latent) pairs that fire in the given model, falls as the latents ``z`` do; ``mean(z)`` is the
token's mean act over the whole dictionary, in the given model. On the retain batch the activations of real tokens stay
near the given model's. A last term holds the likelihood of sentences that the given model wrote itself, so that the
text stays fluent.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sae_forge.methods.edits.latents import latents_of, parts
from sae_forge.methods.method import Strength
from sae_forge.methods.weights.adapters import AdapterPace, Suppressed, without_peft
from sae_forge.methods.weights.recipe import paced, retraining

if TYPE_CHECKING:
    from torch import Tensor

    from sae_forge.methods.weights.objectives import Loss
    from sae_forge.methods.weights.texts import TextBatch, Texts
    from sae_forge.models.loading import LanguageModel


@dataclass(frozen=True, kw_only=True, eq=False)
class Suppress(AdapterPace):
    """``suppress + beta retain + gamma coherence``, through adapters of rank ``rank`` on every projection."""

    name: ClassVar[str] = "suppress"

    def loss(self, lm: "LanguageModel", frozen: "LanguageModel", retain: "Texts", seed: int) -> "Loss":
        """But for the coherence term no layer above the points runs; its sentences start as retain text does."""
        from sae_forge.methods.weights.objectives import nats_per_token

        coherence = self.sentences(frozen, retain, seed)

        def of(forget_batch: "TextBatch", retain_batch: "TextBatch") -> "Tensor":
            total = suppression(lm, frozen, self, forget_batch) + self.beta * drift(lm, frozen, self, retain_batch)
            if coherence is not None:
                total = total + self.gamma * nats_per_token(lm, next(coherence)).to(total.device)
            return total

        return of


def suppression(lm: "LanguageModel", frozen: "LanguageModel", recipe: Suppress, forget: "TextBatch") -> "Tensor":
    """How much of what fires in ``frozen`` still fires in ``lm``, and beyond zero by ``alpha`` mean acts: a number."""
    import torch

    from sae_forge.methods.weights.objectives import real_tokens, without_sinks
    from sae_forge.models.hooks import capture, capture_with_gradients

    real = real_tokens(frozen, forget)
    before = capture(frozen, recipe.points, *forget)
    after = capture_with_gradients(lm, recipe.points, *forget)
    means = []
    for entry in recipe.suppressed:
        weights, still = entry.sae.W_dec, after[entry.point]
        dtype = torch.promote_types(still.dtype, weights.dtype)
        latents = torch.tensor(entry.latents, device=weights.device)
        with torch.no_grad():
            inside = before[entry.point].to(weights.device, dtype)
            counted = without_sinks(real, before[entry.point], entry.sink_norm).to(weights.device)
            fired = (entry.sae.latent_acts(inside, latents) > 0) & counted[..., None]
            # zeros of the code count: the mean act over all d_sae latents, [batch, seq, 1]
            mean_act = entry.sae.encode(inside).values.sum(-1, keepdim=True) / entry.sae.d_sae
        acts = entry.sae.latent_acts(still.to(weights.device, dtype), latents)
        pulled = (acts + (recipe.alpha * mean_act).abs()).abs()
        means.append((torch.where(fired, pulled, 0.0).sum() / fired.sum().clamp(min=1)).to(real.device))
    return torch.stack(means).mean()


def drift(lm: "LanguageModel", frozen: "LanguageModel", recipe: Suppress, retain: "TextBatch") -> "Tensor":
    """Mean squared change of the retain text's activations: a number."""
    import torch

    from sae_forge.methods.weights.objectives import mean_squared, real_tokens, without_sinks
    from sae_forge.models.hooks import capture, capture_with_gradients

    real = real_tokens(frozen, retain)
    before = capture(frozen, recipe.points, *retain)
    after = capture_with_gradients(lm, recipe.points, *retain)
    changes = []
    for point, norm in recipe.sink_norms.items():
        counted = without_sinks(real, before[point], norm)
        changes.append(mean_squared(after[point], before[point], counted).to(real.device))
    return torch.stack(changes).mean()


# ---- the method ---------------------------------------------------------------------------------

METHOD = retraining(
    Suppress,
    axes=lambda size, _: ({"num_features": parts(size, 2), "beta": [0.99, 10.0]}, Strength("rate", 1.0, 10.0)),
    from_flags=lambda size, materials: [{"num_features": size} | paced(Suppress, materials)],
    needs=lambda _: without_peft(),
    build=lambda settings, materials: Suppress(
        suppressed=(Suppressed(materials.point, materials.sae, latents_of(settings, materials), materials.sink_norm),),
        **{name: value for name, value in settings.items() if name != "num_features"},
    ),
)
