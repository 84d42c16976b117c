"""Rows as int8 with one scale each: half the disk of bf16, and what that loses, counted while it happens.

A number x of a row is stored as q = x / scale, rounded half to even, and handed out as scale * q in fp32. The scale is
the row's largest magnitude over 127, so no number moves by more than half a scale (and the last bits of fp32).

That is as good as a row's largest number lets it be: the share of the other numbers' variance that is lost comes to
about (largest / their standard deviation)² / (12 · 127²), as long as that is small. Measured on normal rows of 512
numbers: 0.00006; with one number 10, 30 or 100 times the others' deviation 0.0005, 0.005 and 0.05. At 1000 times, as in
the massive activations of language models, half a scale is 4 deviations and the others become 0.

The loss is counted over a folder, as a share of the variance about its mean row, and that share shows the case above
only where the large coordinate itself hardly varies: if it is 1000 in every row the share is 1.0, if it varies by a
tenth of that it is 0.05, and if it is large in one row of 2000 it is 0.0003, while the other numbers of those rows are
lost each time. BOS, the token best known for it, has no row at all.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int8
from torch import Tensor

from sae_forge.store.tensors import DTYPES

STORED: dict[str, torch.dtype] = {**DTYPES, "int8": torch.int8}
"""Dtype of activations on disk, by the name of the storage dtype."""

_STEPS = 127
_LEAST = np.finfo(np.float32).tiny
"""Smallest scale of a row that is not all zero: with one of fewer bits, numbers would move by more than half of it."""
_LARGEST = np.nextafter(np.finfo(np.float32).max / np.float32(_STEPS), np.float32(0))
"""Largest scale whose 127-fold is finite."""
_BLOCK = 64
"""Rows rounded at a time, so that they stay in cache: 2 to 2.5 GB/s of fp32 on one busy CPU core."""


def handed_out(storage_dtype: str) -> torch.dtype:
    """Dtype of a row as a reader hands it out: the stored one, and fp32 for int8."""
    return torch.float32 if is_rounded(storage_dtype) else STORED[storage_dtype]


def is_rounded(storage_dtype: str) -> bool:
    """Whether rows are stored with a scale each."""
    return storage_dtype == "int8"


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """What rounding did to some rows x, in sums over them: those of several sets of rows add up."""

    error: float
    """Sum of ||x - x_hat||²."""
    squares: float
    """Sum of ||x||²."""
    sums: tuple[float, ...]
    """Sum of x, one number a coordinate."""

    def __post_init__(self) -> None:
        if not (self.error >= 0 and self.squares >= 0):
            raise ValueError("its rounding claims sums of squares below 0")

    @classmethod
    def none(cls, d_in: int) -> "Rounding":
        """Of no rows at all."""
        return cls(error=0.0, squares=0.0, sums=(0.0,) * d_in)

    def __add__(self, other: "Rounding") -> "Rounding":
        return Rounding(
            error=self.error + other.error,
            squares=self.squares + other.squares,
            sums=tuple((np.array(self.sums) + np.array(other.sums)).tolist()),
        )

    def unexplained(self, rows: int) -> float | None:
        """Sum of ||x - x_hat||² over that of ||x - mean||² for these ``rows``; None where they do not vary."""
        variance = self.squares - float(np.square(self.sums).sum()) / max(1, rows)
        return self.error / variance if variance > 0 else None


def quantise(
    acts: Float[Tensor, "rows d_in"],
    largest: Float[Tensor, " rows"],
    q: Int8[Tensor, "rows d_in"],
    scales: Float[Tensor, " rows"],
) -> Rounding:
    """Fill ``q`` and ``scales``; rows that are not finite become 0 and do not count in what is returned.

    Args:
        acts: In CPU memory.
        largest: The largest magnitude of each row, not finite where the row is not.
    """
    finite = largest.isfinite().numpy()
    peaks = np.where(finite, largest.float().numpy(), np.float32(0))
    steps = np.clip(peaks / np.float32(_STEPS), _LEAST, _LARGEST)
    scales.numpy()[:] = np.where(peaks > 0, steps, np.float32(0))
    x, exact, whole = (np.empty((_BLOCK, acts.shape[1]), np.float32) for _ in range(3))
    wide = np.empty(x.shape)  # the mean is taken out of the squares later: in fp32 a large one would leave nothing
    error = squares = 0.0
    sums = np.zeros(acts.shape[1])
    for first in range(0, len(acts), _BLOCK):
        rows = acts[first : first + _BLOCK]
        n, here = len(rows), slice(first, first + len(rows))
        torch.from_numpy(x[:n]).copy_(rows)
        x[:n][~finite[here]] = 0
        np.divide(x[:n], steps[here, None], out=exact[:n])
        np.rint(exact[:n], out=whole[:n])
        q[here].copy_(torch.from_numpy(whole[:n]))
        wide[:n] = x[:n]
        squares += float(np.einsum("ij,ij->", wide[:n], wide[:n]))
        sums += wide[:n].sum(0)
        area = np.square(steps[here], dtype=np.float64)  # a row's error is summed in its steps: in fp32 it may overflow
        np.subtract(whole[:n], exact[:n], out=exact[:n])
        error += float((np.einsum("ij,ij->i", exact[:n], exact[:n]) * area).sum())
    return Rounding(error=error, squares=squares, sums=tuple(sums.tolist()))


def dequantise(
    q: Int8[Tensor, "rows d_in"], scales: Float[Tensor, " rows"], out: Float[Tensor, "rows d_in"]
) -> Float[Tensor, "rows d_in"]:
    """The rows that ``q`` and ``scales`` stand for, in ``out``."""
    return out.copy_(q).mul_(scales[:, None])
