"""The encoder's product and top-k on a CPU: an int8 product names candidates, fp32 dots of those alone decide.

Tokens and latents are rounded to int8 by a scale each. The product of the rounded, for which processors have faster
instructions, says of every pre-act how large it may be at most; those that may be among the k largest are then made in
fp32, and the k largest of them are the k largest of all.

How large at most: rounding is dithered, which makes a bound hold whatever the numbers are. Before a token's number is
rounded something uniform in (-1/2, 1/2) is added to it, and taken off again after the product (``Table.constant``); its
error is then uniform and independent of the number, sub-Gaussian with variance ``step² / 12``. A latent's is rounded
down after something uniform in (0, 1) was added; its error has mean zero and variance proxy ``step² / 4``. So a pre-act
is more than ``DEVIATIONS`` such deviations above what its int8 product says with probability below
exp(-DEVIATIONS² / 2) = 1.3e-14, and one step in 600 million misses one (131,072 entries a step). What is added is drawn
once and for all; nothing but the choice of candidates ever depends on it.

A token whose candidates do not settle it (equal pre-acts, numbers that are not finite) goes through the dense product.
"""

import platform
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_forge.kernels import reference
from sae_forge.kernels.affine import affine
from sae_forge.kernels.cpu import kth_largest, largest, pair_dots

DEVIATIONS = 8.0
LEAST_WEIGHTS = {True: 2_000_000, False: 6_000_000}
"""Of an encoder, with VNNI and without: below, the dense product is not worth a detour."""
LEAST_TOKENS = 512
"""In a call, since each rounds the encoder anew."""
GROUP = 16
"""Pre-acts of which only the greatest is looked at first."""
MARGIN = 1.2
"""How far under the k-th greatest bound the k-th pre-act is looked for at first, in what bounds are too large by."""

_PRE_ACTS = 3_200_000
"""At a time: 12 MiB, which stay in the cache until they have been looked at."""
_TOKENS = 512
"""Whose candidates are multiplied together, latent by latent."""
_WEIGHTS = 2**18
"""Rounded at a time: 1 MiB."""
_CROWD = 4
"""Times k groups of a token that may hold one of the k: it is left to the dense product if there are more."""
_LIMIT = 127


class Table(NamedTuple):
    """An encoder in int8."""

    packed: Tensor
    """As oneDNN reads it."""
    step: Float[Tensor, "d_sae"]
    constant: Float[Tensor, "d_sae"]
    """What the dither of a token adds to its product, with the sign turned; in units of the token's step."""
    norm: Float[Tensor, "d_sae"]
    """Length of the rounded row."""


class Tokens(NamedTuple):
    """Some tokens, and the same in int8."""

    x: Float[Tensor, "tokens d_in"]
    numbers: Int[Tensor, "tokens d_in"]
    step: Float[Tensor, "tokens 1"]
    above: Float[Tensor, "d_sae"]
    """Of each latent, how far its product may lie under the truth, in units of the token's step."""


def fits(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int) -> bool:
    """Whether this form can be taken, and pays."""
    d_in, d_sae = W_enc.shape
    return (
        x.device.type == "cpu"
        and all(tensor.dtype == torch.float32 for tensor in (x, W_enc, b_enc))
        and W_enc.T.is_contiguous()
        and d_in * d_sae >= LEAST_WEIGHTS[_has_vnni()]
        and len(x) >= LEAST_TOKENS
        and d_sae % GROUP == 0
        and d_sae >= 2 * GROUP * k
        and _multiplies_exactly()
    )


