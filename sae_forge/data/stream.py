"""Shuffled batches of activations whose order is a function of the seed alone, read ahead in a few threads.

Reading single rows at random is 40 times slower than reading blocks (a cold disk, d_in=2304). So each epoch
permutes the blocks of all corpora, gathers them into pools that fit in memory, and permutes the rows of a pool.
Nothing but a step number is needed to go on: batch t is the same whether or not the batches before it were read.

Threads decide when a block is read, never where its rows go. They take a pool's blocks in the order of the files and
tell the disk of those to come, which keeps it about as busy as reading the files from end to end would.
"""

import itertools
import math
import os
import time
import weakref
from bisect import bisect_right
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event, Lock
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sae_forge import rng
from sae_forge.data.reader import ShardReader
from sae_forge.data.rounding import handed_out
from sae_forge.data.shard_file import scratch_bytes
from sae_forge.data.shards import BLOCK_ROWS
from sae_forge.errors import ConfigError, DataError, ShardError

_MOST_THREADS = 8
_THREADS = min(_MOST_THREADS, 2 * (os.cpu_count() or 1))
"""Threads that read and hash blocks: two a core, since one of them mostly waits for the disk."""
_BATCHES = 4
"""Batches there is memory for beside the pools: one cut from two pools, the last of a pool, what that one left over,
and one that is still held or on its way to a GPU."""
_PLACE_BYTES = 8
"""What a row takes beside its activations while its pool is read: its place in the pool."""
_STRETCH_BYTES = 4 * 2**20
"""What a thread reads before it looks for more."""
_AHEAD = 8
"""Stretches the disk is told of before they are read."""


class _Pool(NamedTuple):
    """A stretch of an epoch's order that is in memory at once."""

    order: int
    """Which order of the blocks it is cut from."""
    nth: int
    """Pools of that order before it."""
    places: np.ndarray
    """Its blocks, by their number over all readers."""
    begin: int
    end: int
    """Which of its shuffled rows are used: those before were consumed, those after make no whole batch."""


class _Stretch(NamedTuple):
    """Blocks that one thread reads in turn."""

    reader: ShardReader
    blocks: list[int]
    targets: list[np.ndarray]
    """For each block, where in the pool its rows go."""

    def announce(self) -> None:
        """Let the disk begin with them."""
        self.reader.announce(self.blocks)


class _Rooms:
    """Memory for pools or batches, given out again once nothing that was cut from it is held.

    Asking the system for new memory each time made warm reading a third slower: every page is zeroed first. It also
    took more of it: of batches that come and go, malloc keeps one or two that nobody holds.
    """

    def __init__(self, rows: int, row_bytes: int) -> None:
        self._shape = (rows, row_bytes)
        self._lent: list[tuple[np.ndarray, weakref.ref[np.ndarray]]] = []

    def take(self, rows: int) -> np.ndarray:
        """Room for so many rows, kept by whoever holds it or a tensor made from it, but not by a view numpy cuts."""
        free = [room for room, holder in self._lent if holder() is None]
        room = free[0] if free else np.empty(self._shape, np.uint8)
        taken = room[:rows]
        self._lent = [(other, holder) for other, holder in self._lent if holder() is not None]
        self._lent.append((room, weakref.ref(taken)))
        return taken


class Part(NamedTuple):
    """Consecutive batches of training that come from one set of shards."""

    stream: "ActivationStream"
    first: int
    """Number of the batch that is the stream's first."""
    end: int | None
    """Batch from which on another part is read; None: there is no other."""


