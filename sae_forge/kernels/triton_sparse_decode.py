"""The sparse decode in Triton: forward, gradient of the values, gradient of the weights without atomics.

Three sums, each owned by one program and taken in a fixed order, so results repeat to the bit. Operands may be half
precision; every sum is kept in fp32. Any d_in, k and d_sae: what does not fill a tile is masked.
"""

# pyright: reportArgumentType=false
# A launch takes plain numbers where a kernel declares tl.constexpr.

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from sae_forge.kernels.transpose import transpose

TILE_ROWS = 8
"""Rows gathered together; their loads are in flight at once."""
MAX_TILE_WIDTH = 512


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
    total = tl.zeros([ROWS], tl.float32)
    for start in range(0, D_IN, WIDTH):
        columns = start + tl.arange(0, WIDTH)  # [WIDTH]
        inside = columns < D_IN
        mask = present[:, None] & inside[None, :]
        rows = tl.load(W_dec + latents[:, None] * D_IN + columns[None, :], mask=mask, other=0.0)  # [ROWS, WIDTH]
        slope = tl.load(grad + token * D_IN + columns, mask=inside, other=0.0).to(tl.float32)
        total += tl.sum(rows.to(tl.float32) * slope[None, :], axis=1)
    tl.store(out + token * K + slots, total, mask=present)


@triton.jit
def weight_grad_kernel(rows, values, entries, offsets, out, D_IN, K, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """out[latent, columns] = sum over the latent's entries e of values[e] * rows[e // K, columns]."""
    latent = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)  # [WIDTH]
    inside = columns < D_IN
    begin = tl.load(offsets + latent)
    end = tl.load(offsets + latent + 1)
    total = tl.zeros([WIDTH], tl.float32)
    for start in range(begin, end, ROWS):
        places = start + tl.arange(0, ROWS)  # [ROWS]
        present = places < end
        entry = tl.load(entries + places, mask=present, other=0).to(tl.int64)
        weights = tl.load(values + entry, mask=present, other=0.0).to(tl.float32)
        mask = present[:, None] & inside[None, :]
        block = tl.load(rows + (entry // K)[:, None] * D_IN + columns[None, :], mask=mask, other=0.0)  # [ROWS, WIDTH]
        total += tl.sum(block.to(tl.float32) * weights[:, None], axis=0)
    tl.store(out + latent * D_IN + columns, total, mask=inside)


def tile_width(d_in: int) -> int:
    """Columns a program takes: the widest power of two that wastes least of ``d_in``."""
    widths = [width for width in (MAX_TILE_WIDTH, 256, 128, 64, 32, 16) if width < 2 * d_in] or [16]
    return min(widths, key=lambda width: (-(-d_in // width) * width, -width))


def decode(
    values: Float[Tensor, "tokens k"], indices: Int[Tensor, "tokens k"], W_dec: Float[Tensor, "d_sae d_in"]
) -> Float[Tensor, "tokens d_in"]:
    """The forward pass, in the dtype of ``W_dec``."""
    tokens, k = indices.shape
    d_in = W_dec.shape[1]
    out = torch.empty(tokens, d_in, dtype=W_dec.dtype, device=W_dec.device)
    width = tile_width(d_in)
    decode_kernel[(tokens, triton.cdiv(d_in, width))](
        values.contiguous(), indices.contiguous(), W_dec.contiguous(), out, d_in, k,
        ROWS=TILE_ROWS, WIDTH=width,
    )  # fmt: skip
    return out


def value_grad(
    grad: Float[Tensor, "tokens d_in"], indices: Int[Tensor, "tokens k"], W_dec: Float[Tensor, "d_sae d_in"]
) -> Float[Tensor, "tokens k"]:
    """Gradient of the values, in fp32."""
    tokens, k = indices.shape
    d_in = W_dec.shape[1]
    out = torch.empty(tokens, k, dtype=torch.float32, device=grad.device)
    value_grad_kernel[(tokens, triton.cdiv(k, TILE_ROWS))](
        grad.contiguous(), indices.contiguous(), W_dec.contiguous(), out, d_in, k,
        ROWS=TILE_ROWS, WIDTH=tile_width(d_in),
    )  # fmt: skip
    return out


def weight_grad(
    rows: Float[Tensor, "tokens d_in"], values: Float[Tensor, "tokens k"], indices: Int[Tensor, "tokens k"], d_sae: int
) -> Float[Tensor, "d_sae d_in"]:
    """For each latent, the sum over its tokens of value × row, in fp32."""
    d_in, k = rows.shape[1], indices.shape[1]
    entries, offsets = transpose(indices, d_sae)
    out = torch.empty(d_sae, d_in, dtype=torch.float32, device=rows.device)
    width = tile_width(d_in)
    weight_grad_kernel[(d_sae, triton.cdiv(d_in, width))](
        rows.contiguous(), values.contiguous(), entries, offsets, out, d_in, k,
        ROWS=TILE_ROWS, WIDTH=width,
    )  # fmt: skip
    return out


def latent_sums(
    values: Float[Tensor, "tokens k"], indices: Int[Tensor, "tokens k"], d_sae: int
) -> Float[Tensor, "d_sae"]:
    """For each latent, the sum of its values: the weight gradient for rows that are the number one."""
    ones = values.new_ones(values.shape[0], 1)
    return weight_grad(ones, values, indices, d_sae).squeeze(-1)
