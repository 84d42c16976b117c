"""Corpora that never lie on disk whole: cut into windows, of which one at a time is there to be read.

Where the cuts are is settled before the first window is filled, from the number of real tokens in every forward batch.
So which window a batch comes from is a function of its number, as everything else is, and a run that was stopped needs
no record of what it had consumed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from sae_forge.data.manifest import BLOCK_ROWS, MAX_SHARDS, Fingerprint
from sae_forge.data.reader import ShardReader
from sae_forge.data.rounding import is_rounded
from sae_forge.data.stream import ActivationStream, Part
from sae_forge.data.writer import row_bytes
from sae_forge.errors import ConfigError, DataError, ShardError
from sae_forge.store import files, records

_RECORD_BYTES, _BLOCK_BYTES, _NUMBER_BYTES = 4096, 64, 32
"""What a shard takes at most beside its rows, and the manifest: header and record, hashes of a block, a sum of int8."""

_MOST_PARTS = 2**15
"""Windows times corpora: what is kept of each must stay within what a JSON file may hold (``files.MAX_JSON_BYTES``)."""


@dataclass(frozen=True)
class Cut:
    """One corpus in as many windows as every other; a window may hold none of it."""

    fingerprint: Fingerprint
    """Of the corpus as a whole."""
    ends: tuple[int, ...]
    """Forward batch before which each window ends."""
    rows: tuple[int, ...]
    """Real tokens of each window."""

    def fingerprint_of(self, window: int) -> Fingerprint:
        """What the shards of one window are of."""
        return replace(
            self.fingerprint, first_batch=self.ends[window - 1] if window else 0, end_batch=self.ends[window]
        )


@dataclass(frozen=True)
class WindowPlan:
    """Where every corpus is cut; all windows are about equally large."""

    cuts: dict[str, Cut]
    """By the name of the corpus's folder."""

    @property
    def count(self) -> int:
        """Windows in a pass over the corpora."""
        return len(next(iter(self.cuts.values())).ends)

    @property
    def rows(self) -> list[int]:
        """Real tokens of each window, of all corpora together."""
        return [sum(rows) for rows in zip(*(cut.rows for cut in self.cuts.values()), strict=True)]

    @property
    def sha256(self) -> str:
        """Names the tokens and their order of coming: it changes with any setting, any corpus and any cut."""
        return files.digest(self._body())

    def publish(self, path: Path) -> None:
        """Write it."""
        files.publish_json(path, self._body())

    @classmethod
    def read(cls, path: Path) -> "WindowPlan":
        """The plan that was published.

        Raises:
            ShardError: missing, altered, or something else; the message names the file.
        """
        what = "a plan of windows"
        body = files.read_json(path, kind=ShardError, what=what, proven=True)
        try:
            plan = records.decode(cls, body)
            if files.canonical(plan._body()) != files.canonical(body):
                raise ValueError("it lacks a field")
            for name, cut in plan.cuts.items():
                if min(*cut.ends, *cut.rows, 0) < 0 or tuple(sorted(cut.ends)) != cut.ends:
                    raise ValueError(f"the windows of {name[:40]} do not follow one another")
            lengths = {len(counts) for cut in plan.cuts.values() for counts in (cut.ends, cut.rows)}
            if len(lengths) != 1 or 0 in lengths:
                raise ValueError("its corpora are not cut alike")
        except ValueError as error:
            raise ShardError(f"{path} is not {what}: {error}") from error
        return plan

    def _body(self) -> dict[str, Any]:
        return {"cuts": {name: asdict(cut) for name, cut in self.cuts.items()}}


