"""A shard on a store, read in stretches: a request costs far more than the bytes of a block.

Each thread keeps what it has read last of one shard. Blocks that are known beforehand are asked for together; a read
that goes on where the last one ended is answered from a stretch that was made longer than asked.
"""

import threading
from collections.abc import Iterable

from sae_forge.errors import ShardError
from sae_forge.store.remote import RemotePath

_LONGEST = 8 * 2**20
"""Bytes of one request at most, where more than was asked for is read."""
_KEPT = 4
"""Stretches a thread keeps: one for each tensor that is read in turn."""
_ALIGN = 4096
"""Reads begin at multiples of this, as they do from a disk."""
_held = threading.local()


class Stretches:
    """What one thread has in memory of one shard."""

    def __init__(self, path: RemotePath, size: int) -> None:
        self._path, self._size = path, size
        self._found: list[tuple[int, bytes]] = []

    def fetch(self, spans: Iterable[tuple[int, int]]) -> None:
        """Read these spans (first byte, length), in their order, at once; those that touch as one."""
        runs: list[tuple[int, int]] = []
        for begin, length in spans:
            first, end = begin // _ALIGN * _ALIGN, begin + length
            if runs and runs[-1][0] <= first <= runs[-1][1]:
                first, end = runs[-1][0], max(end, runs.pop()[1])
            runs.append((first, end))
        self._found = [(first, content) for (first, _), content in zip(runs, self._read(runs), strict=True)]

    def pread(self, memory: memoryview, offset: int) -> int:
        """Copy bytes from ``offset`` on; returns how many, 0 at the end of the file. As ``os.preadv``."""
        for first, content in self._found:
            if first <= offset < first + len(content):
                part = content[offset - first : offset - first + len(memory)]
                memory[: len(part)] = part
                return len(part)
        end = min(self._size, offset + self._wanted(offset, len(memory)))
        content = self._read([(offset, end)])[0]
        self._found = [*self._found[-_KEPT + 1 :], (offset, content)]
        memory[: len(content)] = content[: len(memory)]
        return min(len(content), len(memory))

    def _read(self, spans: list[tuple[int, int]]) -> list[bytes]:
        try:
            return self._path.read_many(spans)
        except FileNotFoundError:
            raise ShardError(f"{self._path} is gone; it was there when it was opened") from None

    def _wanted(self, offset: int, least: int) -> int:
        """How much to ask for; more where the reading goes on, and then the stretch before is let go."""
        for place, (first, content) in enumerate(self._found):
            if first + len(content) == offset:
                del self._found[place]
                return max(least, min(_LONGEST, 4 * len(content)))
        return least


def stretches_of(shard: object, path: RemotePath, size: int) -> Stretches:
    """What this thread has of a shard; it lets go of every other.

    Args:
        shard: Whoever reads; nobody is answered from what another one has read.
    """
    if getattr(_held, "shard", None) is not shard:
        _held.shard, _held.stretches = shard, Stretches(path, size)
    return _held.stretches
