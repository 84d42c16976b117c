"""How well rows are explained: by the SAE, with and without sinks, and by as many directions of a plain PCA."""

import torch
from jaxtyping import Float
from torch import Tensor

from sae_forge.data.sinks import are_sinks
from sae_forge.sae.losses import FvuMeter

PCA_ROWS = 32_768
"""Rows that the linear yardstick is fitted to at most: eight a dimension at d_in 4096."""


class Explained:
    """FVU and L0 of ordinary rows, FVU with sinks among them, and what a PCA of rank k leaves of the ordinary rows.

    Args:
        norm: Length beyond which a row is a sink's; None or 0: there are none.
    """

    def __init__(self, d_in: int, device: torch.device | str = "cpu", norm: float | None = None) -> None:
        self.ordinary, self._all = FvuMeter(d_in, device), FvuMeter(d_in, device)
        self._norm = norm
        self._products = torch.zeros(d_in, d_in, dtype=torch.float64, device=device)
        self._sums = torch.zeros(d_in, dtype=torch.float64, device=device)
        self._fitted = 0
        self._near: Tensor | None = None

    def add(
        self, x: Float[Tensor, "tokens d_in"], x_hat: Float[Tensor, "tokens d_in"], values: Float[Tensor, "tokens k"]
    ) -> None:
        """Count one more batch."""
        sinks = are_sinks(x, self._norm)
        if sinks.any():
            self._all.add(x[sinks], x_hat[sinks], values[sinks])
            x, x_hat, values = x[~sinks], x_hat[~sinks], values[~sinks]
        self.ordinary.add(x, x_hat, values)
        rows = x[: PCA_ROWS - self._fitted].float()
        if len(rows):
            self._near = rows.mean(dim=0) if self._near is None else self._near  # products are summed in fp32
            rows = rows - self._near
            self._products += (rows.T @ rows).double()
            self._sums += rows.sum(dim=0, dtype=torch.float64)
            self._fitted += len(rows)

    @property
    def sinks(self) -> int:
        """Sinks among the rows."""
        return self._all.tokens

    @property
    def fvu_with_sinks(self) -> float | None:
        """Fraction of the variance of all rows unexplained; None where none is a sink's."""
        return (self.ordinary + self._all).fvu if self.sinks else None

    def fvu_pca(self, k: int) -> float:
        """What the k directions that explain most of the ordinary rows leave unexplained of them."""
        covariance = self._products / self._fitted - (self._sums / self._fitted).outer(self._sums / self._fitted)
        spread = torch.linalg.eigvalsh(covariance.cpu()).clamp_min(0)
        return float(1 - spread[-k:].sum() / spread.sum())
