"""A complete folder of shards, whose blocks are handed out in any order, each checked as it is read."""

import copy
import warnings
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import groupby
from mmap import mmap
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae_forge.data.manifest import (
    MANIFEST,
    Fingerprint,
    Manifest,
    Sidecar,
    require_match,
    sidecar_path,
    total_rounding,
)
from sae_forge.data.rounding import handed_out
from sae_forge.data.shard_file import Block, ShardFile, scratch_bytes
from sae_forge.errors import ShardError
from sae_forge.store.remote import AnyPath, RemotePath

_OPENED_AT_ONCE = 16
"""Shards of a store whose sidecars and headers are asked for at the same time."""


class ShardReader:
    """A complete folder of shards, read block by block.

    Opening checks the manifest, every sidecar and every shard's header and length; a block's bytes are checked
    when it is read. Reading from several threads is safe: no file stays open and no buffer is shared.

    Args:
        expect: Fingerprint fields that must have these values, for instance ``{"d_in": 2304}``.

    Raises:
        ShardError: the folder is missing, unfinished or damaged, or was made under other settings.
        RemoteError: from any method, when the store they are on does not answer.
    """

    def __init__(self, folder: AnyPath, *, expect: Mapping[str, Any] | None = None) -> None:
        self.folder = folder
        self.manifest = Manifest.read(folder)
        require_match(folder, replace(self.fingerprint, **expect or {}), self.fingerprint)
        self._shards: list[ShardFile] = []
        if total_rounding(self._open_all()) != self.manifest.rounding:
            raise ShardError(f"{folder / MANIFEST} and the sidecars disagree on rounding; collect again with --fresh")
        self._blocks: range | None = None
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
        """Activations stored, in the blocks that are read."""
        return self.manifest.rows if self._blocks is None else sum(map(self.block_rows, range(len(self._blocks))))

    def only(self, blocks: range) -> "ShardReader":
        """The same folder as if it held these blocks and no others; they are numbered anew."""
        part = copy.copy(self)
        part._blocks = blocks
        return part

    @property
    def d_in(self) -> int:
        """Width of a row."""
        return self.fingerprint.d_in

    @property
    def dtype(self) -> torch.dtype:
        """Precision of a row as it is handed out: as stored, and fp32 where it is stored as int8."""
        return handed_out(self.fingerprint.storage_dtype)

    @property
    def block_count(self) -> int:
        """Blocks in the folder; block i of a shard's end may hold fewer rows than the others."""
        return self._first_blocks[-1] if self._blocks is None else len(self._blocks)

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
        self, blocks: Iterable[int], scratch: memoryview, *, cached: bool = True
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
        return memoryview(mmap(-1, scratch_bytes(self.d_in, self.fingerprint.storage_dtype)))

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
        (whole,) = shard.iter_blocks([local])
        return whole

    def iter_blocks(self) -> Iterator[Block]:
        """Every block in the order of the corpus."""
        for shard, local in self._by_shard(range(self.block_count)):
            yield from shard.iter_blocks(local)

    def _locate(self, block: int) -> tuple[ShardFile, int]:
        if not 0 <= block < self.block_count:
            raise IndexError(f"block {block} of {self.block_count}")
        block = block if self._blocks is None else self._blocks[block]
        shard = bisect_right(self._first_blocks, block) - 1
        return self._shards[shard], block - self._first_blocks[shard]

    def _by_shard(self, blocks: Iterable[int]) -> Iterator[tuple[ShardFile, list[int]]]:
        """Blocks in their order, those together that follow one another in one shard; numbered within it."""
        located = map(self._locate, blocks)
        for shard, group in groupby(located, key=lambda place: place[0]):
            yield shard, [local for _, local in group]

    def _open_all(self) -> Iterator[Sidecar]:
        """Make the list of shards that can be read; yields what stands beside each."""
        numbers = range(len(self.manifest.shards))
        opened = map(self._open, numbers)
        if isinstance(self.folder, RemotePath):
            with ThreadPoolExecutor(_OPENED_AT_ONCE) as asking:
                opened = list(asking.map(self._open, numbers))
        for sidecar, shard in opened:
            self._shards.append(shard)
            yield sidecar

    def _open(self, index: int) -> tuple[Sidecar, ShardFile]:
        """A shard, and what stands beside it."""
        sidecar, info = Sidecar.read(self.folder, index), self.manifest.shards[index]
        if (sidecar.shard, sidecar.fingerprint) != (info, self.fingerprint):
            path = sidecar_path(self.folder, info.file)
            raise ShardError(f"{path} is not the one the manifest describes; restore it or collect again with --fresh")
        return sidecar, ShardFile(self.folder, sidecar)

    def _warn_of_strays(self) -> None:
        known = {shard.file for shard in self.manifest.shards}
        if stray := sorted(path.name for path in self.folder.glob("*.safetensors") if path.name not in known):
            warnings.warn(f"{self.folder} holds {', '.join(stray)}, unknown to its manifest: ignored", stacklevel=3)