class ActivationStream:
    """Rows of several corpora mixed in proportion to their size.

    In an epoch no row comes twice, and all come but the last ``rows % batch_size`` of that epoch's order.

    Args:
        batch_size: Rows of a batch.
        shuffle_gb: GB of memory for all that is held at once: two pools of rows shuffled together, the one handed out
            and the one being read, what the threads read into, and a few batches. Decides the order, and with it the
            readers' widths and precisions, the batch size, and how many rows there are; nothing of the machine does.
        first_order: Number of the first epoch's order; the epochs after it have the orders after it.
        cached: Read through the page cache. None: if all shards fit into half the memory of the machine; larger ones
            would never be found there again, and reading past it costs a fraction of the processor's time.

    Raises:
        ShardError: the readers' widths, precisions, models or hook points differ.
        DataError: together they hold less than one batch.
        ConfigError: two batches, or two blocks, do not fit into a pool; names the least ``shuffle_gb`` that will do.
    """

    def __init__(
        self,
        readers: Sequence[ShardReader],
        *,
        batch_size: int,
        seed: int,
        shuffle_gb: float = 2.0,
        first_order: int = 0,
        cached: bool | None = None,
    ) -> None:
        if not readers:
            raise DataError("no shards to train on; make some with: sae-forge collect")
        self._readers, self.batch_size, self._seed = tuple(readers), batch_size, seed
        self._first_order = first_order
        self._require_alike()
        self.rows = sum(reader.rows for reader in readers)
        self.d_in, self.dtype = readers[0].d_in, readers[0].dtype
        self.bytes_read = 0
        """Bytes of activations read so far, by all iterators, in the precision they are handed out in; some of them lie
        ahead of what was handed out."""
        self.seconds_waited = 0.0
        """Time that whoever took the batches spent waiting for a pool to arrive."""
        self.batches_per_epoch = self.rows // batch_size
        if self.batches_per_epoch == 0:
            raise DataError(
                f"the shards hold {self.rows} tokens, less than one batch of {batch_size}; "
                "lower --batch_size or raise --max_tokens"
            )
        self._begins = [0, *itertools.accumulate(reader.block_count for reader in readers)]
        """Blocks before those of each reader, and in all."""
        sizes = (reader.block_rows(block) for reader in readers for block in range(reader.block_count))
        self._block_rows = np.fromiter(sizes, np.int16, self._begins[-1])  # small: there may be a million in memory
        self._row_bytes = self.d_in * self.dtype.itemsize
        self._pools = math.ceil(self._begins[-1] / (self._pool_rows(shuffle_gb) // BLOCK_ROWS))
        stored = sum(shard.bytes for reader in readers for shard in reader.manifest.shards)
        self._cached = stored <= _memory() // 2 if cached is None else cached
        self._counting = Lock()

    @property
    def held_bytes(self) -> int:
        """Memory that reading takes at its peak; what the page cache holds is not counted."""
        return self._held_bytes(self._room_rows)

    def _held_bytes(self, pool_rows: int) -> int:
        """The same with pools of so many rows."""
        return _held_bytes(pool_rows, self.d_in, self._readers[0].fingerprint.storage_dtype, self.batch_size)

    def _pool_rows(self, shuffle_gb: float) -> int:
        """The rows of a pool, in whole blocks, with which so much is held."""
        storage_dtype = self._readers[0].fingerprint.storage_dtype
        require_pools(shuffle_gb, d_in=self.d_in, storage_dtype=storage_dtype, batch_size=self.batch_size)
        fit = (round(shuffle_gb * 1e9) - self._held_bytes(0)) // (2 * self._row_bytes + _PLACE_BYTES)
        return fit // BLOCK_ROWS * BLOCK_ROWS

    def part(self, batch: int) -> Part:
        """Where this batch comes from: all come from here."""
        del batch
        return Part(self, 0, None)

    def leave(self, part: Part) -> None:
        """Nothing: shards that are read in every epoch stay."""

    def batches(self, start: int = 0) -> Iterator[Float[Tensor, "batch d_in"]]:
        """Batches ``start``, ``start + 1``, … without end, contiguous, in the dtype of the shards.

        A batch may share memory with its pool: clone one that is kept. Closing the iterator stops the reading.

        Raises:
            ShardError: a shard is damaged.
            RemoteError: the store it is on does not answer.
        """
        stop, rooms = Event(), _Rooms(self._room_rows, self._row_bytes)
        copies = _Rooms(self.batch_size, self._row_bytes)
        leading = ThreadPoolExecutor(1, thread_name_prefix="activation-stream")
        reading = ThreadPoolExecutor(_THREADS, thread_name_prefix="activation-stream")
        try:
            plan = self._plan(start)
            coming = leading.submit(self._load, next(plan), rooms, reading, stop)
            rest = torch.empty(0, self.d_in, dtype=self.dtype)
            for pool in plan:
                rows = self._arrived(coming)  # lets go of the pool before, whose room the next one takes
                coming = leading.submit(self._load, pool, rooms, reading, stop)
                rest = yield from self._cut(rest, rows, copies)
        finally:
            stop.set()
            leading.shutdown(wait=True, cancel_futures=True)
            reading.shutdown(wait=True, cancel_futures=True)

    def _arrived(self, coming: "Future[Tensor]") -> Tensor:
        """A pool, once it is there."""
        asked = time.perf_counter()
        try:
            return coming.result()
        finally:
            self.seconds_waited += time.perf_counter() - asked

    def _cut(self, rest: Tensor, rows: Tensor, copies: "_Rooms") -> Generator[Tensor, None, Tensor]:
        """Yield the whole batches of ``rest`` and ``rows``; return what is left over."""
        if len(rest):
            missing = self.batch_size - len(rest)
            rest, rows = self._copied(copies, rest, rows[:missing]), rows[missing:]
            if len(rest) < self.batch_size:
                return rest
            yield rest
        whole = len(rows) // self.batch_size * self.batch_size
        shared = max(0, whole - self.batch_size)
        yield from rows[:shared].split(self.batch_size) if shared else ()
        if whole:  # a copy: who still holds it when asking for the next does not keep the pool's room
            yield self._copied(copies, rows[shared:whole])
        return self._copied(copies, rows[whole:])

    def _copied(self, copies: "_Rooms", *parts: Tensor) -> Tensor:
        """Rows one after the other in memory of their own."""
        rows = torch.from_numpy(copies.take(sum(map(len, parts)))).view(self.dtype)
        return torch.cat(parts, out=rows)

    def _plan(self, start: int) -> Iterator[_Pool]:
        """The pools that batch ``start`` and all after it are cut from, epoch after epoch."""
        epoch, step = divmod(start, self.batches_per_epoch)
        consumed, used = step * self.batch_size, self.batches_per_epoch * self.batch_size
        for number in itertools.count(self._first_order + epoch):
            order = rng.generator(self._seed, "block order", number).permutation(self._begins[-1])
            first = 0
            for index, places in enumerate(np.array_split(order, self._pools)):
                rows = int(self._block_rows[places].sum())
                begin, end = max(0, consumed - first), min(rows, used - first)
                if begin < end:
                    yield _Pool(number, index, places, begin, end)
                first += rows
            consumed = 0

    @property
    def _room_rows(self) -> int:
        """Rows that any pool of any epoch fits into."""
        return min(self.rows, math.ceil(self._begins[-1] / self._pools) * BLOCK_ROWS)

    def _load(self, pool: _Pool, rooms: "_Rooms", reading: ThreadPoolExecutor, stop: Event) -> Tensor:
        """Read a pool's blocks in the order of the files, each row straight to its shuffled place."""
        sizes = self._block_rows[pool.places]
        order = rng.generator(self._seed, "row order", pool.order * self._pools + pool.nth).permutation(sizes.sum())
        room = rooms.take(len(order))
        stretches = self._stretches(pool.places, np.split(order, sizes.cumsum()[:-1]))
        turns = iter(range(-_AHEAD, len(stretches)))
        for done in [reading.submit(self._read, stretches, turns, room, stop) for _ in range(_THREADS)]:
            done.result()
        return torch.from_numpy(room).view(self.dtype)[pool.begin : pool.end]

    def _read(self, stretches: "Sequence[_Stretch]", turns: Iterator[int], room: np.ndarray, stop: Event) -> None:
        """Put the rows of one stretch after the other where they belong, with the disk at work on later ones.

        Threads share ``turns``, so each stretch is read by one of them.
        """
        scratch = self._readers[0].make_scratch()
        for turn in turns:
            if stop.is_set():
                return
            if self._cached and turn + _AHEAD < len(stretches):
                stretches[turn + _AHEAD].announce()
            if turn >= 0:
                self._place(stretches[turn], scratch, room)

    def _place(self, stretch: "_Stretch", scratch: memoryview, room: np.ndarray) -> None:
        blocks = stretch.reader.iter_acts(stretch.blocks, scratch, cached=self._cached)
        for acts, target in zip(blocks, stretch.targets, strict=True):
            # numpy moves rows as bytes at 9.8 GB/s where index_copy_ takes 1.6 (bfloat16, d_in=2304, one core)
            room[target] = acts.view(torch.uint8).numpy()
        with self._counting:
            self.bytes_read += sum(map(len, stretch.targets)) * self._row_bytes

    def _stretches(self, places: np.ndarray, orders: Sequence[np.ndarray]) -> "list[_Stretch]":
        """A pool's blocks in the order of the files, a few MiB together, all of one reader."""
        longest = max(1, _STRETCH_BYTES // (BLOCK_ROWS * self._row_bytes))
        stretches: list[_Stretch] = []
        for index in places.argsort():
            corpus = bisect_right(self._begins, places[index]) - 1
            reader, block = self._readers[corpus], int(places[index]) - self._begins[corpus]
            if not stretches or stretches[-1].reader is not reader or len(stretches[-1].blocks) == longest:
                stretches.append(_Stretch(reader, [], []))
            stretches[-1].blocks.append(block)
            stretches[-1].targets.append(orders[index])
        return stretches

    def _require_alike(self) -> None:
        first = self._readers[0]
        for reader in self._readers[1:]:
            for name in ("model", "weights", "hook_point", "d_in", "storage_dtype"):
                wanted, its = getattr(first.fingerprint, name), getattr(reader.fingerprint, name)
                if wanted != its:
                    raise ShardError(
                        f"{reader.folder} cannot be mixed with {first.folder}: {name} expected {wanted!r}, "
                        f"found {its!r}; collect both with the same settings"
                    )


def require_pools(shuffle_gb: float, *, d_in: int, storage_dtype: str, batch_size: int) -> None:
    """Refuse a limit that a stream of such rows would refuse; before there are any, if need be.

    Raises:
        ConfigError: two batches, or two blocks, do not fit into a pool; names the least ``shuffle_gb`` that will do.
    """
    least = max(2, math.ceil(2 * batch_size / BLOCK_ROWS)) * BLOCK_ROWS
    if (needed := _held_bytes(least, d_in, storage_dtype, batch_size)) > round(shuffle_gb * 1e9):
        raise ConfigError(
            f"--shuffle_gb {shuffle_gb:g} is too little for two pools of two batches of {batch_size} tokens, "
            f"{d_in} wide in {str(handed_out(storage_dtype))[6:]}; give {math.ceil(needed / 1e6) / 1e3:g} or more, or "
            "lower --batch_size"
        )


def _held_bytes(pool_rows: int, d_in: int, storage_dtype: str, batch_size: int) -> int:
    """Memory that reading takes with pools of so many rows."""
    row_bytes = d_in * handed_out(storage_dtype).itemsize
    beside = _BATCHES * batch_size * row_bytes + _MOST_THREADS * scratch_bytes(d_in, storage_dtype)
    return pool_rows * (2 * row_bytes + _PLACE_BYTES) + beside


def _memory() -> int:
    """Bytes of RAM the machine has."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
