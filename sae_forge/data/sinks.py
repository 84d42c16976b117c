"""Sinks: tokens whose activation dwarfs all others, wherever they stand and whatever they say.

A **sink** is a real token whose activation at a hook point is longer than ``TIMES`` the median length of the
activations there. Ordinary rows stay within six times the median; first positions reach 150 times, and some models make
sinks of commas and quotes, at 10 times. A handful of them holds nearly all the variance, so they are left out of
training, of FVU and of selections, and no edit touches them, unless ``keep_sinks`` says otherwise.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_forge.data.reader import ShardReader

TIMES = 8.0
"""Times the median: between 6, the longest row of tiny-llama (SmolLM2: 1.6), and 10, the shortest sink of Gemma 3."""
CENSUS_ROWS, CENSUS_NUMBERS = 32_768, 2**25
"""Rows that are looked at to know what is ordinary, fewer where they would be more numbers than this (128 MiB)."""
_PART = 4096
"""Rows of which a temporary copy is made."""


def sink_norm(rows: Float[Tensor, "rows d_in"]) -> float:
    """The length beyond which an activation is a sink's, by what is ordinary among these rows."""
    return TIMES * float(_lengths(rows).median())


def are_sinks(rows: Float[Tensor, "*rows d_in"], norm: float | None) -> Bool[Tensor, "*rows"]:
    """Which rows are sinks; none of them where ``norm`` is None or 0."""
    if not norm:
        return torch.zeros(rows.shape[:-1], dtype=torch.bool, device=rows.device)
    lengths = _lengths(rows)
    return (lengths > norm) & lengths.isfinite()  # a number that is none is no sink: it has to be noticed


def without_sinks(rows: Float[Tensor, "rows d_in"], norm: float | None) -> Float[Tensor, "rest d_in"]:
    """The ordinary rows; the very same tensor where all are."""
    if not norm or not bool((sinks := are_sinks(rows, norm)).any()):
        return rows
    return rows[~sinks]


def _lengths(rows: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows"]:
    return torch.linalg.vector_norm(rows, dim=-1, dtype=torch.promote_types(rows.dtype, torch.float32))


@dataclass(frozen=True)
class Census:
    """What the sinks among some rows of several corpora are."""

    norm: float
    """Length beyond which a row is a sink's."""
    rows: int
    sinks: int
    times: float
    """Length of the longest row, in medians."""
    channel: int
    """Where the sinks are largest."""
    channel_share: float
    """How much of the sinks' squared length that channel holds."""
    variance_share: float
    """How much of all rows' variance the sinks hold."""
    token_ids: tuple[int, ...]
    """The tokens that are sinks most often."""
    first: float
    """Share of the sinks that stand at the first position of their sequence."""

    def said(self, decode: Callable[[list[int]], str]) -> str:
        """One line."""
        tokens = ", ".join(repr(decode([token])) for token in self.token_ids)
        return (
            f"sinks: {self.sinks:,} of {self.rows:,} tokens looked at ({self.sinks / self.rows:.2%}) are up to "
            f"{self.times:.0f} times as long as the median and hold {self.variance_share:.0%} of the variance; "
            f"{self.first:.0%} of them open a sequence, their tokens are {tokens} …, channel {self.channel} holds "
            f"{self.channel_share:.0%} of their length. They are left out (--keep_sinks keeps them)"
        )


def census(readers: Sequence[ShardReader], norm: float | None = None) -> Census:
    """The sinks among about ``CENSUS_ROWS`` rows, spread evenly over the corpora.

    Args:
        norm: Length beyond which a row is a sink's. None: by these rows themselves.
    """
    d_in, per_block = readers[0].d_in, max(1, max(reader.block_rows(0) for reader in readers))
    wanted = min(CENSUS_ROWS, CENSUS_NUMBERS // d_in)
    every = max(1, sum(reader.block_count for reader in readers) * per_block // wanted)
    chosen = [(reader, number) for reader in readers for number in range(0, reader.block_count, every)]
    rows = torch.empty(sum(reader.block_rows(number) for reader, number in chosen), d_in)
    token_ids, positions, filled = [], [], 0
    for reader, number in chosen:  # one after the other: of wide activations nothing is held twice
        block = reader.read_block(number)
        rows[filled : filled + len(block.acts)] = block.acts
        filled += len(block.acts)
        token_ids.append(block.token_ids)
        positions.append(block.positions)
    return _told(rows, torch.cat(token_ids), torch.cat(positions), norm)


def _told(rows: Float[Tensor, "rows d_in"], token_ids: Tensor, positions: Tensor, norm: float | None) -> Census:
    norm = sink_norm(rows) if norm is None else norm
    sinks = are_sinks(rows, norm)
    energy = rows[sinks].square().sum(dim=0)
    middle = rows.mean(dim=0)
    variance = torch.cat([(part - middle).square().sum(dim=1) for part in rows.split(_PART)])
    lengths = _lengths(rows)
    common = Counter(token_ids[sinks].tolist()).most_common(3)
    return Census(
        norm=norm,
        rows=len(rows),
        sinks=int(sinks.sum()),
        times=float(lengths.max() / lengths.median()),
        channel=int(energy.argmax()),
        channel_share=float(energy.max() / energy.sum()) if sinks.any() else 0.0,
        variance_share=float(variance[sinks].sum() / variance.sum()),
        token_ids=tuple(token for token, _ in common),
        first=float((positions[sinks] == 0).float().mean()) if sinks.any() else 0.0,
    )
