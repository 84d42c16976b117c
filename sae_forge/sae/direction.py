"""A dictionary of one latent: how far an activation lies along a unit direction."""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_forge.sae.dictionary import LatentActs


@dataclass(frozen=True, eq=False)
class Direction:
    """A ``Dictionary`` with one latent: the length of an activation along a unit direction.

    Silencing the latent takes exactly ``(x . v) v`` out of ``x``. Unlike those of an SAE its acts may be negative,
    which edits that ask whether a latent fires leave alone.
    """

    W_dec: Float[Tensor, "1 d_in"]
    threshold: float = -math.inf
    """A projection up to here is read as 0, so nothing is edited on that token."""

    @property
    def d_in(self) -> int:
        """Width of the activations it reads and writes."""
        return self.W_dec.shape[1]

    @property
    def d_sae(self) -> int:
        """One."""
        return 1

    @property
    def b_dec(self) -> Float[Tensor, " d_in"]:
        """Zero."""
        return torch.zeros_like(self.W_dec[0])

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> LatentActs:
        """The projection of each token."""
        values = self._projections(x)
        return LatentActs(values, torch.zeros_like(values, dtype=torch.int64))

    def decode(self, acts: LatentActs) -> Float[Tensor, "*batch d_in"]:
        """The part along the direction."""
        return acts.values @ self.W_dec

    def latent_acts(self, x: Float[Tensor, "*batch d_in"], latents: Int[Tensor, "n"]) -> Float[Tensor, "*batch n"]:
        """The projection of each token, for the one latent there is."""
        return self._projections(x)[..., latents]

    def gated(self, threshold: float) -> "Direction":
        """The same direction, read only where a token lies beyond ``threshold`` along it."""
        return replace(self, threshold=threshold)

    def to(self, device: torch.device | str) -> "Direction":
        """The same direction on another device."""
        return replace(self, W_dec=self.W_dec.to(device))

    def _projections(self, x: Tensor) -> Tensor:
        along = x.to(self.W_dec.dtype) @ self.W_dec.T
        return torch.where(along > self.threshold, along, 0.0)
