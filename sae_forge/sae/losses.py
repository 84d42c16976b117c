"""What an SAE is trained on and judged by: variance left unexplained."""

import torch
from jaxtyping import Float
from torch import Tensor


def fvu(x: Float[Tensor, "tokens d_in"], x_hat: Float[Tensor, "tokens d_in"]) -> Float[Tensor, ""]:
    """Fraction of the batch's variance about its mean that the reconstruction leaves unexplained; 0 is perfect."""
    return (x - x_hat).square().sum() / variance(x)


def variance(x: Float[Tensor, "tokens d_in"]) -> Float[Tensor, ""]:
    """Summed squared distance to the batch mean, in fp32 or wider, kept above zero so that constant input divides."""
    wide = torch.promote_types(x.dtype, torch.float32)
    centred = x - x.mean(dim=0, dtype=wide)
    return torch.linalg.vector_norm(centred, dtype=wide).square().clamp_min(torch.finfo(wide).tiny)


class FvuMeter:
    """FVU and L0 over many batches as if they were one, summed in float64 on the device of the batches."""

    def __init__(self, d_in: int, device: torch.device | str = "cpu") -> None:
        self.tokens = 0
        self._total = torch.zeros(d_in, dtype=torch.float64, device=device)
        self._residual, self._squares, self._fires = torch.zeros(3, dtype=torch.float64, device=device).unbind()

    def add(
        self, x: Float[Tensor, "tokens d_in"], x_hat: Float[Tensor, "tokens d_in"], values: Float[Tensor, "tokens k"]
    ) -> None:
        """Count one more batch."""
        wide = x.double()
        self.tokens += len(x)
        self._total += wide.sum(dim=0)
        self._residual += (wide - x_hat.double()).square().sum()
        self._squares += wide.square().sum()
        self._fires += (values > 0).sum()

    def __add__(self, other: "FvuMeter") -> "FvuMeter":
        both = FvuMeter(len(self._total), self._total.device)
        both.tokens = self.tokens + other.tokens
        for name in ("_total", "_residual", "_squares", "_fires"):
            setattr(both, name, getattr(self, name) + getattr(other, name))
        return both

    @property
    def fvu(self) -> float:
        """Fraction of variance unexplained over every token added."""
        spread = self._squares - self._total.square().sum() / self.tokens
        return float(self._residual / spread)

    @property
    def l0(self) -> float:
        """Mean number of latents that fire on a token."""
        return float(self._fires) / self.tokens
