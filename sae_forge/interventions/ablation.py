"""Edits that scale the targeted latents, and leave a latent at rest at rest."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sae_forge.errors import ConfigError


@dataclass(frozen=True)
class ZeroAblation:
    """Silence the targeted latents: nothing of their directions that they wrote is left."""

    def edit(self, acts: Float[Tensor, "batch seq n"]) -> Float[Tensor, "batch seq n"]:
        return torch.zeros_like(acts)


@dataclass(frozen=True)
class NegativeScaling:
    """Multiply each targeted latent by ``scale`` where it fires (INLP).

    At -3 a token loses four times what the latent wrote, so the text is pushed past the latent's absence; at 0 this
    is zero ablation, at 1 it does nothing.
    """

    scale: float = -3.0
    """Factor on the act. Negative steers away from what the latent stands for."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise ConfigError(f"scale={self.scale} is not a finite number; the papers use -1 to -10")

    def edit(self, acts: Float[Tensor, "batch seq n"]) -> Float[Tensor, "batch seq n"]:
        return torch.where(acts > 0, self.scale * acts, acts)


@dataclass(frozen=True)
class RemoveShare:
    """Take ``strength`` times each act away, whatever its sign.

    At 1 nothing is left; above 1 the activation is pushed past the point where nothing is left.
    """

    strength: float = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.strength):
            raise ConfigError(f"strength={self.strength} is not a finite number; 1 removes all of it, 2 reflects it")

    def edit(self, acts: Float[Tensor, "batch seq n"]) -> Float[Tensor, "batch seq n"]:
        return torch.where(acts != 0, (1 - self.strength) * acts, acts)
