"""The fast CPU forms, from torch's own embedding-bag kernels: a bag of weighted rows is a sparse product.

The work goes in pieces that stay in a cache: a few tokens of a reconstruction, a few latents of a gradient. No
gradient of a whole weight exists unless it is asked for.
"""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from sae_forge.kernels import reference
from sae_forge.kernels.rows import (
    DecodeLoss,
    Extra,
    Rates,
    RowGradients,
    Rows,
    Slopes,
    Slot,
    adam_rows_,
    remove_parallel_,
)
from sae_forge.kernels.transpose import Transpose

PIECE = 2**19
"""Numbers of a piece: 2 MiB in fp32. In smaller ones fewer tokens share a row that is read; larger leave the cache."""
GROUP = 16
"""Pre-acts that the first round of a top-k compares at once."""
_NUMPY_THREADS = 4
"""Of torch; with more of them it is ahead of numpy, which partitions on one core, in a quarter of the time."""


def decode(
    values: Float[Tensor, "tokens k"], indices: Int[Tensor, "tokens k"], W_dec: Float[Tensor, "d_sae d_in"]
) -> Float[Tensor, "tokens d_in"]:
    """The forward pass: one bag of decoder rows per token.

    Of half-precision rows only those that are named are widened where a batch names fewer than there are, as a
    generated token does.
    """
    dtype = W_dec.dtype
    if indices.numel() < len(W_dec) and _wide(W_dec[:0]).dtype != dtype:
        W_dec = W_dec[indices.reshape(-1)]
        indices = torch.arange(len(W_dec)).view_as(indices)
    return _decode(values, indices, _wide(W_dec)).to(dtype)


def value_grad(
    grad: Float[Tensor, "tokens d_in"], indices: Int[Tensor, "tokens k"], W_dec: Float[Tensor, "d_sae d_in"]
) -> Float[Tensor, "tokens k"]:
    """Gradient of the values: the dot product of each named row with its token's output gradient."""
    tokens, k = indices.shape
    token_of = torch.arange(tokens, dtype=torch.int32).repeat_interleave(k)
    return pair_dots(_wide(grad).contiguous(), _wide(W_dec), token_of, indices.reshape(-1)).view(tokens, k)


def pair_dots(
    vectors: Float[Tensor, "tokens d_in"],
    rows: Float[Tensor, "d_sae d_in"],
    token: Int[Tensor, "n"],
    latent: Int[Tensor, "n"],
) -> Float[Tensor, "n"]:
    """Each named vector times the named row. One row after the other is read, since it is the vectors that a cache
    holds; a product is the same to the bit in any order.
    """
    latent, order = torch.sort(latent.to(torch.int32))
    token = token[order].to(torch.int32)
    dots = torch.ops.aten._embedding_bag_per_sample_weights_backward(vectors, rows, latent, token, token, 0)
    return torch.empty_like(dots).index_copy_(0, order, dots)


def weight_grad(
    rows: Float[Tensor, "tokens d_in"], values: Float[Tensor, "tokens k"], indices: Int[Tensor, "tokens k"],
    table: Transpose,
) -> Float[Tensor, "d_sae d_in"]:  # fmt: skip
    """For each latent, the sum over its tokens of value × row: one bag of tokens per latent."""
    rows = _wide(rows)
    weights = values.reshape(-1)[table.entries].to(rows.dtype)
    return _bags(rows, weights, _tokens(table, indices.shape[1]), table.offsets[:-1])


def latent_sums(
    values: Float[Tensor, "tokens k"], indices: Int[Tensor, "tokens k"], table: Transpose
) -> Float[Tensor, "d_sae"]:
    """For each latent, the sum of its values: the gradient of ``b_enc``."""
    values = _wide(values)
    return values.new_zeros(table.d_sae).index_add_(0, indices.reshape(-1), values.reshape(-1))


# ---- top-k --------------------------------------------------------------------------------------


