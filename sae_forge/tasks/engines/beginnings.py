"""Texts that begin alike, run once as far as they do.

The orders of a question share instruction and stem, and then options; questions of one domain share the answered ones
in front. Rows of token ids are laid out as a tree of stretches, and each stretch runs once, in a batch with others,
from the cache of the one before it. So every token is seen once, with all that stands before it, and an edit finds what
it remembers of the text on the cache.

A row ends in what was padding for its neighbours; before it goes on, its cache is moved up to close the gap. So sliding
windows, which count columns, see what they would in a row of its own.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, takewhile
from operator import eq
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor
from transformers.cache_utils import DynamicCache

from sae_forge.models.caches import branched
from sae_forge.models.hooks import sharing
from sae_forge.models.loading import LanguageModel
from sae_forge.tasks.engines.passes import forward, pad, picked

FEWEST = 4
"""Tokens that must be alike for rows to part behind them: a pass of its own for fewer costs more than it spares."""


class Read(NamedTuple):
    """Log-probs that are wanted behind one token of a row."""

    position: int
    """Of that token, in the row."""
    tokens: tuple[int, ...]
    """Those that may follow it."""
    names: tuple[tuple[int, int], ...]
    """What the caller knows each by."""


class Row(NamedTuple):
    """Token ids that a model is to read, and what is wanted of them."""

    ids: tuple[int, ...]
    reads: tuple[Read, ...]
    text: int
    """The text it is the whole of, or one of several ways to end."""
    own: int
    """How many of its tokens come before the ways part."""


@dataclass(eq=False)
class Stretch:
    """Tokens that all of some rows go through next."""

    start: int
    ids: tuple[int, ...]
    rows: tuple[int, ...]
    texts: tuple[int, ...]
    """Those that it is part of, as often as it would run for each."""
    further: list["Stretch"] = field(default_factory=list)


def stretches(rows: Sequence[Row]) -> list[Stretch]:
    """The tree of what the rows have in common: its roots."""
    roots: list[Stretch] = []
    waiting = [(sorted(range(len(rows)), key=lambda number: rows[number].ids), 0, roots)]
    while waiting:
        members, start, into = waiting.pop()
        for _, group in groupby(members, key=lambda number: rows[number].ids[start : start + FEWEST]):
            alike = tuple(group)
            first, last = rows[alike[0]], rows[alike[-1]]
            # of sorted rows the first and the last have in common what all have
            end = start + sum(takewhile(bool, map(eq, first.ids[start:], last.ids[start:])))
            texts = [rows[number].text for number in alike]
            own = tuple(dict.fromkeys(texts) if start < first.own else texts)
            stretch = Stretch(start, first.ids[start:end], alike, own)
            into.append(stretch)
            if rest := [number for number in alike if len(rows[number].ids) > end]:
                waiting.append((rest, end, stretch.further))
    return roots


def tokens(roots: Sequence[Stretch]) -> int:
    """How many run."""
    count, waiting = 0, list(roots)
    while waiting:
        stretch = waiting.pop()
        count += len(stretch.ids)
        waiting += stretch.further
    return count


@dataclass(frozen=True, eq=False)
class _Past:
    """What has run of some rows."""

    cache: DynamicCache
    mask: Int[Tensor, "batch held"]

    def branched(self, rows: Sequence[int]) -> "_Past":
        """These of them, moved up so that each ends in the last column, and no wider than the longest."""
        chosen = torch.tensor(rows)
        mask = self.mask[chosen]
        lengths = mask.sum(dim=-1)
        width = int(lengths.max())
        # attended columns in their order, behind as many others as fill the width
        columns = mask.argsort(dim=-1, stable=True)[:, mask.shape[1] - width :]
        moved = (torch.arange(width) >= width - lengths[:, None]).long()
        return _Past(branched(self.cache, chosen, columns), moved)


def run(
    lm: LanguageModel, rows: Sequence[Row], roots: Sequence[Stretch], *, batch_size: int, among: Tensor | None = None
) -> Iterator[tuple[tuple[int, int], float]]:
    """Each log-prob and its name, every stretch run once.

    Args:
        batch_size: Stretches a forward pass takes at most.
        among: Ascending ids of the only tokens whose logits are formed; log-probs are among these. None: among all.
    """
    waiting = _batches([(root, 0) for root in roots], None, batch_size)
    while waiting:
        batch, past = waiting.pop()
        ids, mask = pad([stretch.ids for stretch, _ in batch], lm.pad_id, left=False)
        further = [(behind, row) for row, (stretch, _) in enumerate(batch) for behind in stretch.further]
        reads = [
            (row, read)
            for row, (stretch, _) in enumerate(batch)
            for number in stretch.rows
            for read in rows[number].reads
            if stretch.start <= read.position < stretch.start + len(stretch.ids)
        ]
        at = torch.tensor([(row, read.position - batch[row][0].start) for row, read in reads]).reshape(-1, 2)
        before = None if past is None else past.branched([row for _, row in batch])
        cache = before.cache if before else DynamicCache() if further else None
        whole = torch.cat([before.mask, mask], dim=1) if before else mask
        with sharing(tuple(stretch.texts for stretch, _ in batch)):
            output = forward(lm, ids, whole, cache=cache, at=at.long(), among=among)
        if further:
            waiting += _batches(further, _Past(output.past_key_values, whole), batch_size)
        targets = torch.tensor([token for _, read in reads for token in read.tokens]).long()
        places = torch.tensor([place for place, (_, read) in enumerate(reads) for _ in read.tokens]).long()
        logprobs = picked(output.logits[0], targets if among is None else torch.searchsorted(among, targets), places)
        yield from zip([name for _, read in reads for name in read.names], logprobs.tolist(), strict=True)


def _batches(
    members: list[tuple[Stretch, int]], past: _Past | None, size: int
) -> list[tuple[list[tuple[Stretch, int]], _Past | None]]:
    """Stretches, each with its row of what ran before, in batches of like length; the longest are taken first."""
    members = sorted(members, key=lambda member: len(member[0].ids))
    return [(members[start : start + size], past) for start in range(0, len(members), size)]
