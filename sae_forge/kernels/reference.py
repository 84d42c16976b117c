"""The definitions: plain torch, short enough to check by eye.

Every other backend is right when it agrees with this file. It forms what the fast forms avoid (a k × d_in block per
token, the d_sae-wide code and its dense gradients), so it is for small sizes and for checking.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_forge.kernels.rows import BETAS, EPS, DecodeLoss, Extra, Rates, RowGradients, Rows, Slopes, Slot
from sae_forge.kernels.transpose import Transpose


def decode(
    values: Float[Tensor, "tokens k"], indices: Int[Tensor, "tokens k"], W_dec: Float[Tensor, "d_sae d_in"]
) -> Float[Tensor, "tokens d_in"]:
    """The sum of the named decoder rows, each times its value."""
    rows = W_dec[indices]  # tokens k d_in
    return (values.to(W_dec.dtype).unsqueeze(-1) * rows).sum(dim=-2)


def value_grad(
    grad: Float[Tensor, "tokens d_in"], indices: Int[Tensor, "tokens k"], W_dec: Float[Tensor, "d_sae d_in"]
) -> Float[Tensor, "tokens k"]:
    """Gradient of the values: the dot product of each named row with its token's output gradient."""
    return (grad.unsqueeze(1) * W_dec[indices]).sum(dim=-1)


def weight_grad(
    rows: Float[Tensor, "tokens d_in"], values: Float[Tensor, "tokens k"], indices: Int[Tensor, "tokens k"],
    table: Transpose,
) -> Float[Tensor, "d_sae d_in"]:  # fmt: skip
    """For each latent, the sum over its tokens of value × row."""
    return _code(values, indices, table.d_sae).T @ rows.to(values.dtype)


def latent_sums(
    values: Float[Tensor, "tokens k"], indices: Int[Tensor, "tokens k"], table: Transpose
) -> Float[Tensor, "d_sae"]:
    """For each latent, the sum of its values: the gradient of ``b_enc``."""
    return _code(values, indices, table.d_sae).sum(dim=0)


def topk(pre_acts: Float[Tensor, "tokens d_sae"], k: int) -> tuple[Float[Tensor, "tokens k"], Int[Tensor, "tokens k"]]:
    """The k largest of each token and where they are; of equal ones those that come first."""
    top = torch.sort(pre_acts, dim=-1, descending=True, stable=True)
    return top.values[:, :k], top.indices[:, :k]


def decode_loss(
    values: Float[Tensor, "tokens k"],
    indices: Int[Tensor, "tokens k"],
    W_dec: Float[Tensor, "d_sae d_in"],
    target: Float[Tensor, "tokens d_in"],
) -> DecodeLoss:
    """The reconstruction minus ``target``, its squared length, and its product with every row it was made of."""
    residual = decode(values, indices, W_dec) - target
    return DecodeLoss(residual, residual.square().sum(dim=1), value_grad(residual, indices, W_dec))


def row_gradients(slopes: Slopes, table: Transpose, rows: Rows, extra: Extra | None) -> RowGradients:
    """Gradients of what the latents own; that of a row of ``W_dec`` is orthogonal to it."""
    for_enc = weight_grad(slopes.target, slopes.pre_acts, slopes.indices, table)
    for_dec = weight_grad(slopes.residual, slopes.values, slopes.indices, table)
    bias = latent_sums(slopes.pre_acts, slopes.indices, table) if slopes.bias is None else slopes.bias.clone()
    if extra is not None:
        named = extra.row_of >= 0
        place = extra.row_of[named].long()
        for_enc[named] += extra.W_enc[place]
        for_dec[named] += extra.W_dec[place]
        bias[named] += extra.b_enc[place]
    W_dec = rows.W_dec.weight
    return RowGradients(for_enc, for_dec - (for_dec * W_dec).sum(dim=1, keepdim=True) * W_dec, bias)


def rows_adam(slopes: Slopes, table: Transpose, rows: Rows, rates: Rates, extra: Extra | None) -> None:
    """Adam on what the latents own, rows of ``W_dec`` back at unit norm; nothing where ``found_inf``."""
    if rates.found_inf:
        return
    for slot, gradient in zip(rows, row_gradients(slopes, table, rows, extra), strict=True):
        _adam(slot, gradient, rates)
    norms = rows.W_dec.weight.norm(dim=1, keepdim=True)
    rows.W_dec.weight.div_(norms.clamp_min(torch.finfo(norms.dtype).tiny))
    for slot in rows:
        if slot.copy is not None:
            slot.copy.copy_(slot.weight)


def _adam(slot: Slot, gradient: Tensor, rates: Rates) -> None:
    """Kingma & Ba 2015 (arXiv 1412.6980), algorithm 1."""
    slot.exp_avg.copy_(BETAS[0] * slot.exp_avg + (1 - BETAS[0]) * gradient)
    slot.exp_avg_sq.copy_(BETAS[1] * slot.exp_avg_sq + (1 - BETAS[1]) * gradient.square())
    slot.weight.sub_(rates.size * slot.exp_avg / (slot.exp_avg_sq.sqrt() * rates.root + EPS))


def _code(values: Tensor, indices: Tensor, d_sae: int) -> Float[Tensor, "tokens d_sae"]:
    """The dense code: mostly zeros."""
    return values.new_zeros(len(values), d_sae).scatter_add(1, indices.long(), values)