def topk(pre_acts: Float[Tensor, "tokens d_sae"], k: int) -> tuple[Float[Tensor, "tokens k"], Int[Tensor, "tokens k"]]:
    """The k largest of each token and where they are; of equal ones those that come first.

    The k groups of pre-acts with the greatest numbers hold the k best, all of them greater than any number of another
    group. Where that does not show (equal numbers, NaN), the definition decides.
    """
    tokens, d_sae = pre_acts.shape
    groups = d_sae // GROUP
    if d_sae % GROUP or groups <= 4 * k:
        at, certain = largest(pre_acts, k)
        return _settle(pre_acts, k, pre_acts.gather(1, at), at, certain)
    greatest = pre_acts.view(tokens, GROUP, groups).amax(dim=1)
    others = kth_largest(greatest, k + 1)
    group, apart = _places(greatest > others, k)
    columns = (group.unsqueeze(1) + torch.arange(0, d_sae, groups).view(1, GROUP, 1)).view(tokens, -1)
    reached = pre_acts.gather(1, columns)
    at, certain = largest(reached, k)
    values = reached.gather(1, at)
    certain &= apart & (values > others).all(dim=1)
    return _settle(pre_acts, k, values, columns.gather(1, at), certain)


def largest(numbers: Float[Tensor, "rows columns"], k: int) -> tuple[Int[Tensor, "rows k"], Bool[Tensor, "rows"]]:
    """Where the k largest of each row are, in rising order, and of which rows that is certain: not where the next one
    below is equal to the last one taken. NaN is greater than any number.
    """
    return _places(_reaching(numbers, k), k)


def _reaching(numbers: Float[Tensor, "rows columns"], k: int) -> Bool[Tensor, "rows columns"]:
    """Where the k-th largest of the row is reached: at k places, more where others equal it."""
    # a NaN is not >= any number: it would be left out, and where two are equal the count would be k all the same
    return (numbers < kth_largest(numbers, k)).logical_not_()


def _places(taken: Bool[Tensor, "rows columns"], k: int) -> tuple[Int[Tensor, "rows k"], Bool[Tensor, "rows"]]:
    """The k columns taken in each row, and in which rows they are k; in others any k."""
    certain = taken.sum(dim=1) == k
    if not certain.all():
        taken[~certain] = torch.arange(taken.shape[1]) < k
    return torch.nonzero(taken)[:, 1].view(-1, k), certain


def among_largest(numbers: Float[Tensor, "rows columns"], k: int) -> Bool[Tensor, "rows columns"]:
    """Which numbers are among the k largest of their row; of equal ones those that come first."""
    taken = _reaching(numbers, k)
    certain = taken.sum(dim=1) == k
    if not certain.all():
        rest = numbers[~certain]
        taken[~certain] = torch.zeros_like(rest, dtype=torch.bool).scatter_(1, reference.topk(rest, k)[1], True)
    return taken


def kth_largest(numbers: Float[Tensor, "rows columns"], k: int) -> Float[Tensor, "rows 1"]:
    """The k-th largest of each row, NaN being greater than any number; NaN, too, where one is among the k."""
    if numbers.dtype not in (torch.float32, torch.float64) or torch.get_num_threads() > _NUMPY_THREADS:
        return torch.topk(numbers, k, dim=1, sorted=False).values.amin(dim=1, keepdim=True)
    at = numbers.shape[1] - k
    return torch.from_numpy(np.partition(numbers.detach().numpy(), at, axis=1)[:, at : at + 1].copy())


def _settle(pre_acts: Tensor, k: int, values: Tensor, indices: Tensor, certain: Tensor) -> tuple[Tensor, Tensor]:
    """The rows that are certain as they are, the others by the definition."""
    if not certain.all():
        open_rows = ~certain
        values[open_rows], indices[open_rows] = reference.topk(pre_acts[open_rows], k)
    return values, indices


# ---- training -----------------------------------------------------------------------------------


def decode_loss(
    values: Float[Tensor, "*entries"],
    indices: Int[Tensor, "*entries"],
    W_dec: Float[Tensor, "d_sae d_in"],
    target: Float[Tensor, "tokens d_in"],
    tokens: Int[Tensor, " entries"] | None = None,
) -> DecodeLoss:
    """The reconstruction minus ``target``, its squared length, and its product with every row it was made of.

    Entries lie ``[tokens, k]``, or flat with the token of each.
    """
    residual = torch.empty_like(target)
    squares = values.new_empty(len(target))
    dots = torch.empty_like(values)
    if tokens is None:
        tokens = torch.arange(len(target), dtype=torch.int32).repeat_interleave(values.shape[1])
    starts = torch.searchsorted(tokens, torch.arange(len(target) + 1, dtype=tokens.dtype))
    code, latents, dots_of, rows = values.reshape(-1), indices.reshape(-1), dots.view(-1), _wide(W_dec)
    for piece in _pieces(*target.shape):
        own = slice(int(starts[piece.start]), int(starts[piece.stop]))
        difference = _bags(rows, code[own].to(rows.dtype), latents[own], (starts[piece] - own.start).to(latents.dtype))
        difference.sub_(target[piece])
        squares[piece] = torch.linalg.vecdot(difference, difference)
        dots_of[own] = pair_dots(difference, rows, tokens[own] - piece.start, latents[own])
        residual[piece] = difference
    return DecodeLoss(residual, squares, dots)