def topk_affine(
    x: Float[Tensor, "tokens d_in"], W_enc: Float[Tensor, "d_in d_sae"], b_enc: Float[Tensor, "d_sae"], k: int
) -> tuple[Float[Tensor, "tokens k"], Int[Tensor, "tokens k"]]:
    """The k largest of ``x @ W_enc + b_enc`` of each token and where they are; of equal ones the lower latents."""
    rows, table = W_enc.T, rounded_encoder(W_enc.T)
    values, indices = x.new_empty(len(x), k), torch.empty(len(x), k, dtype=torch.int64)
    unsettled = []
    for part in _blocks(len(x), _TOKENS):
        values[part], indices[part], last, settled = _largest(x[part], rows, b_enc, table, None, k)
        # where k are known and the guess was too high: what may reach the last of them
        if len(again := torch.nonzero(~settled & torch.isfinite(last).squeeze(1)).squeeze(1)):
            top, where, _, settled[again] = _largest(x[part][again], rows, b_enc, table, last[again], k)
            values[part][again], indices[part][again] = top, where
        unsettled.append(torch.nonzero(~settled).squeeze(1) + part.start)
        if 4 * len(unsettled[-1]) > part.stop - part.start:  # more is done twice than spared
            unsettled.append(torch.arange(part.stop, len(x)))
            break
    for some in torch.cat(unsettled).split(_at_once(W_enc.shape[1])):
        values[some], indices[some] = reference.topk(affine(x[some], W_enc, b_enc), k)
    return values, indices


