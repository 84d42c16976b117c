"""Activations to shards, so that a killed run goes on where it stopped and ends in the very same bytes.

A shard holds whole forward batches and is cut by counting rows alone, so its content is a function of the corpus
and the settings, never of when a run was interrupted. Order on disk: shard, then its sidecar, and once, last of
all, the manifest. A full shard is written by a thread of its own while the next one is being filled.

Several ranks may fill one folder, each the shards whose turn is its own. A shard is published after the one before it,
whoever fills that, so what is on disk is at any time what one process would have left.
"""

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, replace
from threading import Event

import numpy as np
import torch
import xxhash
from jaxtyping import Float, Int
from torch import Tensor

from sae_forge.data import leftovers
from sae_forge.data.finite import largest
from sae_forge.data.manifest import (
    BLOCK_ROWS,
    MANIFEST,
    MAX_SHARDS,
    REASONS,
    Fingerprint,
    Hashes,
    Manifest,
    ShardInfo,
    Sidecar,
    complete,
    require_match,
    shard_name,
    shard_number,
    total_rounding,
)
from sae_forge.data.rounding import STORED, Rounding, is_rounded, quantise
from sae_forge.data.shard_file import ORIGINS, SCALE, as_bytes, hash_header
from sae_forge.errors import ConfigError, DataError, NumericalError, ShardError
from sae_forge.ranks import ALONE, Ranks
from sae_forge.store import files
from sae_forge.store.remote import AnyPath, RemotePath, beside
from sae_forge.store.tensors import DTYPES, publish_tensors, read_header

MAX_ROUNDED = 0.02
"""Share of the variance that rounding to int8 may take before the run is refused."""
_TELLING_ROWS = 256
"""Rows from which on that share is believed."""
MAX_NONFINITE = 0.001
"""Share of rows that may be dropped as not finite before the run is refused."""


def buffer_bytes(fingerprint: Fingerprint, shard_rows: int) -> int:
    """Memory a writer needs: the shard being filled and the one being written, each with room for a forward batch."""
    return 2 * (shard_rows + fingerprint.batch_size * fingerprint.ctx_len) * row_bytes(fingerprint)


def row_bytes(fingerprint: Fingerprint) -> int:
    """What a row takes in a shard, with where it came from."""
    acts = fingerprint.d_in * STORED[fingerprint.storage_dtype].itemsize
    scale = SCALE.itemsize if is_rounded(fingerprint.storage_dtype) else 0
    return acts + scale + sum(dtype.itemsize for dtype in ORIGINS.values())


