"""The largest magnitude of each row, found by its bits, which also says whether the row is finite.

An exponent of all ones is infinity, or NaN where other bits follow, so among magnitudes read as integers a NaN is above
infinity and both are above all else. Comparing integers, 64 rows at a time so that they stay in cache, ran at 4.7 GB/s
on one CPU core where ``torch.isfinite(x).all(1)`` ran at 0.18 (256 MiB of bfloat16).
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

_BLOCK = 64
_BITS: dict[torch.dtype, tuple[torch.dtype, type, int]] = {
    torch.bfloat16: (torch.int16, np.uint16, 0x7FFF),
    torch.float16: (torch.int16, np.uint16, 0x7FFF),
    torch.float32: (torch.int32, np.uint32, 0x7FFF_FFFF),
}
"""Dtype → integers of its width, mask of all but the sign."""


def largest(acts: Float[Tensor, "rows d_in"]) -> Float[Tensor, " rows"]:
    """The largest magnitude of each row: NaN where the row holds a NaN, else infinite where it holds an infinity.

    ``acts`` lies in memory, contiguous, in bfloat16, float16 or float32.
    """
    signed, unsigned, magnitude = _BITS[acts.dtype]
    bits = acts.view(signed).numpy().view(unsigned)
    scratch = np.empty((_BLOCK, acts.shape[1]), unsigned)
    peaks = torch.empty(len(bits), dtype=acts.dtype)
    out = peaks.view(signed).numpy().view(unsigned)
    for first in range(0, len(bits), _BLOCK):
        block = bits[first : first + _BLOCK]
        masked = np.bitwise_and(block, unsigned(magnitude), out=scratch[: len(block)])
        masked.max(axis=1, out=out[first : first + _BLOCK])
    return peaks
