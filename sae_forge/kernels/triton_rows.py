"""Sums every latent owns, in Triton: the gradients of its two rows and its bias, and Adam on them in the same breath.

A latent's program reads the tokens that fired it in the order of the transpose, so nothing is added by atomics and a
result repeats to the bit. It holds the whole row, so the part of a gradient along the row is taken from the very sum it
belongs to, and the step, the unit norm and the half-precision copy need no second look. What a latent has beyond
``SEGMENT`` entries is summed by programs of its own before, in pieces that its program adds in order: a latent that
fires on every token keeps nobody waiting. The rows of ``W_dec`` go first and those of ``W_enc`` after, each in one
launch, so that one table of vectors at a time has to stay in the cache. Nothing here waits for the device.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# A launch takes plain numbers where a kernel declares tl.constexpr, and words for the compiler besides; what one kernel
# calls returns tensors of Triton's own.

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from sae_forge.kernels import triton_tuning
from sae_forge.kernels.rows import (
    BETAS,
    EPS,
    Extra,
    Rates,
    RowGradients,
    Rows,
    Slopes,
    adam_,
    adam_rows_,
    remove_parallel_,
)
from sae_forge.kernels.transpose import Transpose

LINE = tl.constexpr(32)
"""Numbers of fp32 in a line of the L2 cache."""
ENTRIES = 512
"""Entries looked at together where they are numbers and not vectors."""
ADAM = {"BETA1": BETAS[0], "BETA2": BETAS[1], "EPS": EPS}


@triton.jit
def arrange_kernel(entries, first, second, tokens, first_out, second_out, COUNT, K, BLOCK: tl.constexpr):
    """The token and the one or two weights of every entry, in the order of the transpose."""
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    present = places < COUNT
    entry = tl.load(entries + places, mask=present, other=0)
    tl.store(tokens + places, (entry // K).to(tl.int32), mask=present)
    tl.store(first_out + places, tl.load(first + entry, mask=present, other=0.0).to(tl.float32), mask=present)
    if second is not None:
        tl.store(second_out + places, tl.load(second + entry, mask=present, other=0.0).to(tl.float32), mask=present)


@triton.jit
def gather(vectors, weights, tokens, begin, end, columns, rest, D_IN, ROWS, WIDE, TAIL: tl.constexpr):
    """Weighted sum over the places [begin, end) of the vectors' ``columns``, and of the ``rest`` if there is a tail."""
    slots = tl.arange(0, ROWS)
    total = tl.zeros([WIDE], tl.float32)
    beside = tl.zeros([ROWS, TAIL if TAIL > 0 else 1], tl.float32)  # too narrow for every warp: summed at the end
    for start in range(begin, end, ROWS):
        present = start + slots < end
        token = tl.load(tokens + start + slots, mask=present, other=0).to(tl.int64)
        weight = tl.load(weights + start + slots, mask=present, other=0.0)[:, None]
        vector = vectors + token[:, None] * D_IN
        mask = present[:, None] & (columns < D_IN)[None, :]
        block = tl.load(vector + columns[None, :], mask=mask, other=0.0)
        if TAIL > 0:
            mask_rest = present[:, None] & (rest < D_IN)[None, :]
            more = tl.load(vector + rest[None, :], mask=mask_rest, other=0.0)
            beside += more.to(tl.float32) * weight
        total += tl.sum(block.to(tl.float32) * weight, axis=0)
    return total, tl.sum(beside, axis=0)