class ShardWriter:
    """The one writer of a folder, inside a ``with`` block; what it leaves is resumable, and complete after ``finish``.

    Entering verifies the shards that are there and removes leftovers of a killed run, by their exact names: no shard
    that is whole goes without ``fresh``, unless it ends fewer tokens than are asked for now, and no file of another
    hand at all. A full shard is published behind the caller's back, one at a time; what goes wrong there is raised by
    the next call, and by every one after it.
    Leaving by an exception lets a full shard be finished, drops the rows of the one being filled, and publishes nothing
    else.

    Args:
        shard_rows: A shard is cut after the forward batch that reaches this many rows.
        fresh: Delete what is there first.
        team: The ranks that fill this folder together; all of them enter, see every batch, and finish.

    Raises:
        ConfigError: another process is writing here.
        ShardError: the folder holds shards of other settings, or damaged ones.
    """

    def __init__(
        self, folder: AnyPath, fingerprint: Fingerprint, *, shard_rows: int, fresh: bool = False, team: Ranks = ALONE
    ) -> None:
        self.folder, self.fingerprint, self.shard_rows = folder, fingerprint, shard_rows
        self.manifest: Manifest | None = None
        """Set once the folder is complete."""
        self._fresh, self._team = fresh, team
        self._shards: list[ShardInfo] = []
        self._rows = self._batches = 0  # of the shard being filled, as all up to ``_rounding``
        self._dropped = dict.fromkeys(REASONS, 0)
        self._rounding = self._no_rounding()
        self._buffers: dict[str, Tensor] = {}  # being filled
        self._others: dict[str, Tensor] = {}  # being written, or done with
        self._behind: Future[ShardInfo] | None = None  # the last of this rank's shards, while it is being written
        self._behind_number = 0
        self._given_up = Event()
        self._writing = ThreadPoolExecutor(1, thread_name_prefix="shard-writer")
        self._held = ExitStack()

    def __enter__(self) -> "ShardWriter":
        with ExitStack() as held:
            with self._team.led() as first:
                if first:
                    held.enter_context(files.locked(self.folder))
                    self._recover()
            if not first:
                self._follow()
            self._team.meet()
            self._held = held.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        with self._held:
            if kind is not None:
                self._given_up.set()
            self._writing.shutdown()
            self._buffers, self._others = {}, {}
            if kind is None:
                self._settle()

    @property
    def next_batch(self) -> int:
        """The first forward batch of the corpus not yet written: where to resume."""
        return self.fingerprint.first_batch + sum(shard.batches for shard in self._shards) + self._batches

    @property
    def begun(self) -> int:
        """The number of the shard that takes the next batch."""
        return len(self._shards)

    @property
    def rows(self) -> int:
        """Rows kept so far, those of earlier runs included."""
        return sum(shard.rows for shard in self._shards) + self._rows

    @property
    def nonfinite(self) -> int:
        """Rows dropped so far because they were not finite."""
        return sum(shard.nan + shard.infinite for shard in self._shards) + self._nonfinite

    def write_batch(
        self,
        index: int,
        acts: Float[Tensor, "rows d_in"],
        seq_ids: Int[Tensor, " rows"],
        positions: Int[Tensor, " rows"],
        token_ids: Int[Tensor, " rows"],
        *,
        special: int = 0,
    ) -> None:
        """Take the real tokens of one forward batch, on any device; rows that are not finite are dropped and counted.

        A row counts as it is stored, so that a number too large for fp16 is infinite there; for int8, as it comes.

        Args:
            index: Must be ``next_batch``: batches come in order, each once.
            special: Tokens of the batch that are not among the rows because they are no real tokens.

        Raises:
            NumericalError: more than 0.1 % of the rows are not finite.
            ConfigError: rounding to int8 takes more than 2 % of their variance.
        """
        self._require_fit(index, acts)
        if self._behind is not None and self._behind.done():
            self._settle()
        begin, end = self._rows, self._rows + len(acts)
        for name, rows in {"seq_ids": seq_ids, "positions": positions, "token_ids": token_ids}.items():
            self._buffers[name][begin:end].copy_(rows)
        peaks = self._fill(begin, end, acts)
        finite = peaks.isfinite().numpy()
        if not finite.all():  # close the gaps
            kept = torch.from_numpy(np.flatnonzero(finite))
            end = begin + len(kept)
            for rows in self._buffers.values():
                rows[begin:end] = rows[begin : begin + len(acts)][kept]
        self._rows = end
        self._dropped["nan"] += int(peaks.isnan().sum())
        self._dropped["infinite"] += int(peaks.isinf().sum())
        self._dropped["special"] += special
        self._batches += 1
        # Early on, few rows were seen: some bad ones must not count as a large share of the run to come.
        self._require_finite(of=self.fingerprint.max_tokens or self.shard_rows)
        if self._rows >= _TELLING_ROWS:
            self._require_true(self._rounding, self._rows)
        if self._rows + self._nonfinite >= self.shard_rows:
            self._cut()

    def pass_over(self, index: int, rows: int) -> None:
        """Count a batch that is another rank's to write.

        Args:
            rows: Its real tokens.
        """
        self._require_next(index)
        self._rows += rows
        self._batches += 1
        if self._rows >= self.shard_rows:
            self._cut()

    def finish(self, *, skipped: int = 0, control: int = 0) -> Manifest:
        """Publish what is left and the manifest, with these counts of the corpus's: the folder is complete.

        Raises:
            NumericalError: more than 0.1 % of the rows are not finite.
            DataError: there was no row at all.
        """
        if self.manifest is not None:
            return self.manifest
        self._require_finite()
        if not self.rows:
            raise DataError(f"{self.fingerprint.source} gave no real tokens to collect; choose a longer corpus")
        if self._batches:
            self._cut()
        self._settle()
        if self._team.world > 1:
            self._team.meet()
            self._shards = [Sidecar.read(self.folder, number).shard for number in range(len(self._shards))]
            self._require_finite()
        rounding = None
        if is_rounded(self.fingerprint.storage_dtype):
            # As the sidecars have it: a sum of floats must not depend on who wrote the shards, and when.
            rounding = total_rounding(Sidecar.read(self.folder, number) for number in range(len(self._shards)))
        manifest = Manifest(self.fingerprint, tuple(self._shards), rounding, skipped, control)
        self._require_true(manifest.rounding, manifest.rows)
        with self._team.led() as first:
            if first:
                manifest.publish(self.folder)
        self.manifest = manifest
        return manifest

    def _require_next(self, index: int) -> None:
        if self.manifest is not None or index != self.next_batch:
            raise ShardError(f"{self.folder} takes batch {self.next_batch} next, not batch {index}")

    def _require_fit(self, index: int, acts: Tensor) -> None:
        self._require_next(index)
        capacity = self.fingerprint.batch_size * self.fingerprint.ctx_len
        if acts.shape[1] != self.fingerprint.d_in or len(acts) > capacity:
            raise ShardError(
                f"{self.folder} takes up to {capacity} rows {self.fingerprint.d_in} wide in a batch, "
                f"not {len(acts)} rows {acts.shape[1]} wide"
            )
        if not self._buffers:
            rows = self.shard_rows + capacity
            shape, dtype = (rows, self.fingerprint.d_in), STORED[self.fingerprint.storage_dtype]
            self._buffers = {"acts": torch.empty(shape, dtype=dtype)}
            if is_rounded(self.fingerprint.storage_dtype):
                self._buffers["scales"] = torch.empty(rows, dtype=SCALE)
            self._buffers |= {name: torch.empty(rows, dtype=dtype) for name, dtype in ORIGINS.items()}

    def _fill(self, begin: int, end: int, acts: Float[Tensor, "rows d_in"]) -> Float[Tensor, " rows"]:
        """Store activations in the precision asked for; returns the largest magnitude of each, finite where it is."""
        stored = self._buffers["acts"][begin:end]
        if self._rounding is None:
            stored.copy_(acts)
            return largest(stored)
        given = acts.cpu().contiguous()
        peaks = largest(given if given.dtype in DTYPES.values() else given.float())
        self._rounding += quantise(given, peaks, stored, self._buffers["scales"][begin:end])
        return peaks

    def _no_rounding(self) -> Rounding | None:
        """What rounding did to no row at all, where rows are rounded."""
        return Rounding.none(self.fingerprint.d_in) if is_rounded(self.fingerprint.storage_dtype) else None

    @property
    def _nonfinite(self) -> int:
        return self._dropped["nan"] + self._dropped["infinite"]

    def _require_finite(self, of: int = 0) -> None:
        """Raise once too many rows are bad even for a run of ``of`` rows, or for those seen."""
        seen = self.rows + self.nonfinite
        if self.nonfinite > MAX_NONFINITE * max(seen, of):
            where = "before rounding" if self._rounding else f"in {self.fingerprint.storage_dtype}"
            raise NumericalError(
                f"{self.nonfinite} of {seen} activations at {self.fingerprint.hook_point} of {self.fingerprint.corpus} "
                f"are NaN or infinite {where}, more than {MAX_NONFINITE:.1%}; "
                "collect with --storage_dtype bf16 or --dtype fp32, and check the model"
            )

    def _require_true(self, rounding: Rounding | None, rows: int) -> None:
        """Raise where int8, with one scale for a whole row, takes more from these rows than an SAE could be told of."""
        lost = None if rounding is None else rounding.unexplained(rows)
        if rounding is not None and lost is not None and lost > MAX_ROUNDED:
            means = np.abs(np.array(rounding.sums)) / rows
            raise ConfigError(
                f"--storage_dtype int8 would lose {lost:.1%} of the variance at {self.fingerprint.hook_point} of "
                f"{self.fingerprint.corpus}, more than {MAX_ROUNDED:.0%}: a few channels dwarf the others "
                f"(channel {int(means.argmax())} is {means.max():.3g} on average, half of them are below "
                f"{np.median(means):.3g}); collect with --storage_dtype bf16"
            )

    def is_own(self, shard: int) -> bool:
        """Whether the shard of this number is this rank's to fill."""
        return shard % self._team.world == self._team.rank

    def _cut(self) -> None:
        """Hand the rows held to the thread that writes, once it has written those before."""
        done, own = self._shards, self.is_own(len(self._shards))
        if len(done) == MAX_SHARDS:
            raise ShardError(
                f"{self.folder} holds {MAX_SHARDS} shards, the most there may be; collect again with more --shard_rows"
            )
        if own:
            self._settle()
        info = ShardInfo(
            file=shard_name(len(done)),
            rows=self._rows,
            first_row=sum(shard.rows for shard in done),
            batches=self._batches,
            first_batch=sum(shard.batches for shard in done),
            bytes=0,  # and its hashes: known once it is written
            **self._dropped,
            hashes="",
        )
        if own:
            tensors = {name: rows[: self._rows] for name, rows in self._buffers.items()}
            files.require_disk(beside(self.folder), sum(rows.nbytes for rows in tensors.values()) + 64 * 1024)
            self._behind = self._writing.submit(self._publish, info, tensors, self._rounding)
            self._behind_number = len(done)
            self._buffers, self._others = self._others, self._buffers
        self._shards.append(info)
        self._rows = self._batches = 0
        self._dropped = dict.fromkeys(REASONS, 0)
        self._rounding = self._no_rounding()

    def _publish(self, info: ShardInfo, tensors: dict[str, Tensor], rounding: Rounding | None) -> ShardInfo:
        """Put a shard on disk, and its sidecar after it; returns what the sidecar says of it."""
        if self._team.world > 1:
            info = replace(info, first_row=self._rows_before(info))
        publish_tensors(path := self.folder / info.file, tensors)
        layout, size = read_header(path, kind=ShardError, what="the shard just written")
        hashes = _hash(tensors, hash_header(path, layout))
        info = replace(info, bytes=size, hashes=files.digest(asdict(hashes)))
        Sidecar(self.fingerprint, info, hashes, rounding).publish(self.folder)
        return info

    def _settle(self) -> None:
        """Wait for the shard being written; raises what went wrong with it, each time anew."""
        if self._behind is not None:
            self._shards[self._behind_number] = self._behind.result()
            self._behind = None

    def _rows_before(self, info: ShardInfo) -> int:
        """Rows of all shards before this one, which are on disk when it is known."""
        number = shard_number(info.file)
        assert number is not None
        if number == 0:
            return 0
        while not leftovers.stands(self.folder, number - 1):
            self._team.heed()
            if self._given_up.wait(0.5 if isinstance(self.folder, RemotePath) else 0.02):
                raise ShardError(f"{self.folder / info.file} was not written: the work has ended before its turn")
        before = Sidecar.read(self.folder, number - 1).shard
        return before.first_row + before.rows

    def _recover(self) -> None:
        """Take over the whole shards that stand in an unbroken row from the first; delete the rest."""
        if grows := not self._fresh and complete(self.folder):
            manifest = Manifest.read(self.folder)
            if not self.fingerprint.extends(manifest.fingerprint):
                require_match(self.folder, self.fingerprint, manifest.fingerprint)
                self.manifest, self._shards = manifest, list(manifest.shards)
                return
        whole = [] if self._fresh else leftovers.whole_shards(self.folder, self.fingerprint)
        if self._fresh or grows:
            (self.folder / MANIFEST).unlink(missing_ok=True)
        self._shards = leftovers.take_over(self.folder, self.fingerprint, whole)
        leftovers.clear(self.folder, beyond=len(self._shards), fresh=self._fresh)

    def _follow(self) -> None:
        """Take over what the first rank has found whole."""
        if complete(self.folder):
            self.manifest = Manifest.read(self.folder)
            self._shards = list(self.manifest.shards)
        while self.manifest is None and leftovers.stands(self.folder, len(self._shards)):
            self._shards.append(Sidecar.read(self.folder, len(self._shards)).shard)


def _hash(tensors: dict[str, Tensor], header: str) -> Hashes:
    def of_each_block(names: Iterable[str]) -> tuple[str, ...]:
        hashes = []
        for first in range(0, len(tensors["acts"]), BLOCK_ROWS):
            hasher = xxhash.xxh3_64()
            for name in names:
                hasher.update(as_bytes(tensors[name][first : first + BLOCK_ROWS]))
            hashes.append(hasher.hexdigest())
        return tuple(hashes)

    acts = [name for name in ("acts", "scales") if name in tensors]
    return Hashes(header=header, acts=of_each_block(acts), origins=of_each_block(ORIGINS))
