"""What the encoder reads, made of a batch in Triton for one read of it: scaled, centred, without sinks, rounded.

What its variance is made of is summed on the way: each program's share in fp32, all shares in fp64, in a fixed order.
"""

# pyright: reportArgumentType=false
# A launch takes plain numbers where a kernel declares tl.constexpr.

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from sae_forge.kernels import triton_tuning
from sae_forge.kernels.moments import Moments


@triton.jit
def centred_kernel(
    batch, b_dec, target, sums, squares, scale, sink_norm, COUNT, D_IN,
    SINKS: tl.constexpr, SHARE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """``scale × batch − b_dec`` of SHARE tokens, zeros for those that are longer than ``sink_norm``, and their sums."""
    share = tl.program_id(0).to(tl.int64)
    tokens = share * SHARE + tl.arange(0, SHARE)
    there = tokens < COUNT
    columns = tl.arange(0, WIDTH)
    starts = tokens[:, None] * D_IN + columns[None, :]  # [SHARE, WIDTH]
    kept = there
    if SINKS:
        square = tl.zeros([SHARE, WIDTH], tl.float32)
        for start in range(0, D_IN, WIDTH):
            mask = there[:, None] & (start + columns < D_IN)[None, :]
            x = tl.load(batch + starts + start, mask=mask, other=0.0).to(tl.float32)
            square += x * x
        length = tl.sqrt(tl.sum(square, axis=1))
        kept = (length <= sink_norm) | (length == float("inf")) | (length != length)  # what is no number is noticed
    square = tl.zeros([SHARE, WIDTH], tl.float32)
    for start in range(0, D_IN, WIDTH):
        inside = start + columns < D_IN
        mask = there[:, None] & inside[None, :]
        x = tl.load(batch + starts + start, mask=mask, other=0.0).to(tl.float32)
        centre = tl.load(b_dec + start + columns, mask=inside, other=0.0)
        rounded = tl.where(kept[:, None], scale * x - centre[None, :], 0.0).to(target.dtype.element_ty)
        tl.store(target + starts + start, rounded, mask=mask)
        wide = tl.where(mask, rounded.to(tl.float32), 0.0)
        square += wide * wide
        tl.store(sums + share * D_IN + start + columns, tl.sum(wide, axis=0), mask=inside)
    tl.store(squares + share, tl.sum(tl.sum(square, axis=1), axis=0))


def centred(
    batch: Float[Tensor, "tokens d_in"],
    b_dec: Float[Tensor, "d_in"],
    scale: float,
    sink_norm: float,
    dtype: torch.dtype,
) -> tuple[Float[Tensor, "tokens d_in"], Moments]:
    """The rows in ``dtype``, and the moments of what they were rounded to; ``sink_norm`` 0: no row is a sink's."""
    tokens, d_in = batch.shape
    target = torch.empty(tokens, d_in, dtype=dtype, device=batch.device)
    launch = triton_tuning.centred(d_in, batch.dtype)
    shares = -(-tokens // launch["SHARE"])
    sums = torch.empty(shares, d_in, dtype=torch.float32, device=batch.device)
    squares = torch.empty(shares, dtype=torch.float32, device=batch.device)
    centred_kernel[(shares,)](
        batch.contiguous(), b_dec, target, sums, squares, scale, sink_norm, tokens, d_in,
        SINKS=sink_norm > 0, **launch,
    )  # fmt: skip
    return target, Moments(sums.sum(dim=0, dtype=torch.float64), squares.sum(dtype=torch.float64))
