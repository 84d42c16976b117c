"""A matrix times a vector from the left, in Triton: every row by its weight, for one read of rows in half precision.

Each program sums its share of the rows, and the shares are added in their order, so a result repeats to the bit.
"""

# pyright: reportArgumentType=false
# A launch takes plain numbers where a kernel declares tl.constexpr.

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from sae_forge.kernels import triton_tuning


@triton.jit
def sum_of_rows_kernel(
    rows, weights, partial, COUNT, D_IN, SHARE: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr
):
    """Some columns of the weighted sum of SHARE rows."""
    share = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = columns < D_IN
    total = tl.zeros([ROWS, WIDTH], tl.float32)  # reduced once, at the end
    for start in range(0, SHARE, ROWS):
        named = share * SHARE + start + tl.arange(0, ROWS)
        present = named < COUNT
        weight = tl.load(weights + named, mask=present, other=0.0)[:, None]
        mask = present[:, None] & inside[None, :]
        block = tl.load(rows + named[:, None] * D_IN + columns[None, :], mask=mask, other=0.0)
        total += block.to(tl.float32) * weight
    tl.store(partial + share * D_IN + columns, tl.sum(total, axis=0), mask=inside)


def sum_of_rows(rows: Float[Tensor, "count d_in"], weights: Float[Tensor, "count"]) -> Float[Tensor, "d_in"]:
    """The sum of all rows, each times its weight, in fp32."""
    count, d_in = rows.shape
    launch = triton_tuning.sum_of_rows(d_in, rows.dtype)
    partial = torch.empty(-(-count // launch["SHARE"]), d_in, dtype=torch.float32, device=rows.device)
    sum_of_rows_kernel[(len(partial), triton.cdiv(d_in, launch["WIDTH"]))](
        rows, weights.contiguous(), partial, count, d_in, **launch
    )
    return partial.sum(dim=0)
