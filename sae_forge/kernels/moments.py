"""What the variance of rows is made of, so that parts and ranks can each bring their own."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Moments(NamedTuple):
    """Sums over rows, in fp64, where the difference of two great numbers is exact enough."""

    total: Float[Tensor, "d_in"]
    squares: Float[Tensor, ""]

    @classmethod
    def of(cls, rows: Float[Tensor, "tokens d_in"]) -> "Moments":
        """Sums over the rows."""
        return cls(rows.sum(dim=0, dtype=torch.float64), torch.linalg.vector_norm(rows, dtype=torch.float64).square())

    def variance(self, tokens: int) -> Float[Tensor, ""]:
        """As ``losses.variance`` of all the rows these were summed over."""
        spread = self.squares - self.total.square().sum() / tokens
        return spread.clamp_min(torch.finfo(torch.float32).tiny).float()
