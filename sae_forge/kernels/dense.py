"""The same operations as dense products: ahead of the sparse forms where a token keeps a large share of the latents.

A code is formed for some tokens at a time, so that the tokens × d_sae numbers never exist at once.
"""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_forge.kernels.affine import affine
from sae_forge.kernels.rows import DecodeLoss, Extra, Rates, RowGradients, Rows, Slopes, adam_rows_, remove_parallel_
from sae_forge.kernels.transpose import Transpose

CODE_TOKENS = 1024


def topk_affine(
    x: Float[Tensor, "tokens d_in"], W_enc: Float[Tensor, "d_in d_sae"], b_enc: Float[Tensor, "d_sae"], k: int, *,
    dtype: torch.dtype, at_once: int, choose: Callable[[Tensor, int], tuple[Tensor, Tensor]],
    seen: Callable[[Tensor], None] | None,
) -> tuple[Float[Tensor, "tokens k"], Int[Tensor, "tokens k"]]:  # fmt: skip
    """The k largest of ``x @ W_enc + b_enc`` of each token and where they are, by a product of some tokens at a time,
    which is made in ``dtype`` and shown to ``seen``.
    """
    values, parts = b_enc.new_empty(len(x), k), []
    weights, bias = W_enc.to(dtype), b_enc.to(dtype)
    for start in range(0, len(x), at_once):
        part = slice(start, min(len(x), start + at_once))
        pre_acts = affine(x[part].to(dtype), weights, bias)
        if seen is not None:
            seen(pre_acts)
        values[part], where = choose(pre_acts, k)
        parts.append(where)
        del pre_acts  # before there are others
    return values, torch.cat(parts)


def decode(
    values: Float[Tensor, "tokens k"], indices: Int[Tensor, "tokens k"], W_dec: Float[Tensor, "d_sae d_in"]
) -> Float[Tensor, "tokens d_in"]:
    """The code times ``W_dec``."""
    out = W_dec.new_empty(len(values), W_dec.shape[1])
    for piece in _pieces(len(values)):
        torch.mm(_code(values[piece].to(W_dec.dtype), indices[piece], len(W_dec)), W_dec, out=out[piece])
    return out


def value_grad(
    grad: Float[Tensor, "tokens d_in"], indices: Int[Tensor, "tokens k"], W_dec: Float[Tensor, "d_sae d_in"]
) -> Float[Tensor, "tokens k"]:
    """The output gradient times every row of ``W_dec``, of which the named ones are kept."""
    out = torch.empty(indices.shape, dtype=_wide(grad.dtype), device=grad.device)
    for piece in _pieces(len(grad)):
        out[piece] = (grad[piece].to(W_dec.dtype) @ W_dec.T).gather(1, indices[piece].long())
    return out


def weight_grad(
    rows: Float[Tensor, "tokens d_in"], values: Float[Tensor, "tokens k"], indices: Int[Tensor, "tokens k"],
    table: Transpose,
) -> Float[Tensor, "d_sae d_in"]:  # fmt: skip
    """The transposed code times the rows."""
    total = torch.zeros(table.d_sae, rows.shape[1], dtype=_wide(rows.dtype), device=rows.device)
    for piece in _pieces(len(rows)):
        total += _code(values[piece].to(rows.dtype), indices[piece], table.d_sae).T @ rows[piece]
    return total


def latent_sums(
    values: Float[Tensor, "tokens k"], indices: Int[Tensor, "tokens k"], table: Transpose
) -> Float[Tensor, "d_sae"]:
    """For each latent, the sum of its values."""
    total = torch.zeros(table.d_sae, dtype=_wide(values.dtype), device=values.device)
    for piece in _pieces(len(values)):
        total += _code(values[piece], indices[piece], table.d_sae).sum(dim=0)
    return total


def decode_loss(
    values: Float[Tensor, "tokens k"],
    indices: Int[Tensor, "tokens k"],
    W_dec: Float[Tensor, "d_sae d_in"],
    target: Float[Tensor, "tokens d_in"],
) -> DecodeLoss:
    """The reconstruction minus ``target``, its squared length, and its product with every row it was made of."""
    residual = decode(values, indices, W_dec) - target
    wide = residual.to(_wide(residual.dtype))
    return DecodeLoss(residual, torch.linalg.vecdot(wide, wide), value_grad(residual, indices, W_dec))


def row_gradients(slopes: Slopes, table: Transpose, rows: Rows, extra: Extra | None) -> RowGradients:
    """Gradients of what the latents own; that of a row of ``W_dec`` is orthogonal to it."""
    gradients = RowGradients(
        weight_grad(slopes.target, slopes.pre_acts, slopes.indices, table),
        weight_grad(slopes.residual, slopes.values, slopes.indices, table),
        latent_sums(slopes.pre_acts, slopes.indices, table) if slopes.bias is None else slopes.bias.clone(),
    )
    if extra is not None:
        named = (extra.row_of >= 0).to(gradients.b_enc.dtype)
        place = extra.row_of.clamp_min(0).long()
        for held, more in zip(gradients, extra[1:], strict=True):
            held += more[place] * named.view(-1, *[1] * (more.dim() - 1))
    remove_parallel_(gradients.W_dec, rows.W_dec.weight)
    return gradients


def rows_adam(slopes: Slopes, table: Transpose, rows: Rows, rates: Rates, extra: Extra | None) -> None:
    """Adam on what the latents own, rows of ``W_dec`` back at unit norm."""
    adam_rows_(rows, row_gradients(slopes, table, rows, extra), rates)


def _code(values: Tensor, indices: Tensor, d_sae: int) -> Float[Tensor, "tokens d_sae"]:
    """The code of some tokens; a latent that is named twice has its values added."""
    return values.new_zeros(len(values), d_sae).scatter_add_(1, indices.long(), values)


def _pieces(tokens: int) -> Iterator[slice]:
    for start in range(0, tokens, CODE_TOKENS):
        yield slice(start, min(tokens, start + CODE_TOKENS))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype in (torch.float32, torch.float64) else torch.float32
