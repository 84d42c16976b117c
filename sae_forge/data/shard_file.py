"""One shard, read with suspicion: every block is copied into memory we own and hashed before anyone sees it.

Nothing is mapped: a file that shrinks or a disk that fails becomes an error with the file's name, not a SIGBUS.
A shard on a store is read by the same steps, only that ``stretches.py`` stands where the system's handle would.
"""

import errno
import os
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import NamedTuple

import torch
import xxhash
from jaxtyping import Float, Int
from torch import Tensor

from sae_forge.data.manifest import BLOCK_ROWS, Sidecar
from sae_forge.data.rounding import STORED, dequantise, is_rounded
from sae_forge.data.stretches import Stretches, stretches_of
from sae_forge.errors import ShardError
from sae_forge.store.remote import AnyPath, RemotePath
from sae_forge.store.tensors import read_header

ORIGINS = {"seq_ids": torch.int64, "positions": torch.int32, "token_ids": torch.int32}
"""What each row keeps of where it came from, and its dtype on disk."""
SCALE = torch.float32
"""Dtype on disk of a row's scale, where rows have one."""

_ALIGN = 4096
"""What reading past the page cache wants offsets, lengths and memory to be multiples of."""
_PAST_CACHE = getattr(os, "O_DIRECT", 0)
_TOGETHER = 8 * 2**20
"""Bytes of blocks that are asked of a store at once."""
_ORIGINS_TOGETHER = 64
"""Blocks whose origins are read at once where nothing else is done with them."""

_Handle = int | Stretches
"""What a shard is read from: the system's handle, or what a thread has in memory of one on a store."""
_Shapes = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
"""Tensors of a file by name."""


class Block(NamedTuple):
    """Up to ``BLOCK_ROWS`` consecutive rows of a corpus, verified."""

    acts: Float[Tensor, "rows d_in"]
    seq_ids: Int[Tensor, " rows"]
    """Number of the packed sequence each row came from."""
    positions: Int[Tensor, " rows"]
    """Place in that sequence, counting from 0."""
    token_ids: Int[Tensor, " rows"]
    first_row: int
    """Rows of the corpus before this block."""


