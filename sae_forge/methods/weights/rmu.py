"""RMU: push the activations of forget text onto one random direction, and hold those of retain text where they are.

The formula is that of arXiv 2403.03218: ``MSE(h(x_f), u) + alpha MSE(h(x_r), h_frozen(x_r))`` at one layer, trained
through the MLP output projections of that layer and the two below it.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sae_forge.errors import ConfigError
from sae_forge.hookpoint import HookPoint
from sae_forge.methods.weights.objectives import Loss, mean_squared, real_tokens
from sae_forge.methods.weights.texts import TextBatch
from sae_forge.models.hooks import capture, capture_with_gradients, check_points
from sae_forge.models.loading import LanguageModel
from sae_forge.rng import generator

TRAINED_LAYERS = 3
"""The layer of the loss and those right below it."""


@dataclass(frozen=True, kw_only=True)
class RMU:
    """Steer the forget text's activations to ``coefficient`` times a random unit direction."""

    layer: int
    """Layer whose output the loss reads."""
    coefficient: float = 20.0
    """Length of the target; the papers use 6.5 (Zephyr 7B) to 400 (Gemma 2 2B), as norms differ between models."""
    alpha: float = 100.0
    """Weight of the retain term."""
    steps: int = 150
    lr: float = 5e-5
    batch_size: int = 4
    weight_decay: float = 0.01
    include_padding: bool = False
    """Average over every position, padding, BOS and EOS too, as the reference implementation does."""

    name: ClassVar[str] = "rmu"

    def __post_init__(self) -> None:
        if not (self.layer >= 0 and self.coefficient > 0 and self.alpha >= 0):
            raise ConfigError(
                f"RMU(layer={self.layer}, coefficient={self.coefficient}, alpha={self.alpha}) cannot be trained; "
                "give a layer of 0 or more, a coefficient above 0 and alpha of 0 or more"
            )


def trained_weights(lm: LanguageModel, recipe: RMU) -> list[str]:
    """Names of the MLP output projections at the layer and the two below it.

    Raises:
        ConfigError: the layer lies beyond the model.
    """
    check_points(lm, [HookPoint(recipe.layer)])
    layers = range(max(0, recipe.layer - TRAINED_LAYERS + 1), recipe.layer + 1)
    return [f"{lm.family.layers}.{layer}.{lm.family.down_proj}.weight" for layer in layers]


def direction(d_in: int, recipe: RMU, seed: int) -> Float[Tensor, " d_in"]:
    """The target: uniform on [0, 1) in every coordinate, then brought to length ``coefficient``."""
    drawn = torch.from_numpy(generator(seed, "rmu direction").random(d_in))
    return (recipe.coefficient * drawn / drawn.norm()).float()


def loss(changed: LanguageModel, frozen: LanguageModel, recipe: RMU, seed: int) -> Loss:
    """The loss as a function of ``changed``'s weights; no layer above the recipe's runs."""
    point, target = HookPoint(recipe.layer), direction(frozen.d_model, recipe, seed)

    def counted(batch: TextBatch) -> Tensor:
        return torch.ones_like(batch.attention_mask) if recipe.include_padding else real_tokens(frozen, batch)

    def of(forget: TextBatch, retain: TextBatch) -> Tensor:
        pushed = capture_with_gradients(changed, [point], *forget)[point]
        forget_loss = mean_squared(pushed, target.to(pushed.device), counted(forget))
        if recipe.alpha == 0:
            return forget_loss
        held = capture_with_gradients(changed, [point], *retain)[point]
        before = capture(frozen, [point], *retain)[point]
        return forget_loss + recipe.alpha * mean_squared(held, before, counted(retain))

    return of
