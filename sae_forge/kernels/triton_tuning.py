"""How each Triton kernel is cut up for given sizes: a table, not a search, so a first step is as fast as the second.

Every function returns the keywords of one launch. The ahead-of-time test compiles the same keywords, so what spills
there would spill on a GPU, and what does not, does not.
"""

from functools import cache
from typing import NamedTuple

import torch

SEGMENT = 256
"""Entries a latent's own program sums; what it has beyond them is summed by other programs first."""
MAX_K = 512
"""Latents per token the selection holds at once."""
MAX_FUSED_K = 256
"""Latents per token whose rows the fused decode holds at once; of more it reads every row twice."""
MAX_ROW = 8192
"""Columns of a row one program can hold through a step of Adam."""
PIECE = 4096
"""Columns of a longer row that it sums at a time."""

LAUNCH = 32
"""Columns that a program of a sum could have read in the time its own indices and weights take; by reasoning."""

Launch = dict[str, int]


class Target(NamedTuple):
    """What of a device decides how a row is cut."""

    lanes: int = 32
    """Threads of a warp: 64 on AMD's CDNA, where as many warps would pass the limit of threads."""
    alone: int = 8
    """Gathered rows in flight at most where no state of Adam's is held: with 8 ptxas spills on Blackwell."""
    beside_tail: int = 8
    """And where it is, in a row of two parts, and in a decode: with 8 ptxas spills on Ada."""
    prefetches: bool = False
    """Whether it knows PTX's instruction that brings a line to the L2 cache and holds no register for it."""


@cache
def target(device: torch.device) -> Target:
    """The device that a launch goes to; one without a GPU is the interpreter's."""
    if device.type != "cuda":
        return Target()
    gpu = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return Target(gpu.warp_size)
    ada = (gpu.major, gpu.minor) == (8, 9)
    return Target(alone=4 if gpu.major >= 10 else 8, beside_tail=4 if ada else 8, prefetches=True)


def topk(d_sae: int, k: int) -> Launch:
    """Width of a strip, room for candidates (twice k: equal pre-acts are some too), how many are looked at together."""
    block = max(16, min(2048, power_above(d_sae)))
    candidates = max(64, 2 * power_above(k))
    most = 512 if candidates < 512 else 256  # with both at 512 ptxas spills on Ampere
    chunk = min(most, max(256, power_above(k * -(-d_sae // block))))
    return {"BLOCK": block, "CANDIDATES": candidates, "CHUNK": chunk, "num_warps": 4}


def decode_loss(d_in: int, k: int, dtype: torch.dtype) -> Launch:
    """Slots and columns of the block of gathered rows a token's program holds."""
    slots = max(4, power_above(k))
    warps = 4 if slots <= 64 else 8
    held = warps * (1024 if dtype.itemsize == 2 else 512)
    width = min(max(16, held // slots), 256, max(16, power_above(d_in)))
    return {"SLOTS": slots, "WIDTH": width, "num_warps": warps}


def rows(d_in: int, dtype: torch.dtype, on: Target, *, stateless: bool = False) -> Launch:
    """A whole row as one or two powers of two (2304 = 2048 + 256), how many gathered ones are in flight, and when what
    Adam keeps of it is read: asked for before the gather, and all at once, where that leaves no fewer programs room.
    """
    late = {"PREFETCH": False, "TOGETHER": False}
    if d_in > MAX_ROW:
        return {"ROWS": 2, "WIDE": PIECE, "TAIL": 0, "num_warps": 512 // on.lanes, **late}
    half = dtype.itemsize == 2
    wide = max(16, power_above(d_in + 1) // 2)
    tail = 0 if d_in <= wide else max(16, power_above(d_in - wide))
    if tail == wide:
        wide, tail = 2 * wide, 0
    threads = min(512, max(32, wide // 8))  # of 8 numbers each
    flight = max(1, min(8, threads * (64 if half else 32) // wide))
    crowded = tail > 256 and threads < 512  # such a tail takes the registers of half of them
    if crowded:
        flight //= 2
    flight = min(flight, on.alone if stateless else on.beside_tail if tail else flight)
    launch = {"ROWS": flight, "WIDE": wide, "TAIL": tail, "num_warps": max(1, threads // on.lanes)}
    # at 64 registers a thread one more leaves a program less resident, and in fp32 ptxas spills on Blackwell
    early = half and not stateless and not crowded and not (wide == 4096 and not tail)
    return launch | {"PREFETCH": early and on.prefetches, "TOGETHER": early}


def centred(d_in: int, dtype: torch.dtype) -> Launch:
    """Tokens of a program, and columns that it makes of all of them at a time."""
    most = 256 if dtype.itemsize == 2 else 128
    return {"SHARE": 16, "WIDTH": min(most, max(16, power_above(d_in))), "num_warps": 8}


def sum_of_rows(d_in: int, dtype: torch.dtype) -> Launch:
    """Rows that a program sums, how many of them at a time, and columns of each."""
    width = min(256, max(16, power_above(d_in)))
    return {"SHARE": 256, "ROWS": 16 if dtype.itemsize == 2 else 8, "WIDTH": width, "num_warps": 4}


def tiles(d_in: int, dtype: torch.dtype, flight: int = 8) -> Launch:
    """Rows and columns of a sum that needs no whole row: the width at which all programs together take least.

    A program takes as long as its width, of which the last one's may lie idle, and ``LAUNCH`` besides.
    """
    most = 1024 if dtype.itemsize == 2 else 512
    widths = [width for width in (1024, 512, 256, 128, 64, 32, 16) if width <= min(most, power_above(d_in))] or [16]
    width = min(widths, key=lambda width: (-(-d_in // width) * (width + LAUNCH), width))
    return {"ROWS": flight, "WIDTH": width, "num_warps": max(1, 4 * width // most)}


def power_above(number: int) -> int:
    """The smallest power of two that is no smaller."""
    return 1 << max(number - 1, 0).bit_length()
