"""The sparse decode in Triton, and the gradient of its values; that of the weights is in ``triton_rows``.

Each sum is owned by one program and taken in a fixed order, so results repeat to the bit. Operands may be half
precision; every sum is kept in fp32. Any d_in, k and d_sae: what does not fill a tile is masked.
"""

# pyright: reportArgumentType=false
# A launch takes plain numbers where a kernel declares tl.constexpr.

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from sae_forge.kernels import triton_tuning


@triton.jit
def decode_kernel(values, indices, W_dec, out, D_IN, K, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """out[token, columns] = sum over j of values[token, j] * W_dec[indices[token, j], columns]."""
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)  # [WIDTH]
    inside = columns < D_IN
    total = tl.zeros([WIDTH], tl.float32)
    for start in range(0, K, ROWS):
        slots = start + tl.arange(0, ROWS)  # [ROWS]
        present = slots < K
        latents = tl.load(indices + token * K + slots, mask=present, other=0).to(tl.int64)
        weights = tl.load(values + token * K + slots, mask=present, other=0.0).to(tl.float32)
        mask = present[:, None] & inside[None, :]
        rows = tl.load(W_dec + latents[:, None] * D_IN + columns[None, :], mask=mask, other=0.0)  # [ROWS, WIDTH]
        total += tl.sum(rows.to(tl.float32) * weights[:, None], axis=0)
    tl.store(out + token * D_IN + columns, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def value_grad_kernel(grad, indices, W_dec, out, D_IN, K, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """out[token, slots] = <grad[token], W_dec[indices[token, slots]]>."""
    token = tl.program_id(0).to(tl.int64)
    slots = tl.program_id(1) * ROWS + tl.arange(0, ROWS)  # [ROWS]
    present = slots < K
    latents = tl.load(indices + token * K + slots, mask=present, other=0).to(tl.int64)
    total = tl.zeros([ROWS, WIDTH], tl.float32)  # reduced once, at the end
    for start in range(0, D_IN, WIDTH):
        columns = start + tl.arange(0, WIDTH)  # [WIDTH]
        inside = columns < D_IN
        mask = present[:, None] & inside[None, :]
        rows = tl.load(W_dec + latents[:, None] * D_IN + columns[None, :], mask=mask, other=0.0)  # [ROWS, WIDTH]
        slope = tl.load(grad + token * D_IN + columns, mask=inside, other=0.0).to(tl.float32)
        total += rows.to(tl.float32) * slope[None, :]
    tl.store(out + token * K + slots, tl.sum(total, axis=1), mask=present)


def decode(
    values: Float[Tensor, "tokens k"],
    indices: Int[Tensor, "tokens k"],
    W_dec: Float[Tensor, "d_sae d_in"],
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "tokens d_in"]:
    """The forward pass, rounded from its fp32 sum to ``dtype`` (None: that of ``W_dec``)."""
    tokens, k = indices.shape
    d_in = W_dec.shape[1]
    out = torch.empty(tokens, d_in, dtype=dtype or W_dec.dtype, device=W_dec.device)
    launch = triton_tuning.tiles(d_in, W_dec.dtype, triton_tuning.target(W_dec.device).beside_tail)
    decode_kernel[(tokens, triton.cdiv(d_in, launch["WIDTH"]))](
        values.contiguous(), indices.contiguous(), W_dec.contiguous(), out, d_in, k, **launch
    )  # fmt: skip
    return out


def value_grad(
    grad: Float[Tensor, "tokens d_in"], indices: Int[Tensor, "tokens k"], W_dec: Float[Tensor, "d_sae d_in"]
) -> Float[Tensor, "tokens k"]:
    """Gradient of the values, in fp32."""
    tokens, k = indices.shape
    d_in = W_dec.shape[1]
    out = torch.empty(tokens, k, dtype=torch.float32, device=grad.device)
    launch = triton_tuning.tiles(d_in, W_dec.dtype)
    value_grad_kernel[(tokens, triton.cdiv(k, launch["ROWS"]))](
        grad.contiguous(), indices.contiguous(), W_dec.contiguous(), out, d_in, k, **launch
    )  # fmt: skip
    return out
