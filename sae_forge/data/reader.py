"""Shards read with suspicion: every block is copied into memory we own and hashed before anyone sees it.

Nothing is mapped: a file that shrinks or a disk that fails becomes an error with the file's name, not a SIGBUS.
"""

import errno
import os
import stat
import sys
import warnings
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import groupby
from mmap import mmap
from pathlib import Path
from typing import Any, NamedTuple

import torch
import xxhash
from jaxtyping import Float, Int
from torch import Tensor

from sae_forge.data.manifest import (
    BLOCK_ROWS,
    Fingerprint,
    Manifest,
    Sidecar,
    require_match,
    sidecar_path,
)
from sae_forge.errors import ShardError
from sae_forge.tensors import DTYPES, read_header

ORIGINS = {"seq_ids": torch.int64, "positions": torch.int32, "token_ids": torch.int32}
"""What each row keeps of where it came from, and its dtype on disk."""

_ALIGN = 4096
"""What reading past the page cache wants offsets, lengths and memory to be multiples of."""
_PAST_CACHE = getattr(os, "O_DIRECT", 0)


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

    def __init__(self, folder: Path, sidecar: Sidecar) -> None:
        self.path = folder / sidecar.shard.file
        self.rows, self.first_row = sidecar.shard.rows, sidecar.shard.first_row
        self._hashes = sidecar.hashes
        self._dtype, self._d_in = DTYPES[sidecar.fingerprint.storage_dtype], sidecar.fingerprint.d_in
        self._row_bytes = self._d_in * self._dtype.itemsize
        self._begins = self._check_header(sidecar.shard.bytes)

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
            self._fill(handle, "acts", block, out)
        self._verify_acts(block, as_bytes(out))
        return out

    def iter_acts(
        self, blocks: Iterable[int], scratch: memoryview, *, cached: bool
    ) -> Iterator[Float[Tensor, "rows d_in"]]:
        """The activations of each of these blocks, each in the memory of the one before."""
        with self._opened(0 if cached else _PAST_CACHE) as handle:
            for block in blocks:
                begin, size = self._span(block)
                skip = begin % _ALIGN
                self._read_aligned(handle, scratch, begin - skip, skip + size)
                self._verify_acts(block, scratch[skip : skip + size])
                rows = self.block_rows(block)
                acts = torch.frombuffer(scratch, dtype=self._dtype, count=rows * self._d_in, offset=skip)
                yield acts.view(rows, self._d_in)

    def announce_acts(self, blocks: Iterable[int]) -> None:
        """Let the disk begin with blocks that will be read soon, where the system can be told so."""
        if sys.platform != "linux":
            return
        with self._opened() as handle, suppress(OSError):
            for block in blocks:
                os.posix_fadvise(handle, *self._span(block), os.POSIX_FADV_WILLNEED)

    def read_origins(self, block: int) -> dict[str, Tensor]:
        """``seq_ids``, ``positions`` and ``token_ids`` of one block."""
        found = {name: torch.empty(self.block_rows(block), dtype=dtype) for name, dtype in ORIGINS.items()}
        hasher = xxhash.xxh3_64()
        with self._opened() as handle:
            for name, out in found.items():
                self._fill(handle, name, block, out)
                hasher.update(as_bytes(out))
        self._check(self._hashes.origins[block], hasher, block)
        return found

    def verify(self) -> None:
        """Read every byte; raises ShardError at the first block that is not what was written."""
        scratch = torch.empty(BLOCK_ROWS, self._d_in, dtype=self._dtype)
        for block in range(self.block_count):
            self.read_acts(block, scratch[: self.block_rows(block)])
            self.read_origins(block)

    def _check_header(self, size: int) -> dict[str, int]:
        """Where each tensor begins in the file, once names, dtypes, shapes and length are all as expected."""
        if not _is_plain(self.path):
            raise ShardError(f"{self.path} is missing or not a plain file; restore it or collect again with --fresh")
        layout, found = read_header(self.path, kind=ShardError, what="a shard of activations")
        expected = {"acts": (self._dtype, (self.rows, self._d_in))}
        expected |= {name: (dtype, (self.rows,)) for name, dtype in ORIGINS.items()}
        shapes = {name: entry[:2] for name, entry in layout.items()}
        if found != size or shapes != expected:
            raise ShardError(
                f"{self.path} is not the shard its sidecar describes: expected {size} bytes of "
                f"{_shown(expected, shapes)}, found {found} of {_shown(shapes, expected)}"
            )
        if hash_header(self.path, layout) != self._hashes.header:
            raise ShardError(f"{self.path} is damaged in its header; restore it or collect again with --fresh")
        return {name: entry[2] for name, entry in layout.items()}

    def _span(self, block: int) -> tuple[int, int]:
        """Where the activations of a block begin in the file, and how many bytes they are."""
        return self._begins["acts"] + block * BLOCK_ROWS * self._row_bytes, self.block_rows(block) * self._row_bytes

    @contextmanager
    def _opened(self, flags: int = 0) -> Iterator[int]:
        """A handle for one read; kept no longer, so that a thousand shards need no thousand handles."""
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
            return os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | flags)
        except OSError as error:
            if not flags or error.errno != errno.EINVAL:
                raise
            return self._open(0)  # a file system that knows no way past the page cache

    def _read_aligned(self, handle: int, scratch: memoryview, offset: int, need: int) -> None:
        """Read ``need`` bytes, and what follows up to the next boundary, from a boundary of the file on."""
        end, got = -(-need // _ALIGN) * _ALIGN, 0
        while got < need:
            try:
                count = os.preadv(handle, [scratch[got:end]], offset + got)
            except OSError as error:
                raise ShardError(f"{self.path} cannot be read: {error.strerror}") from error
            if got + count < need and count < _ALIGN:
                raise self._ends_early(offset + got + count)
            got += count if got + count >= need else count // _ALIGN * _ALIGN

    def _fill(self, handle: int, name: str, block: int, out: Tensor) -> None:
        target, row_bytes = as_bytes(out), out[:1].nbytes
        offset = self._begins[name] + block * BLOCK_ROWS * row_bytes
        while target:
            try:
                count = os.preadv(handle, [target], offset)
            except OSError as error:
                raise ShardError(f"{self.path} cannot be read: {error.strerror}") from error
            if count == 0:
                raise self._ends_early(offset)
            target, offset = target[count:], offset + count

    def _ends_early(self, byte: int) -> ShardError:
        return ShardError(f"{self.path} ends early, at byte {byte}; it was cut short after it was opened")

    def _verify_acts(self, block: int, content: memoryview) -> None:
        self._check(self._hashes.acts[block], xxhash.xxh3_64(content), block)

    def _check(self, expected: str, hasher: "xxhash.xxh3_64", block: int) -> None:
        if hasher.hexdigest() != expected:
            first = block * BLOCK_ROWS
            raise ShardError(
                f"{self.path} is damaged in rows {first} to {first + self.block_rows(block) - 1}; "
                "restore it or collect again with --fresh"
            )


class ShardReader:
    """A complete folder of shards, read block by block.

    Opening checks the manifest, every sidecar and every shard's header and length; a block's bytes are checked
    when it is read. Reading from several threads is safe: no file stays open and no buffer is shared.

    Args:
        expect: Fingerprint fields that must have these values, for instance ``{"d_in": 2304}``.

    Raises:
        ShardError: the folder is missing, unfinished or damaged, or was made under other settings.
    """

    def __init__(self, folder: Path, *, expect: Mapping[str, Any] | None = None) -> None:
        self.folder = folder
        self.manifest = Manifest.read(folder)
        require_match(folder, replace(self.fingerprint, **expect or {}), self.fingerprint)
        self._shards = [self._open(index) for index in range(len(self.manifest.shards))]
        self._first_blocks = [0]
        for shard in self._shards:
            self._first_blocks.append(self._first_blocks[-1] + shard.block_count)
        self._warn_of_strays()

    @property
    def fingerprint(self) -> Fingerprint:
        """What the activations are of."""
        return self.manifest.fingerprint

    @property
    def rows(self) -> int:
        """Activations stored."""
        return self.manifest.rows

    @property
    def d_in(self) -> int:
        """Width of a row."""
        return self.fingerprint.d_in

    @property
    def dtype(self) -> torch.dtype:
        """Precision of a row, as stored."""
        return DTYPES[self.fingerprint.storage_dtype]

    @property
    def block_count(self) -> int:
        """Blocks in the folder; block i of a shard's end may hold fewer rows than the others."""
        return self._first_blocks[-1]

    def block_rows(self, block: int) -> int:
        """Rows of one block."""
        shard, local = self._locate(block)
        return shard.block_rows(local)

    def read_acts(self, block: int, out: Float[Tensor, "rows d_in"] | None = None) -> Float[Tensor, "rows d_in"]:
        """The activations of one block alone, into ``out`` when it is given."""
        shard, local = self._locate(block)
        if out is None:
            out = torch.empty(shard.block_rows(local), self.d_in, dtype=self.dtype)
        return shard.read_acts(local, out)

    def iter_acts(
        self, blocks: Sequence[int], scratch: memoryview, *, cached: bool = True
    ) -> Iterator[Float[Tensor, "rows d_in"]]:
        """The activations of each of these blocks, all in ``scratch``: each stands there until the next is asked for.

        Blocks of one shard that follow one another are read from one handle.

        Args:
            scratch: As ``make_scratch`` makes it.
            cached: Read through the page cache; otherwise past it, where the file system knows how.
        """
        for shard, local in self._by_shard(blocks):
            yield from shard.iter_acts(local, scratch, cached=cached)

    def make_scratch(self) -> memoryview:
        """Memory that any block fits into, on a page boundary."""
        return memoryview(mmap(-1, -(-BLOCK_ROWS * self.d_in * self.dtype.itemsize // _ALIGN) * _ALIGN + 2 * _ALIGN))

    def announce(self, blocks: Sequence[int]) -> None:
        """Let the disk begin with the activations of blocks that will be read soon."""
        for shard, local in self._by_shard(blocks):
            shard.announce_acts(local)

    def read_origins(self, block: int) -> dict[str, Tensor]:
        """``seq_ids``, ``positions`` and ``token_ids`` of one block; its activations are not read."""
        shard, local = self._locate(block)
        return shard.read_origins(local)

    def read_block(self, block: int) -> Block:
        """One block with the origin of its rows.

        Raises:
            ShardError: its bytes are not those that were written; names the file and the rows.
        """
        shard, local = self._locate(block)
        return Block(
            acts=self.read_acts(block), **shard.read_origins(local), first_row=shard.first_row + local * BLOCK_ROWS
        )

    def iter_blocks(self) -> Iterator[Block]:
        """Every block in the order of the corpus."""
        return map(self.read_block, range(self.block_count))

    def _locate(self, block: int) -> tuple[ShardFile, int]:
        if not 0 <= block < self.block_count:
            raise IndexError(f"block {block} of {self.block_count}")
        shard = bisect_right(self._first_blocks, block) - 1
        return self._shards[shard], block - self._first_blocks[shard]

    def _by_shard(self, blocks: Sequence[int]) -> Iterator[tuple[ShardFile, list[int]]]:
        """Blocks in their order, those together that follow one another in one shard; numbered within it."""
        located = map(self._locate, blocks)
        for shard, group in groupby(located, key=lambda place: place[0]):
            yield shard, [local for _, local in group]

    def _open(self, index: int) -> ShardFile:
        sidecar, info = Sidecar.read(self.folder, index), self.manifest.shards[index]
        if (sidecar.shard, sidecar.fingerprint) != (info, self.fingerprint):
            path = sidecar_path(self.folder, info.file)
            raise ShardError(f"{path} is not the one the manifest describes; restore it or collect again with --fresh")
        return ShardFile(self.folder, sidecar)

    def _warn_of_strays(self) -> None:
        known = {shard.file for shard in self.manifest.shards}
        if stray := sorted(path.name for path in self.folder.glob("*.safetensors") if path.name not in known):
            warnings.warn(f"{self.folder} holds {', '.join(stray)}, unknown to its manifest: ignored", stacklevel=3)


def as_bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor, flat and shared with it."""
    return memoryview(tensor.view(torch.uint8).numpy().reshape(-1))  # pyright: ignore[reportArgumentType]


def hash_header(path: Path, layout: Mapping[str, tuple[torch.dtype, tuple[int, ...], int, int]]) -> str:
    """xxh3_64 of the bytes before the first tensor."""
    with path.open("rb") as file:
        return xxhash.xxh3_64_hexdigest(file.read(min(begin for _, _, begin, _ in layout.values())))


def _is_plain(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def _shown(shapes: _Shapes, beside: _Shapes) -> str:
    """The tensors that are not the same in both, a few of them."""
    other = [(name, entry) for name, entry in sorted(shapes.items()) if beside.get(name) != entry][:2]
    parts = (f"{name[:20]} {str(dtype)[6:]}{str(list(shape))[:40]}" for name, (dtype, shape) in other)
    return ", ".join(parts) or "the same tensors"
