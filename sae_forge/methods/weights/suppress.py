"""Suppression: train low-rank adapters until the selected latents no longer fire on forget text, then merge them.

After CRISP (arXiv 2508.13650), whose released loss is ``crisp``'s. On the forget batch ``|z + alpha mean(z)|``,
averaged over the (token, latent) pairs that fire in the given model, falls as the latents ``z`` do; ``mean(z)`` is the
token's mean act over the whole dictionary, in the given model. On the retain batch the activations of real tokens stay
near the given model's. A last term holds the likelihood of sentences that the given model wrote itself, so that the
text stays fluent.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, ClassVar

from sae_forge.hookpoint import HookPoint
from sae_forge.methods.edits.latents import latents_of, parts
from sae_forge.methods.method import Strength
from sae_forge.methods.weights.adapters import (
    Suppressed,
    adapted,
    adapting,
    points_of,
    require_adaptable,
    without_peft,
)
from sae_forge.methods.weights.recipe import Pace, paced, retraining
from sae_forge.methods.weights.sentences import DEFAULT, Writing, written

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sae_forge.methods.weights.objectives import Loss
    from sae_forge.methods.weights.texts import TextBatch, Texts
    from sae_forge.models.loading import LanguageModel


@dataclass(frozen=True, kw_only=True, eq=False)
class Suppress(Pace):
    """``suppress + beta retain + gamma coherence``, through adapters of rank ``rank`` on every projection."""

    suppressed: tuple[Suppressed, ...]
    """At one hook point or several; the losses are means over them."""
    layers: tuple[int, ...] | None = None
    """Layers that are adapted. None: all up to the highest hook point."""
    alpha: float = 5.0
    """How far below zero an act is pulled, in mean acts of the token's whole code."""
    beta: float = 0.99
    """Weight of the retain term."""
    gamma: float = 0.01
    """Weight of the coherence term; 0 leaves it out."""
    rank: int = 4
    dropout: float = 0.05
    """Of what adapters read; 0 in models with experts, whose stacked weights peft adapts without it."""
    writing: Writing = DEFAULT
    """The sentences of the coherence term."""
    batch_size: int = 1
    amsgrad: bool = True

    name: ClassVar[str] = "suppress"

    def __post_init__(self) -> None:
        require_adaptable(self.suppressed, self.rank, self.dropout)

    @property
    def points(self) -> list[HookPoint]:
        """Where latents are read."""
        return points_of(self.suppressed)

    def changed(self, lm: "LanguageModel") -> list[str]:
        return [projection.weight for projection in adapted(lm, self.suppressed, self.layers)]

    def training(self, lm: "LanguageModel") -> AbstractContextManager["list[nn.Parameter]"]:
        return adapting(lm, adapted(lm, self.suppressed, self.layers), self.rank, self.dropout)

    def loss(self, lm: "LanguageModel", frozen: "LanguageModel", retain: "Texts", seed: int) -> "Loss":
        """But for the coherence term no layer above the points runs; its sentences start as retain text does."""
        from sae_forge.methods.weights.objectives import nats_per_token

        # written once, before the first step, by the model as it was given
        coherence = cycle(written(frozen, self.writing, retain, self.batch_size, seed)) if self.gamma else None

        def of(forget_batch: "TextBatch", retain_batch: "TextBatch") -> "Tensor":
            total = suppression(lm, frozen, self, forget_batch) + self.beta * drift(lm, frozen, self, retain_batch)
            if coherence is not None:
                total = total + self.gamma * nats_per_token(lm, next(coherence)).to(total.device)
            return total

        return of


def suppression(lm: "LanguageModel", frozen: "LanguageModel", recipe: Suppress, forget: "TextBatch") -> "Tensor":
    """How much of what fires in ``frozen`` still fires in ``lm``, and beyond zero by ``alpha`` mean acts: a number."""
    import torch

    from sae_forge.methods.weights.objectives import real_tokens
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
            fired = (entry.sae.latent_acts(inside, latents) > 0) & real.to(weights.device)[..., None]
            # zeros of the code count: the mean act over all d_sae latents, [batch, seq, 1]
            mean_act = entry.sae.encode(inside).values.sum(-1, keepdim=True) / entry.sae.d_sae
        acts = entry.sae.latent_acts(still.to(weights.device, dtype), latents)
        pulled = (acts + (recipe.alpha * mean_act).abs()).abs()
        means.append((torch.where(fired, pulled, 0.0).sum() / fired.sum().clamp(min=1)).to(real.device))
    return torch.stack(means).mean()


def drift(lm: "LanguageModel", frozen: "LanguageModel", recipe: Suppress, retain: "TextBatch") -> "Tensor":
    """Mean squared change of the retain text's activations: a number."""
    import torch

    from sae_forge.methods.weights.objectives import mean_squared, real_tokens
    from sae_forge.models.hooks import capture, capture_with_gradients

    real = real_tokens(frozen, retain)
    before = capture(frozen, recipe.points, *retain)
    after = capture_with_gradients(lm, recipe.points, *retain)
    return torch.stack([mean_squared(after[point], before[point], real).to(real.device) for point in after]).mean()


# ---- the method ---------------------------------------------------------------------------------

METHOD = retraining(
    Suppress,
    axes=lambda size, _: ({"num_features": parts(size, 2), "beta": [0.99, 10.0]}, Strength("rate", 1.0, 10.0)),
    from_flags=lambda size, materials: [{"num_features": size} | paced(Suppress, materials)],
    needs=lambda _: without_peft(),
    build=lambda settings, materials: Suppress(
        suppressed=(Suppressed(materials.point, materials.sae, latents_of(settings, materials)),),
        **{name: value for name, value in settings.items() if name != "num_features"},
    ),
)