class ShardFile:
    """One shard whose header is what its sidecar says; its blocks are checked as they are read."""

    def __init__(self, folder: AnyPath, sidecar: Sidecar) -> None:
        self.path = folder / sidecar.shard.file
        self.rows, self.first_row = sidecar.shard.rows, sidecar.shard.first_row
        self._hashes = sidecar.hashes
        self._dtype, self._d_in = STORED[sidecar.fingerprint.storage_dtype], sidecar.fingerprint.d_in
        self._rounded = is_rounded(sidecar.fingerprint.storage_dtype)
        self._row_bytes = {"acts": self._d_in * self._dtype.itemsize, "scales": SCALE.itemsize}
        self._size = sidecar.shard.bytes
        self._begins = self._check_header(self._size)

    @property
    def block_count(self) -> int:
        """Blocks the shard holds."""
        return len(self._hashes.acts)

    def block_rows(self, block: int) -> int:
        """Rows of one block: ``BLOCK_ROWS`` but for the last."""
        return min(BLOCK_ROWS, self.rows - block * BLOCK_ROWS)

    def read_acts(self, block: int, out: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_in"]:
        """Fill ``out`` with the activations of one block."""
        with self._opened() as handle:
            return self._read_acts(handle, block, out)

    def iter_blocks(self, blocks: Iterable[int]) -> Iterator[Block]:
        """These blocks with the origin of their rows.

        From two handles, because the system reads ahead for each of them: a new one for every block makes it begin
        anew, and one for acts and origins alike would jump to and fro.
        """
        with self._opened() as handle, self._opened() as beside:
            for block in blocks:
                yield self._read_block(handle, beside, block)  # under no name here: it would take new memory each time

    def _read_block(self, handle: _Handle, beside: _Handle, block: int) -> Block:
        out = torch.empty(self.block_rows(block), self._d_in, dtype=torch.float32 if self._rounded else self._dtype)
        acts, origins = self._read_acts(handle, block, out), self._read_origins(beside, block)
        return Block(acts=acts, **origins, first_row=self.first_row + block * BLOCK_ROWS)

    def _read_acts(self, handle: _Handle, block: int, out: Tensor) -> Tensor:
        if not self._rounded:
            self._read_stored(handle, block, out)
            return out
        stored = torch.empty(out.shape, dtype=self._dtype)
        return dequantise(stored, self._read_stored(handle, block, stored), out)

    def _read_stored(self, handle: _Handle, block: int, acts: Tensor) -> Tensor:
        """Fill ``acts`` with those of one block as they are on disk; returns the scales, none where rows have none."""
        scales = torch.empty(len(acts) if self._rounded else 0, dtype=SCALE)
        self._fill(handle, "acts", block, acts)
        if self._rounded:
            self._fill(handle, "scales", block, scales)
        self._verify_acts(block, as_bytes(acts), as_bytes(scales))
        return scales

    def iter_acts(
        self, blocks: Iterable[int], scratch: memoryview, *, cached: bool
    ) -> Iterator[Float[Tensor, "rows d_in"]]:
        """The activations of each of these blocks, each in the memory of the one before."""
        blocks, together = list(blocks), max(1, _TOGETHER // (BLOCK_ROWS * self._row_bytes["acts"]))
        with self._opened(0 if cached else _PAST_CACHE) as handle:
            for index, block in enumerate(blocks):
                if isinstance(handle, Stretches) and index % together == 0:
                    stored = [name for name in self._row_bytes if name in self._begins]
                    coming = blocks[index : index + together]
                    handle.fetch(self._span(name, block) for name in stored for block in coming)
                if self._rounded:
                    yield self._take_rounded(handle, block, scratch)
                    continue
                content = self._take(handle, "acts", block, scratch)
                self._verify_acts(block, content)
                yield torch.frombuffer(content, dtype=self._dtype).view(-1, self._d_in)

    def _take_rounded(self, handle: _Handle, block: int, scratch: memoryview) -> Float[Tensor, "rows d_in"]:
        """One block as fp32 at the beginning of ``scratch``, made from what is read into the rest of it."""
        parts, rows = _parts(self._d_in), self.block_rows(block)
        content = self._take(handle, "acts", block, scratch[parts[0] :])
        factors = self._take(handle, "scales", block, scratch[parts[0] + parts[1] :])
        self._verify_acts(block, content, factors)
        out = torch.frombuffer(scratch, dtype=torch.float32, count=rows * self._d_in).view(rows, self._d_in)
        stored = torch.frombuffer(content, dtype=self._dtype).view(rows, self._d_in)
        return dequantise(stored, torch.frombuffer(factors, dtype=SCALE), out)

    def _take(self, handle: _Handle, name: str, block: int, scratch: memoryview) -> memoryview:
        """What one tensor holds of a block, read into ``scratch``."""
        begin, size = self._span(name, block)
        skip = begin % _ALIGN
        self._read_aligned(handle, scratch, begin - skip, skip + size)
        return scratch[skip : skip + size]

    def announce_acts(self, blocks: Iterable[int]) -> None:
        """Let the disk begin with blocks that will be read soon, where the system can be told so."""
        if sys.platform != "linux" or isinstance(self.path, RemotePath):
            return
        with self._opened() as handle, suppress(OSError):
            assert isinstance(handle, int)
            for block in blocks:
                os.posix_fadvise(handle, *self._span("acts", block), os.POSIX_FADV_WILLNEED)

    def read_origins(self, block: int) -> dict[str, Tensor]:
        """``seq_ids``, ``positions`` and ``token_ids`` of one block."""
        with self._opened() as handle:
            return self._read_origins(handle, block)

    def _read_origins(self, handle: _Handle, block: int) -> dict[str, Tensor]:
        origins = {name: torch.empty(self.block_rows(block), dtype=dtype) for name, dtype in ORIGINS.items()}
        hasher = xxhash.xxh3_64()
        for name, out in origins.items():
            self._fill(handle, name, block, out)
            hasher.update(as_bytes(out))
        self._check(self._hashes.origins[block], hasher, block)
        return origins

    def verify(self) -> None:
        """Read every byte; raises ShardError at the first block that is not what was written."""
        scratch = torch.empty(BLOCK_ROWS, self._d_in, dtype=self._dtype)
        with self._opened() as handle:
            for block in range(self.block_count):
                self._read_stored(handle, block, scratch[: self.block_rows(block)])
        with self._opened() as handle:
            for first in range(0, self.block_count, _ORIGINS_TOGETHER):
                self._verify_origins(handle, first)

    def _verify_origins(self, handle: _Handle, first: int) -> None:
        """Read those of some blocks from ``first`` on: of a block alone they are so few that asking costs more."""
        rows = min(_ORIGINS_TOGETHER * BLOCK_ROWS, self.rows - first * BLOCK_ROWS)
        origins = [torch.empty(rows, dtype=dtype) for dtype in ORIGINS.values()]
        for name, out in zip(ORIGINS, origins, strict=True):
            self._fill(handle, name, first, out)
        for block, parts in enumerate(zip(*(out.split(BLOCK_ROWS) for out in origins), strict=True), first):
            hasher = xxhash.xxh3_64()
            for part in parts:
                hasher.update(as_bytes(part))
            self._check(self._hashes.origins[block], hasher, block)

    def _check_header(self, size: int) -> dict[str, int]:
        """Where each tensor begins in the file, once names, dtypes, shapes and length are all as expected."""
        if not _is_plain(self.path):
            raise ShardError(f"{self.path} is missing or not a plain file; restore it or collect again with --fresh")
        layout, bytes_there = read_header(self.path, kind=ShardError, what="a shard of activations")
        expected = {"acts": (self._dtype, (self.rows, self._d_in))}
        vectors = ORIGINS | ({"scales": SCALE} if self._rounded else {})
        expected |= {name: (dtype, (self.rows,)) for name, dtype in vectors.items()}
        shapes = {name: entry[:2] for name, entry in layout.items()}
        if bytes_there != size or shapes != expected:
            raise ShardError(
                f"{self.path} is not the shard its sidecar describes: expected {size} bytes of "
                f"{_shown(expected, shapes)}, found {bytes_there} of {_shown(shapes, expected)}"
            )
        if hash_header(self.path, layout) != self._hashes.header:
            raise ShardError(f"{self.path} is damaged in its header; restore it or collect again with --fresh")
        return {name: entry[2] for name, entry in layout.items()}

    def _span(self, name: str, block: int) -> tuple[int, int]:
        """Where the activations of a block, or their scales, begin in the file, and how many bytes they are."""
        row_bytes = self._row_bytes[name]
        return self._begins[name] + block * BLOCK_ROWS * row_bytes, self.block_rows(block) * row_bytes

    @contextmanager
    def _opened(self, flags: int = 0) -> Iterator[_Handle]:
        """A handle for one read; kept no longer, so that a thousand shards need no thousand handles."""
        if isinstance(self.path, RemotePath):
            yield stretches_of(self, self.path, self._size)
            return
        try:
            handle = self._open(flags)
        except OSError as error:
            raise ShardError(f"{self.path} cannot be opened: {error.strerror}") from error
        try:
            yield handle
        finally:
            os.close(handle)

    def _open(self, flags: int) -> int:
        try:
            return os.open(str(self.path), os.O_RDONLY | os.O_NOFOLLOW | flags)
        except OSError as error:
            if not flags or error.errno != errno.EINVAL:
                raise
            return self._open(0)  # a file system that knows no way past the page cache

    def _read_aligned(self, handle: _Handle, scratch: memoryview, offset: int, need: int) -> None:
        """Read ``need`` bytes, and what follows up to the next boundary, from a boundary of the file on."""
        end, got = -(-need // _ALIGN) * _ALIGN, 0
        while got < need:
            try:
                count = _pread(handle, scratch[got:end], offset + got)
            except OSError as error:
                raise ShardError(f"{self.path} cannot be read: {error.strerror}") from error
            if got + count < need and count < _ALIGN:
                raise self._ends_early(offset + got + count)
            got += count if got + count >= need else count // _ALIGN * _ALIGN

    def _fill(self, handle: _Handle, name: str, block: int, out: Tensor) -> None:
        target, row_bytes = as_bytes(out), out[:1].nbytes
        offset = self._begins[name] + block * BLOCK_ROWS * row_bytes
        while target:
            try:
                count = _pread(handle, target, offset)
            except OSError as error:
                raise ShardError(f"{self.path} cannot be read: {error.strerror}") from error
            if count == 0:
                raise self._ends_early(offset)
            target, offset = target[count:], offset + count

    def _ends_early(self, byte: int) -> ShardError:
        return ShardError(f"{self.path} ends early, at byte {byte}; it was cut short after it was opened")

    def _verify_acts(self, block: int, content: memoryview, scales: memoryview | None = None) -> None:
        hasher = xxhash.xxh3_64(content)
        if scales is not None:
            hasher.update(scales)
        self._check(self._hashes.acts[block], hasher, block)

    def _check(self, expected: str, hasher: "xxhash.xxh3_64", block: int) -> None:
        if hasher.hexdigest() != expected:
            first = block * BLOCK_ROWS
            raise ShardError(
                f"{self.path} is damaged in rows {first} to {first + self.block_rows(block) - 1}; "
                "restore it or collect again with --fresh"
            )


def as_bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor, flat and shared with it."""
    return memoryview(tensor.view(torch.uint8).numpy().reshape(-1))  # pyright: ignore[reportArgumentType]


def _room(size: int) -> int:
    """Bytes that so many fit into when they are read from boundary to boundary."""
    return -(-size // _ALIGN) * _ALIGN + 2 * _ALIGN


def scratch_bytes(d_in: int, storage_dtype: str) -> int:
    """Memory that any block of such shards fits into, from boundary to boundary."""
    if is_rounded(storage_dtype):
        return sum(_parts(d_in))
    return _room(BLOCK_ROWS * d_in * STORED[storage_dtype].itemsize)


def _parts(d_in: int) -> tuple[int, int, int]:
    """How a scratch for int8 is divided: rows as fp32, rows as stored, their scales."""
    rows = BLOCK_ROWS * d_in
    return _room(rows * torch.float32.itemsize), _room(rows), _room(BLOCK_ROWS * SCALE.itemsize)


def hash_header(path: AnyPath, layout: Mapping[str, tuple[torch.dtype, tuple[int, ...], int, int]]) -> str:
    """xxh3_64 of the bytes before the first tensor."""
    with path.open("rb") as file:
        return xxhash.xxh3_64_hexdigest(file.read(min(begin for _, _, begin, _ in layout.values())))


def _pread(handle: _Handle, memory: memoryview, offset: int) -> int:
    """Fill memory from a place of the file; returns how many bytes that gave."""
    return os.preadv(handle, [memory], offset) if isinstance(handle, int) else handle.pread(memory, offset)


def _is_plain(path: AnyPath) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def _shown(shapes: _Shapes, beside: _Shapes) -> str:
    """The tensors that are not the same in both, a few of them."""
    other = [(name, entry) for name, entry in sorted(shapes.items()) if beside.get(name) != entry][:2]
    parts = (f"{name[:20]} {str(dtype)[6:]}{str(list(shape))[:40]}" for name, (dtype, shape) in other)
    return ", ".join(parts) or "the same tensors"
