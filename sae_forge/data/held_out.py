"""What of collected text training does not see, so that an SAE can be measured on text that it does not know."""

from collections.abc import Sequence
from typing import NamedTuple

from sae_forge.data.reader import ShardReader

HELD_OUT = 0.05
"""Share of a retain corpus's sequences, its last, that is held out."""
LEAST = 20
"""Sequences of which two can be spared."""
WHOLE = 2
"""Sequences held out at least: the last ends where the text does, and may be a few tokens."""


class Seen(NamedTuple):
    """What of a corpus is trained on."""

    blocks: range
    sequences: int
    """Those that are wholly or in part among the blocks."""


def held_out(readers: Sequence[ShardReader]) -> dict[ShardReader, Seen]:
    """Of each retain corpus that is long enough, what is left to train on."""
    seen = {}
    for reader in readers:
        if reader.fingerprint.role != "retain" or not reader.block_count:
            continue
        sequences = int(reader.read_origins(reader.block_count - 1)["seq_ids"][-1]) + 1
        if sequences < LEAST:
            continue
        first = sequences - max(WHOLE, round(HELD_OUT * sequences))
        block = reader.block_count
        while block > 1 and int(reader.read_origins(block - 1)["seq_ids"][-1]) >= first:
            block -= 1  # from the end: nearly all of them are before
        if int(reader.read_origins(block - 1)["seq_ids"][-1]) < first:  # else the only block holds them all
            seen[reader] = Seen(range(block), first)
    return seen