def rounded_encoder(rows: Float[Tensor, "d_sae d_in"]) -> Table:
    """The latents' rows in int8."""
    d_sae, d_in = rows.shape
    dither, token_dither = _dither(d_in)
    numbers = torch.empty(d_sae, d_in, dtype=torch.int8)
    step, constant, norm = torch.empty(3, d_sae).unbind()
    for part in _blocks(d_sae, max(1, _WEIGHTS // d_in)):
        step[part] = rows[part].abs().amax(dim=1).clamp_min_(1e-30).div_(_LIMIT - 0.5)
        whole = torch.addcmul(dither, rows[part], step[part].reciprocal().unsqueeze(1)).floor_()
        numbers[part], constant[part] = whole, torch.mv(whole, token_dither)
        norm[part] = torch.linalg.vector_norm(whole, dim=1)
    packed = torch.ops.onednn.qlinear_prepack(numbers, None)
    return Table(packed, step, constant.mul_(step).neg_(), norm.mul_(step))


def rounded_tokens(x: Float[Tensor, "tokens d_in"], table: Table) -> Tokens:
    """Tokens in int8, with their zero in the middle of what fits a byte."""
    limit = _token_limit()
    _, dither = _dither(x.shape[1])
    step = x.abs().amax(dim=1, keepdim=True).clamp_min_(1e-30).div_(limit - 0.5)
    numbers = torch.addcmul(dither + (limit + 1), x, step.reciprocal()).round_().to(torch.uint8)
    longest = (torch.linalg.vector_norm(x, dim=1, keepdim=True) / step).amax()
    variance = table.norm.square() / 12 + (longest * table.step).square() / 4
    return Tokens(x, numbers, step, variance.sqrt_().mul_(DEVIATIONS * 1.001))  # a thousandth for the rounding of fp32


def upper_bounds(tokens: Tokens, table: Table, b_enc: Tensor, some: slice) -> Float[Tensor, "some d_sae"]:
    """What the pre-acts of some tokens are at most."""
    products = _product(tokens.numbers[some], table, table.constant + tokens.above)
    return torch.addcmul(b_enc, products, tokens.step[some], out=products)


def _largest(
    x: Tensor, rows: Tensor, b_enc: Tensor, table: Table, least: Tensor | None, k: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The k largest of those that may reach ``least`` (None: a guess), where they are, the last of them, and whether no
    other latent can be in its place.
    """
    token, latent, least = _candidates(rounded_tokens(x, table), table, b_enc, least, k)
    counts = torch.bincount(token, minlength=len(x))
    rank = torch.arange(len(token)) - (counts.cumsum(0) - counts)[token]
    width = max(k, int(counts.max()))
    held = x.new_full((len(x), width), -torch.inf)
    place = torch.full((len(x), width), len(rows))
    held[token, rank] = pair_dots(x, rows, token, latent).add_(b_enc[latent])
    place[token, rank] = latent
    at, certain = largest(held, k)
    values = held.gather(1, at)
    last = values.amin(dim=1, keepdim=True)
    return values, place.gather(1, at), last, certain & (last >= least).squeeze(1)


def _candidates(
    tokens: Tokens, table: Table, b_enc: Tensor, least: Tensor | None, k: int
) -> tuple[Int[Tensor, "n"], Int[Tensor, "n"], Float[Tensor, "tokens 1"]]:
    """Token after token the latents that may reach what is asked for, and that."""
    d_sae = len(table.step)
    under = tokens.step * (tokens.above.mean() * MARGIN)
    parts = []
    for some in _blocks(len(tokens.x), _at_once(d_sae)):
        bounds = upper_bounds(tokens, table, b_enc, some).view(-1, GROUP, d_sae // GROUP)
        greatest = bounds.amax(dim=1)
        asked = _about_kth(greatest, k) - under[some] if least is None else least[some]
        reach = greatest >= asked
        reach &= reach.sum(dim=1, keepdim=True) <= _CROWD * k
        token, group = torch.nonzero(reach, as_tuple=True)
        of_group, slot = torch.nonzero(bounds[token, :, group] >= asked[token], as_tuple=True)
        parts.append((token[of_group] + some.start, slot * (d_sae // GROUP) + group[of_group], asked))
        del bounds, greatest  # before there are others
    token, latent, asked = (torch.cat(each) for each in zip(*parts, strict=True))
    return token, latent, asked


def _about_kth(greatest: Float[Tensor, "tokens groups"], k: int) -> Float[Tensor, "tokens 1"]:
    """About the k-th greatest of all, from the greatest of a quarter as many groups, of which the k fill so many."""
    tokens, groups = greatest.shape
    if groups % 4 == 0:
        greatest = greatest.view(tokens, 4, groups // 4).amax(dim=1)
    groups = greatest.shape[1]
    filled = max(1, min(k, round(groups * (1 - (1 - 1 / groups) ** k))))
    return kth_largest(greatest, filled)


def _product(numbers: Tensor, table: Table, constant: Tensor) -> Float[Tensor, "tokens d_sae"]:
    """What the int8 numbers come to in units of the tokens' steps, plus ``constant``."""
    zero, zeros = _token_limit() + 1, torch.zeros(len(table.step), dtype=torch.int64)
    return torch.ops.onednn.qlinear_pointwise(
        numbers, 1.0, zero, table.packed, table.step, zeros, constant, 1.0, 0, torch.float32, "none", [], ""
    )


def _at_once(d_sae: int) -> int:
    return max(64, _PRE_ACTS // d_sae // 64 * 64)


def _blocks(count: int, size: int) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, min(count, start + size))


@cache
def _dither(d_in: int) -> tuple[Float[Tensor, "d_in"], Float[Tensor, "d_in"]]:
    """What is added to the numbers of a latent, and to those of a token."""
    of_latent, of_token = torch.rand(2, d_in, generator=torch.Generator().manual_seed(0)).unbind()
    return of_latent, of_token - 0.5


def _has_vnni() -> bool:
    return torch.cpu._is_vnni_supported()


def _token_limit() -> int:
    """The greatest number of a token. Without VNNI two products are added up in 16 bits, which has to be enough."""
    return _LIMIT if _has_vnni() else _LIMIT // 2


@cache
def _multiplies_exactly() -> bool:
    """Whether the int8 product is there, and right where its sums are greatest."""
    if platform.machine() not in ("x86_64", "AMD64") or not hasattr(torch.ops.onednn, "qlinear_pointwise"):
        return False
    limit, ones = _token_limit(), torch.ones(64)
    weights = torch.full((64, 256), _LIMIT, dtype=torch.int8)
    weights[::2] = -_LIMIT
    numbers = torch.full((32, 256), 2 * limit + 1, dtype=torch.uint8)
    numbers[::2] = 1
    try:
        packed = torch.ops.onednn.qlinear_prepack(weights, None)
        made = _product(numbers, Table(packed, ones, ones, ones), torch.zeros(64))
    except RuntimeError:
        return False
    return torch.equal(made, (numbers.float() - (limit + 1)) @ weights.float().T)
