"""The k largest of every row, exactly, in Triton, for little more than one read of the row.

The row is read in strips as wide as a program, and each lane keeps the largest it saw. The k-th largest of these is
reached by at least k numbers of the row, so the k largest are among those that reach it; and all of these lie in the
few lanes that reached it. Those lanes are read again, what reaches the bound is put in a list, and the list is decided.
Where so many are equal that the list overflows, the whole row is decided instead.

Every threshold is found by bisection over integers in the order of the floats. So equal numbers are told apart by their
place alone, infinities are ordinary, a NaN counts as beyond the one of its sign, and nothing can loop for
ever.
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
from sae_forge.kernels.triton_tuning import MAX_K

LOWEST = tl.constexpr(-(2**31))


@triton.jit
def order(bits):
    """Integers in the order of the floats with these bits; the two zeros are one."""
    if bits.dtype == tl.int16:
        keys = bits.to(tl.int32)
        keys = tl.where(keys < 0, keys ^ 0x7FFF, keys)
    else:
        keys = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return tl.where(keys == -1, 0, keys)


@triton.jit
def upper_mean(low, high):
    """The mean, rounded up, without the sum that would overflow."""
    return (low | high) - ((low ^ high) >> 1)


@triton.jit
def kth_largest(keys, low, high, K):
    """The k-th largest key, known to lie in [low, high]; a key of LOWEST stands for none."""
    while low < high:
        middle = upper_mean(low, high)
        enough = tl.sum((keys >= middle).to(tl.int32), axis=0) >= K
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle - 1)
    return low


@triton.jit
def kth_largest_of_row(row, low, high, D_SAE, K, BLOCK: tl.constexpr):
    """The same of a whole row, read once per halving."""
    while low < high:
        middle = upper_mean(low, high)
        reached = tl.zeros([BLOCK], tl.int32)
        for start in range(0, D_SAE, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            inside = columns < D_SAE
            reached += (inside & (order(tl.load(row + columns, mask=inside, other=0)) >= middle)).to(tl.int32)
        enough = tl.sum(reached, axis=0) >= K
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle - 1)
    return low


@triton.jit
def places_of(above, equal, above_before, equal_before, above_in_all):
    """Where chosen ones are written: those above the bound first, then those equal to it, each in column order."""
    counts = tl.cumsum((above.to(tl.int32) << 16) | equal.to(tl.int32), axis=0)  # both in one scan
    place_above = above_before + (counts >> 16) - 1
    place_equal = above_in_all + equal_before + (counts & 0xFFFF) - 1
    return tl.where(above, place_above, place_equal)


@triton.jit
def list_reaching(row, kept_lanes, kept_columns, lanes_kept, bound, D_SAE, BLOCK, CANDIDATES, CHUNK: tl.constexpr):
    """Write the columns that reach ``bound``, strip by strip and lane by lane, which is column order; how many."""
    to_see = lanes_kept * tl.cdiv(D_SAE, BLOCK)
    listed = 0
    for start in range(0, to_see, CHUNK):
        slots = start + tl.arange(0, CHUNK)
        strips = slots // lanes_kept
        lanes = tl.load(kept_lanes + (slots - strips * lanes_kept), mask=slots < to_see, other=0)
        columns = strips * BLOCK + lanes
        inside = (slots < to_see) & (columns < D_SAE)
        reaching = inside & (order(tl.load(row + columns, mask=inside, other=0)) >= bound)
        places = listed + tl.cumsum(reaching.to(tl.int32), axis=0) - 1
        tl.store(kept_columns + places, columns, mask=reaching & (places < CANDIDATES))
        listed += tl.sum(reaching.to(tl.int32), axis=0)
    return listed


@triton.jit
def choose_from_list(row, kept_columns, found, values, indices, low, high, K, CANDIDATES: tl.constexpr):
    """The k largest of the listed columns."""
    slots = tl.arange(0, CANDIDATES)
    present = slots < found
    columns = tl.load(kept_columns + slots, mask=present, other=0)
    bits = tl.load(row + columns, mask=present, other=0)
    keys = tl.where(present, order(bits), LOWEST)
    bound = kth_largest(keys, low, high, K)
    above = present & (keys > bound)
    equal = present & (keys == bound)
    places = places_of(above, equal, 0, 0, tl.sum(above.to(tl.int32), axis=0))
    chosen = above | (equal & (places < K))
    tl.store(values + places, bits, mask=chosen)
    tl.store(indices + places, columns, mask=chosen)


@triton.jit
def choose_from_row(row, values, indices, low, high, D_SAE, K, BLOCK: tl.constexpr):
    """The k largest of all columns."""
    bound = kth_largest_of_row(row, low, high, D_SAE, K, BLOCK)
    larger = tl.zeros([BLOCK], tl.int32)
    for start in range(0, D_SAE, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < D_SAE
        larger += (inside & (order(tl.load(row + columns, mask=inside, other=0)) > bound)).to(tl.int32)
    above_in_all = tl.sum(larger, axis=0)
    above_before = 0
    equal_before = 0
    for start in range(0, D_SAE, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < D_SAE
        bits = tl.load(row + columns, mask=inside, other=0)
        above = inside & (order(bits) > bound)
        equal = inside & (order(bits) == bound)
        places = places_of(above, equal, above_before, equal_before, above_in_all)
        chosen = above | (equal & (places < K))
        tl.store(values + places, bits, mask=chosen)
        tl.store(indices + places, columns, mask=chosen)
        above_before += tl.sum(above.to(tl.int32), axis=0)
        equal_before += tl.sum(equal.to(tl.int32), axis=0)


@triton.jit
def topk_kernel(
    pre_acts, values, indices, scratch, D_SAE, K, BLOCK: tl.constexpr, CANDIDATES: tl.constexpr, CHUNK: tl.constexpr
):
    """One row of ``pre_acts``, as integers of its width; ``scratch`` holds CANDIDATES lanes and as many columns."""
    token = tl.program_id(0).to(tl.int64)
    row = pre_acts + token * D_SAE
    kept_lanes = scratch + token * (2 * CANDIDATES)
    kept_columns = kept_lanes + CANDIDATES

    lanes = tl.arange(0, BLOCK)
    best = tl.full([BLOCK], LOWEST, tl.int32)
    bits = tl.load(row + lanes, mask=lanes < D_SAE, other=0)
    for start in range(0, D_SAE, BLOCK):
        ahead = tl.load(row + start + BLOCK + lanes, mask=start + BLOCK + lanes < D_SAE, other=0)
        best = tl.maximum(best, tl.where(start + lanes < D_SAE, order(bits), LOWEST))
        bits = ahead
    used = lanes < D_SAE
    high = tl.max(best, axis=0)
    low = kth_largest(best, tl.min(tl.where(used, best, high), axis=0), high, K)

    reaching = used & (best >= low)
    places = tl.cumsum(reaching.to(tl.int32), axis=0) - 1
    count = tl.sum(reaching.to(tl.int32), axis=0)
    tl.store(kept_lanes + places, lanes, mask=reaching & (places < CANDIDATES))
    tl.debug_barrier()
    if count <= CANDIDATES:
        count = list_reaching(row, kept_lanes, kept_columns, count, low, D_SAE, BLOCK, CANDIDATES, CHUNK)
        tl.debug_barrier()
    if count <= CANDIDATES:
        choose_from_list(row, kept_columns, count, values + token * K, indices + token * K, low, high, K, CANDIDATES)
    else:
        choose_from_row(row, values + token * K, indices + token * K, low, high, D_SAE, K, CHUNK)


def topk(pre_acts: Float[Tensor, "tokens d_sae"], k: int) -> tuple[Float[Tensor, "tokens k"], Int[Tensor, "tokens k"]]:
    """The k largest of each row and their columns (int32), in no set order; of equal ones the first columns."""
    tokens, d_sae = pre_acts.shape
    if not 1 <= k <= min(MAX_K, d_sae):
        raise BackendError(f"the Triton top-k takes 1 to {min(MAX_K, d_sae)} of {d_sae}, not k={k}; use reference")
    bits = torch.int32 if pre_acts.dtype.itemsize == 4 else torch.int16
    values = torch.empty(tokens, k, dtype=pre_acts.dtype, device=pre_acts.device)
    indices = torch.empty(tokens, k, dtype=torch.int32, device=pre_acts.device)
    launch = triton_tuning.topk(d_sae, k)
    scratch = torch.empty(tokens, 2 * launch["CANDIDATES"], dtype=torch.int32, device=pre_acts.device)
    topk_kernel[(tokens,)](
        pre_acts.contiguous().view(bits), values.view(bits), indices, scratch, d_sae, k, **launch
    )  # fmt: skip
    return values, indices