@triton.jit
def segment_kernel(
    vectors, weights, tokens, offsets, beyond, owners, partial, D_IN, D_SAE, SEGMENT,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Some columns of one segment of a latent beyond its first; a segment nobody owns is left."""
    segment = tl.program_id(0).to(tl.int64)
    latent = tl.load(owners + segment)
    owned = latent < D_SAE
    latent = tl.where(owned, latent, 0)
    columns = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    begin = tl.load(offsets + latent) + (segment - tl.load(beyond + latent) + 1) * SEGMENT
    end = tl.where(owned, tl.minimum(begin + SEGMENT, tl.load(offsets + latent + 1)), begin)
    total, _ = gather(vectors, weights, tokens, begin, end, columns, columns, D_IN, ROWS, WIDTH, 0)
    tl.store(partial + segment * D_IN + columns, total, mask=(columns < D_IN) & owned)


@triton.jit
def add_more(total, partial, first, last, extra, row, columns, D_IN):
    """The sum with those of the latent's other segments, in order, and with its row of ``extra`` if it has one."""
    for segment in range(first, last):
        total += tl.load(partial + segment * D_IN + columns, mask=columns < D_IN, other=0.0)
    if extra is not None:
        total += tl.load(extra + row * D_IN + columns, mask=(columns < D_IN) & (row >= 0), other=0.0)
    return total


@triton.jit
def ask_for(numbers, row, D_IN, WIDE: tl.constexpr):
    """Have a row of fp32 numbers brought to the L2 cache; nothing waits for it, and no register holds it."""
    columns = tl.minimum(tl.arange(0, (2 * WIDE + LINE - 1) // LINE) * LINE, D_IN - 1)
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [(numbers + row * D_IN + columns).to(tl.int64)],
        dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@triton.jit
def read(numbers, inside):
    """What is there; in this step nobody reads it again."""
    return tl.load(numbers, mask=inside, other=0.0, eviction_policy="evict_first")


@triton.jit
def adam(weight, mean, square, grad, exp_avg, exp_avg_sq, live, size, root, BETA1: tl.constexpr, BETA2, EPS):
    """The weight after the step, whose moments are written where they lie; ``mean`` and ``square`` are those before."""
    mean = BETA1 * mean + (1 - BETA1) * grad
    square = BETA2 * square + (1 - BETA2) * grad * grad
    tl.store(exp_avg, mean, mask=live, eviction_policy="evict_first")
    tl.store(exp_avg_sq, square, mask=live, eviction_policy="evict_first")
    return weight - size * mean / (tl.sqrt(square) * root + EPS)


@triton.jit
def write(weight, copy, number, live):
    """A weight, and its half-precision copy if it has one."""
    tl.store(weight, number, mask=live, eviction_policy="evict_first")
    if copy is not None:
        tl.store(copy, number.to(copy.dtype.element_ty), mask=live)


@triton.jit
def rows_kernel(
    vectors, weights, tokens, offsets, beyond, partial, row_of, extra, weight, exp_avg, exp_avg_sq, copy,
    size, root, found_inf, out, D_IN, SEGMENT, BETA1: tl.constexpr, BETA2: tl.constexpr, EPS: tl.constexpr,
    UNIT: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr, TAIL: tl.constexpr, PREFETCH: tl.constexpr,
    TOGETHER: tl.constexpr,
):  # fmt: skip
    """One latent's gradient, written to ``out``, or without one applied to ``weight`` by Adam.

    With ``UNIT`` the gradient is made orthogonal to ``weight``, and what Adam leaves is brought to unit norm.
    """
    latent = tl.program_id(0).to(tl.int64)
    if PREFETCH and out is None:
        ask_for(weight, latent, D_IN, WIDE)
        ask_for(exp_avg, latent, D_IN, WIDE)
        ask_for(exp_avg_sq, latent, D_IN, WIDE)
    columns = tl.program_id(1) * WIDE + tl.arange(0, WIDE)
    rest = WIDE + tl.arange(0, TAIL) if TAIL > 0 else columns
    begin = tl.load(offsets + latent)
    end = tl.minimum(tl.load(offsets + latent + 1), begin + SEGMENT)
    first = tl.load(beyond + latent)
    last = tl.load(beyond + latent + 1)
    row = tl.load(row_of + latent).to(tl.int64) if row_of is not None else latent
    grad, grad_rest = gather(vectors, weights, tokens, begin, end, columns, rest, D_IN, ROWS, WIDE, TAIL)
    grad = add_more(grad, partial, first, last, extra, row, columns, D_IN)
    if TAIL > 0:
        grad_rest = add_more(grad_rest, partial, first, last, extra, row, rest, D_IN)

    at = latent * D_IN + columns
    at_rest = latent * D_IN + rest
    width = D_IN
    if out is None:
        width = tl.where(tl.load(found_inf) == 0.0, D_IN, 0)  # nothing is written of a step that is not to be
    live = columns < width
    live_rest = rest < width
    if UNIT or out is None:
        held = read(weight + at, live)
        if TAIL > 0:
            held_rest = read(weight + at_rest, live_rest)
    if TOGETHER and out is None:  # before the sum over the row has to be waited for
        mean = read(exp_avg + at, live)
        square = read(exp_avg_sq + at, live)
        if TAIL > 0:
            mean_rest = read(exp_avg + at_rest, live_rest)
            square_rest = read(exp_avg_sq + at_rest, live_rest)
    if UNIT:
        along = tl.sum(grad * held, axis=0)
        if TAIL > 0:
            along += tl.sum(grad_rest * held_rest, axis=0)
            grad_rest -= along * held_rest
        grad -= along * held
    if out is not None:
        tl.store(out + at, grad, mask=live)
        if TAIL > 0:
            tl.store(out + at_rest, grad_rest, mask=live_rest)
    else:
        step = tl.load(size)
        scale = tl.load(root)
        if not TOGETHER:
            mean = read(exp_avg + at, live)
            square = read(exp_avg_sq + at, live)
        held = adam(held, mean, square, grad, exp_avg + at, exp_avg_sq + at, live, step, scale, BETA1, BETA2, EPS)
        if TAIL > 0:
            if not TOGETHER:
                mean_rest = read(exp_avg + at_rest, live_rest)
                square_rest = read(exp_avg_sq + at_rest, live_rest)
            held_rest = adam(
                held_rest, mean_rest, square_rest, grad_rest, exp_avg + at_rest, exp_avg_sq + at_rest, live_rest,
                step, scale, BETA1, BETA2, EPS,
            )  # fmt: skip
        if UNIT:
            length = tl.sum(tl.where(live, held * held, 0.0), axis=0)
            if TAIL > 0:
                length += tl.sum(tl.where(live_rest, held_rest * held_rest, 0.0), axis=0)
            norm = tl.where(length > 0.0, tl.sqrt(length), 1.0)  # a row of zeros stays one
            held = held / norm
            if TAIL > 0:
                held_rest = held_rest / norm
        write(weight + at, copy + at if copy is not None else copy, held, live)
        if TAIL > 0:
            write(weight + at_rest, copy + at_rest if copy is not None else copy, held_rest, live_rest)


@triton.jit
def numbers_kernel(numbers, entries, offsets, out, BLOCK: tl.constexpr):
    """The sum of one latent's numbers."""
    latent = tl.program_id(0)
    end = tl.load(offsets + latent + 1)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(tl.load(offsets + latent), end, BLOCK):
        present = start + tl.arange(0, BLOCK) < end
        entry = tl.load(entries + start + tl.arange(0, BLOCK), mask=present, other=0)
        total += tl.load(numbers + entry, mask=present, other=0.0).to(tl.float32)
    tl.store(out + latent, tl.sum(total, axis=0))


class Sums(NamedTuple):
    """What every latent has to add, in the order of the transpose."""

    tokens: Int[Tensor, "entries"]
    weights: Float[Tensor, "entries"]
    """The first table of weights."""
    others: Float[Tensor, "entries"] | None
    """The second, if there is one."""
    offsets: Int[Tensor, "d_sae_plus_1"]
    beyond: Int[Tensor, "d_sae_plus_1"]
    """Latent ``i`` owns the segments ``beyond[i]`` to ``beyond[i + 1]``: all of its own but the first."""
    owners: Int[Tensor, "segments"]
    """Whose each segment is; d_sae for those that there might have been."""

    @classmethod
    def of(
        cls, table: Transpose, weights: Float[Tensor, "tokens k"], others: Float[Tensor, "tokens k"] | None = None
    ) -> "Sums":
        """Read one or two tables of weights in the order of ``table``."""
        entries, device = table.entries, table.entries.device
        count, segment = entries.numel(), triton_tuning.SEGMENT
        tokens = torch.empty(count, dtype=torch.int32, device=device)
        first = torch.empty(count, dtype=torch.float32, device=device)
        second = None if others is None else torch.empty_like(first)
        arrange_kernel[(triton.cdiv(count, ENTRIES),)](
            entries, weights.contiguous(), None if others is None else others.contiguous(), tokens, first, second,
            count, weights.shape[1], BLOCK=ENTRIES,
        )  # fmt: skip
        beyond = torch.zeros(table.d_sae + 1, dtype=torch.int64, device=device)
        further = (table.offsets.diff() - 1).clamp_(min=0).div_(segment, rounding_mode="floor")
        torch.cumsum(further, 0, out=beyond[1:])
        owners = torch.searchsorted(beyond[1:], torch.arange(count // segment, device=device), right=True)
        return cls(tokens, first, second, table.offsets, beyond, owners)

    def rows(
        self,
        vectors: Float[Tensor, "tokens d_in"],
        weights: Float[Tensor, "entries"],
        out: Float[Tensor, "d_sae d_in"] | None,
        state: tuple[Tensor | None, ...],
        extra: tuple[Tensor | None, Tensor | None],
        *,
        unit: bool = False,
    ) -> None:
        """Sum every latent's vectors into ``out``, or without one take the step in ``state``."""
        vectors, d_in = vectors.contiguous(), vectors.shape[1]
        on, stateless = triton_tuning.target(vectors.device), all(part is None for part in state)
        launch = triton_tuning.rows(d_in, vectors.dtype, on, stateless=stateless)
        rows_kernel[(len(self.offsets) - 1, triton.cdiv(d_in, launch["WIDE"] + launch["TAIL"]))](
            vectors, weights, self.tokens, self.offsets, self.beyond, self._segments(vectors, weights),
            *extra, *state, out, d_in, triton_tuning.SEGMENT, **ADAM, UNIT=unit, **launch,
        )  # fmt: skip

    def _segments(
        self, vectors: Float[Tensor, "tokens d_in"], weights: Float[Tensor, "entries"]
    ) -> Float[Tensor, "segments d_in"]:
        """The sums of all segments but each latent's first."""
        d_in = vectors.shape[1]
        partial = torch.empty(len(self.owners), d_in, dtype=torch.float32, device=vectors.device)
        if len(partial):
            launch = triton_tuning.tiles(d_in, vectors.dtype)
            segment_kernel[(len(partial), triton.cdiv(d_in, launch["WIDTH"]))](
                vectors, weights, self.tokens, self.offsets, self.beyond, self.owners, partial,
                d_in, len(self.offsets) - 1, triton_tuning.SEGMENT, **launch,
            )  # fmt: skip
        return partial


def _bias(slopes: Slopes, table: Transpose, extra: Extra | None) -> Float[Tensor, "d_sae"]:
    """The gradients of the biases."""
    bias = latent_sums(slopes.pre_acts, slopes.indices, table) if slopes.bias is None else slopes.bias.clone()
    if extra is None:
        return bias
    return bias.add_(torch.where(extra.row_of >= 0, extra.b_enc[extra.row_of.clamp_min(0).long()], 0.0))


def _contiguous(extra: Extra | None) -> tuple[Tensor | None, ...]:
    return (None,) * 3 if extra is None else tuple(part.contiguous() for part in extra[:3])


STATELESS = (None,) * 7
NO_EXTRA = (None, None)


def weight_grad(
    rows: Float[Tensor, "tokens d_in"],
    values: Float[Tensor, "tokens k"],
    indices: Int[Tensor, "tokens k"],  # noqa: ARG001  the table says the same
    table: Transpose,
) -> Float[Tensor, "d_sae d_in"]:
    """For each latent, the sum over its tokens of value × row, in fp32."""
    sums = Sums.of(table, values)
    out = torch.empty(table.d_sae, rows.shape[1], dtype=torch.float32, device=rows.device)
    sums.rows(rows, sums.weights, out, STATELESS, NO_EXTRA)
    return out


def latent_sums(
    values: Float[Tensor, "tokens k"],
    indices: Int[Tensor, "tokens k"],  # noqa: ARG001  the table says the same
    table: Transpose,
) -> Float[Tensor, "d_sae"]:
    """For each latent, the sum of its values, in fp32."""
    out = torch.empty(table.d_sae, dtype=torch.float32, device=values.device)
    numbers_kernel[(table.d_sae,)](
        values.contiguous(), table.entries, table.offsets, out, BLOCK=ENTRIES, num_warps=1
    )  # fmt: skip
    return out


def row_gradients(slopes: Slopes, table: Transpose, rows: Rows, extra: Extra | None) -> RowGradients:
    """Gradients of what the latents own; that of a row of ``W_dec`` is orthogonal to it."""
    sums = Sums.of(table, slopes.values, slopes.pre_acts)
    whole = slopes.target.shape[1] <= triton_tuning.MAX_ROW
    matrices = (torch.empty_like(slot.weight) for slot in rows[:2])
    gradients = RowGradients(*matrices, _bias(slopes, table, extra))
    held = (rows.W_dec.weight, *STATELESS[1:])
    row_of, for_enc, for_dec = _contiguous(extra)
    sums.rows(slopes.residual, sums.weights, gradients.W_dec, held, (row_of, for_dec), unit=whole)
    sums.rows(slopes.target, sums.others, gradients.W_enc, STATELESS, (row_of, for_enc))
    if not whole:
        remove_parallel_(gradients.W_dec, rows.W_dec.weight)
    return gradients


def rows_adam(slopes: Slopes, table: Transpose, rows: Rows, rates: Rates, extra: Extra | None) -> None:
    """Adam on what the latents own, rows of ``W_dec`` back at unit norm; nothing where ``found_inf``.

    No gradient is written anywhere, unless a row is longer than ``MAX_ROW``.
    """
    if slopes.target.shape[1] > triton_tuning.MAX_ROW:
        adam_rows_(rows, row_gradients(slopes, table, rows, extra), rates)
        return
    sums = Sums.of(table, slopes.values, slopes.pre_acts)
    step = (rates.size, rates.root, rates.found_inf)
    row_of, for_enc, for_dec = _contiguous(extra)
    sums.rows(slopes.residual, sums.weights, None, (*rows.W_dec, *step), (row_of, for_dec), unit=True)
    sums.rows(slopes.target, sums.others, None, (*rows.W_enc, *step), (row_of, for_enc))
    adam_([rows.b_enc], [_bias(slopes, table, extra)], rates)