def plan_windows(
    counts: Mapping[str, tuple[Fingerprint, np.ndarray]], *, shard_rows: int, most_bytes: int, least: int
) -> WindowPlan:
    """About the fewest windows of which each has ``least`` rows and none takes more than ``most_bytes`` of disk.

    Args:
        counts: For each corpus its fingerprint and the real tokens of every forward batch.
        shard_rows: Rows after which a shard is cut.
        least: Rows that training needs of a window.

    Raises:
        DataError: all corpora together hold less.
        ConfigError: windows that small hold less, or so large too many shards; names the bytes or rows that will do.
    """
    corpora = [_Counted(fingerprint, tokens) for fingerprint, tokens in counts.values()]
    total = sum(corpus.rows for corpus in corpora)
    if total < least:
        raise DataError(
            f"the corpora hold {total:,} tokens, and training needs {least:,}, a batch and what may be dropped of it; "
            "lower --batch_size or raise --max_tokens"
        )
    most = min(total // least, max(len(tokens) for _, tokens in counts.values()))
    enough = (n for n in _steps_up(most) if np.sum([corpus.held(n) for corpus in corpora], axis=0).min() >= least)
    sizes: dict[int, int] = {}
    for n in enough:
        sizes[n] = int(np.sum([corpus.disk_bytes(n, shard_rows) for corpus in corpora], axis=0).max())
        if sizes[n] <= most_bytes:
            break
    else:
        raise ConfigError(
            f"--max_disk_gb {most_bytes / 1e9:g} is too little for windows of at least {least:,} tokens, a batch of "
            f"training and what may be dropped of it; give {min(sizes.values()) / 1e9 * 1.01:.3g} or more, or lower "
            "--batch_size, --model_batch_size or --ctx_len"
        )
    if n * len(corpora) > _MOST_PARTS:
        raise ConfigError(
            f"--max_disk_gb {most_bytes / 1e9:g} makes {n:,} windows of {len(corpora)} corpora, more than a record of "
            f"them can hold; give {most_bytes * n * len(corpora) / _MOST_PARTS / 1e9 * 1.01:.3g} or more"
        )
    if (rows := max(int(corpus.held(n).max()) for corpus in corpora)) > MAX_SHARDS * shard_rows:
        raise ConfigError(
            f"--shard_rows {shard_rows} makes too many shards of a window; give {rows // MAX_SHARDS + 1:,}"
        )
    return WindowPlan({name: corpus.cut(n) for name, corpus in zip(counts, corpora, strict=True)})


class _Counted:
    """A corpus whose real tokens are known, cut into any number of windows of as many forward batches."""

    def __init__(self, fingerprint: Fingerprint, tokens: np.ndarray) -> None:
        self._fingerprint = fingerprint
        self._before = np.concatenate([[0], np.cumsum(tokens, dtype=np.int64)])
        self.rows = int(self._before[-1])

    def held(self, windows: int) -> np.ndarray:
        """Rows of each window."""
        return np.diff(self._before[self._bounds(windows)])

    def disk_bytes(self, windows: int, shard_rows: int) -> np.ndarray:
        """What each window takes on disk at most; a shard is cut after the forward batch that fills it."""
        rows, fingerprint = self.held(windows), self._fingerprint
        sums = _NUMBER_BYTES * fingerprint.d_in if is_rounded(fingerprint.storage_dtype) else 0
        shards = -(-rows // shard_rows)
        beside = (shards + 1) * (_RECORD_BYTES + sums) + (rows // BLOCK_ROWS + shards) * _BLOCK_BYTES
        return np.where(rows > 0, rows * row_bytes(fingerprint) + beside, 0)

    def cut(self, windows: int) -> Cut:
        return Cut(self._fingerprint, tuple(self._bounds(windows)[1:].tolist()), tuple(self.held(windows).tolist()))

    def _bounds(self, windows: int) -> np.ndarray:
        return np.arange(windows + 1) * (len(self._before) - 1) // windows


def _steps_up(most: int) -> Iterator[int]:
    """1 to ``most``, every number at first and then about every hundredth part further."""
    n = 1
    while n <= most:
        yield n
        n += 1 + n // 100


@runtime_checkable
class Windows(Protocol):
    """Who fills windows, keeps one of them, and deletes it."""

    def fill(self, window: int) -> Sequence[ShardReader]:
        """The shards of this window, complete; those of every other are gone."""
        ...

    def discard(self) -> None:
        """No window is on disk any more."""
        ...


class WindowedStream:
    """Batches of corpora that are cut into windows: the stream of one window after the other.

    Rows are shuffled within a window, in another order at each pass. As an epoch does, each window leaves out its last
    ``rows % batch_size`` rows. One whose rows were dropped as not finite makes up for them from its own next order, so
    that the number of batches is known beforehand.

    Args:
        stream_of: Makes the stream of one window from its shards and the number of its order.
    """

    def __init__(
        self,
        plan: WindowPlan,
        windows: Windows,
        *,
        batch_size: int,
        stream_of: Callable[[Sequence[ShardReader], int], ActivationStream],
    ) -> None:
        first = next(iter(plan.cuts.values())).fingerprint
        self.d_in, self.batch_size = first.d_in, batch_size
        self._windows, self._stream_of = windows, stream_of
        self._ends = np.cumsum([rows // batch_size for rows in plan.rows])
        self.batches_per_epoch = int(self._ends[-1])
        self.rows = sum(plan.rows)
        self._number: int | None = None
        self._stream: ActivationStream | None = None
        self._bytes_before, self._wait_before = 0, 0.0

    @property
    def bytes_read(self) -> int:
        """Bytes of activations read so far from all windows."""
        return self._bytes_before + (self._stream.bytes_read if self._stream else 0)

    @property
    def seconds_waited(self) -> float:
        """Time that whoever took the batches spent waiting for a pool to arrive."""
        return self._wait_before + (self._stream.seconds_waited if self._stream else 0.0)

    def part(self, batch: int) -> Part:
        """The window that this batch comes from; it is filled now if it is not there."""
        passes, rest = divmod(batch, self.batches_per_epoch)
        window = int(np.searchsorted(self._ends, rest, side="right"))
        number = passes * len(self._ends) + window
        if self._stream is None or number != self._number:
            self._leave()
            self._number, self._stream = number, self._stream_of(self._windows.fill(window), number)
        before = int(self._ends[window - 1]) if window else 0
        begun = passes * self.batches_per_epoch
        return Part(self._stream, begun + before, begun + int(self._ends[window]))

    def leave(self, part: Part) -> None:
        """Delete the window of this part, whose batches a checkpoint has behind it; the only one stays."""
        if part.stream is self._stream and len(self._ends) > 1:
            self._leave()
            self._windows.discard()

    def _leave(self) -> None:
        self._bytes_before, self._wait_before = self.bytes_read, self.seconds_waited
        self._stream = None


Stream = ActivationStream | WindowedStream
"""Where training batches come from."""