def row_gradients(slopes: Slopes, table: Transpose, rows: Rows, extra: Extra | None) -> RowGradients:
    """Gradients of what the latents own; that of a row of ``W_dec`` is orthogonal to it."""
    whole = RowGradients(*(torch.empty_like(slot.weight) for slot in rows))
    for piece, part in _gradients_by_piece(slopes, table, rows, extra):
        for held, computed in zip(whole, part, strict=True):
            held[piece] = computed
    return whole


def rows_adam(slopes: Slopes, table: Transpose, rows: Rows, rates: Rates, extra: Extra | None) -> None:
    """Adam on what the latents own, rows of ``W_dec`` back at unit norm, a cacheful of latents at a time."""
    for piece, part in _gradients_by_piece(slopes, table, rows, extra):
        adam_rows_(Rows(*(_part(slot, piece) for slot in rows)), part, rates)


def _gradients_by_piece(
    slopes: Slopes, table: Transpose, rows: Rows, extra: Extra | None
) -> Iterator[tuple[slice, RowGradients]]:
    """A cacheful of latents after the other, with the gradients of what they own."""
    entries = table.entries
    tokens = (
        _tokens(table, slopes.indices.shape[1]) if slopes.tokens is None else slopes.tokens[entries].to(entries.dtype)
    )
    for_enc, for_dec = slopes.pre_acts.reshape(-1)[entries], slopes.values.reshape(-1)[entries]
    bias = latent_sums(slopes.pre_acts, slopes.indices, table) if slopes.bias is None else slopes.bias.clone()
    target, residual, W_dec = _wide(slopes.target), _wide(slopes.residual), rows.W_dec.weight
    for piece in _pieces(*W_dec.shape):
        begin, end = int(table.offsets[piece.start]), int(table.offsets[piece.stop])
        starts = table.offsets[piece] - begin
        named = tokens[begin:end]
        part = RowGradients(
            _bags(target, for_enc[begin:end], named, starts),
            _bags(residual, for_dec[begin:end], named, starts),
            bias[piece],
        )
        if extra is not None:
            _add(part, extra, piece)
        remove_parallel_(part.W_dec, W_dec[piece])
        yield piece, part


def _add(part: RowGradients, extra: Extra, piece: slice) -> None:
    """Add the gradients that some of these latents have besides."""
    row_of = extra.row_of[piece]
    at = torch.nonzero(row_of >= 0).squeeze(1)
    place = row_of[at].long()
    for held, more in zip(part, extra[1:], strict=True):
        held.index_add_(0, at, more[place])


def _decode(values: Tensor, indices: Tensor, W_dec: Tensor) -> Tensor:
    return functional.embedding_bag(indices, W_dec, mode="sum", per_sample_weights=values.to(W_dec.dtype))


def _bags(rows: Tensor, weights: Tensor, named: Tensor, starts: Tensor) -> Tensor:
    """For each bag the sum of the rows it names, weighted."""
    return functional.embedding_bag(named, rows, starts, mode="sum", per_sample_weights=weights)


def _tokens(table: Transpose, k: int) -> Int[Tensor, "entries"]:
    return table.entries.div(k, rounding_mode="floor")


def _pieces(count: int, width: int) -> Iterator[slice]:
    step = max(1, PIECE // width)
    for start in range(0, count, step):
        yield slice(start, min(count, start + step))


def _part(slot: Slot, piece: slice) -> Slot:
    copy = None if slot.copy is None else slot.copy[piece]
    return Slot(slot.weight[piece], slot.exp_avg[piece], slot.exp_avg_sq[piece], copy)


def _wide(tensor: Tensor) -> Tensor:
    """At least fp32: half-precision sums would lose what the reference keeps."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
