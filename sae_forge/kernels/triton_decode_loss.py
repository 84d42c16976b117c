"""Decode, loss and gradient of the values in one Triton kernel that reads every gathered row once.

A token's program holds a block of its rows, all slots by some columns: their weighted sum minus the target is the
residual there, and the same block times that residual is a share of every slot's product. The shares are kept apart by
column to the end, so that one reduction per token is enough. The next block is asked for before this one is used.
More slots than MAX_FUSED_K leave a block too few columns to be worth it: then the rows are read once for each.
"""

# pyright: reportArgumentType=false
# A launch takes plain numbers where a kernel declares tl.constexpr.

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from sae_forge.errors import BackendError
from sae_forge.kernels import triton_tuning
from sae_forge.kernels.rows import DecodeLoss
from sae_forge.kernels.triton_sparse_decode import decode, value_grad
from sae_forge.kernels.triton_tuning import MAX_FUSED_K, MAX_K


@triton.jit
def decode_loss_kernel(
    values, indices, W_dec, target, residual, squares, dots, D_IN, K, SLOTS: tl.constexpr, WIDTH: tl.constexpr
):
    """One token: residual = sum of values × rows − target, its square, and its product with each of the rows."""
    token = tl.program_id(0).to(tl.int64)
    slots = tl.arange(0, SLOTS)
    present = slots < K
    latents = tl.load(indices + token * K + slots, mask=present, other=0).to(tl.int64)
    weights = tl.load(values + token * K + slots, mask=present, other=0.0).to(tl.float32)
    target += token * D_IN
    residual += token * D_IN
    columns = tl.arange(0, WIDTH)
    starts = W_dec + latents[:, None] * D_IN + columns[None, :]  # [SLOTS, WIDTH]
    rows = tl.load(starts, mask=present[:, None] & (columns < D_IN)[None, :], other=0.0)
    products = tl.zeros([SLOTS, WIDTH], tl.float32)
    square = tl.zeros([WIDTH], tl.float32)
    for start in range(0, D_IN, WIDTH):
        inside = start + columns < D_IN
        beyond = start + WIDTH
        ahead = tl.load(starts + beyond, mask=present[:, None] & (beyond + columns < D_IN)[None, :], other=0.0)
        wanted = tl.load(target + start + columns, mask=inside, other=0.0).to(tl.float32)
        wide = rows.to(tl.float32)
        error = tl.sum(wide * weights[:, None], axis=0) - wanted  # [WIDTH]
        tl.store(residual + start + columns, error.to(residual.dtype.element_ty), mask=inside)
        square += error * error
        products += wide * error[None, :]
        rows = ahead
    tl.store(squares + token, tl.sum(square, axis=0))
    tl.store(dots + token * K + slots, tl.sum(products, axis=1), mask=present)


def decode_loss(
    values: Float[Tensor, "tokens k"],
    indices: Int[Tensor, "tokens k"],
    W_dec: Float[Tensor, "d_sae d_in"],
    target: Float[Tensor, "tokens d_in"],
) -> DecodeLoss:
    """The reconstruction minus ``target``, its squared length, and its product with every row it was made of.

    The last two are of the residual before it is rounded to the dtype of ``target``.
    """
    (tokens, k), d_in = indices.shape, W_dec.shape[1]
    if k > MAX_K:
        raise BackendError(f"the fused Triton decode takes at most {MAX_K} latents per token, not k={k}; use reference")
    if k > MAX_FUSED_K:
        exact = decode(values, indices, W_dec, torch.float32).sub_(target)
        return DecodeLoss(exact.to(target.dtype), exact.square().sum(dim=1), value_grad(exact, indices, W_dec))
    residual = torch.empty(tokens, d_in, dtype=target.dtype, device=target.device)
    squares = torch.empty(tokens, dtype=torch.float32, device=target.device)
    dots = torch.empty(tokens, k, dtype=torch.float32, device=target.device)
    decode_loss_kernel[(tokens,)](
        values.contiguous(), indices.contiguous(), W_dec.contiguous(), target.contiguous(), residual, squares, dots,
        d_in, k, **triton_tuning.decode_loss(d_in, k, W_dec.dtype),
    )  # fmt: skip
    return DecodeLoss(residual, squares, dots)
