"""Corpora that never lie on disk whole: cut into windows, of which one at a time is there to be read.

Where the cuts are is settled before the first window is filled, from the number of real tokens in every forward batch.
So which window a batch comes from is a function of its number, as everything else is, and a run that was stopped needs
no record of what it had consumed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from sae_forge import files
from sae_forge.data import sealed
from sae_forge.data.manifest import Fingerprint
from sae_forge.data.reader import ShardReader
from sae_forge.data.stream import ActivationStream, Part
from sae_forge.data.writer import shard_bytes
from sae_forge.errors import ConfigError, ShardError


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
        sealed.publish(path, self._body())

    @classmethod
    def read(cls, path: Path) -> "WindowPlan":
        """The plan that was published.

        Raises:
            ShardError: missing, altered, or something else; the message names the file.
        """
        what = "a plan of windows"
        body = sealed.read(path, what, {"cuts"})
        try:
            cuts = {name: _cut(value) for name, value in body["cuts"].items()}
            if len({len(cut.ends) for cut in cuts.values()} | {len(cut.rows) for cut in cuts.values()}) != 1:
                raise ValueError("its corpora are not cut alike")
        except (ValueError, AttributeError, ConfigError) as error:
            raise ShardError(f"{path} is not {what}: {error}") from error
        return cls(cuts)

    def _body(self) -> dict[str, Any]:
        return {"cuts": {name: asdict(cut) for name, cut in self.cuts.items()}}


def plan_windows(
    counts: Mapping[str, tuple[Fingerprint, np.ndarray]], *, shard_rows: int, most_bytes: int, least: int
) -> WindowPlan:
    """The fewest windows of which none takes more than ``most_bytes`` of disk.

    Args:
        counts: For each corpus its fingerprint and the real tokens of every forward batch.
        shard_rows: Rows after which a shard is cut.
        least: Rows that every window must hold: a batch of training.

    Raises:
        ConfigError: windows that small hold less; names the least number of bytes that will do.
    """
    sums = {name: np.concatenate([[0], np.cumsum(tokens, dtype=np.int64)]) for name, (_, tokens) in counts.items()}

    def bounds(windows: int) -> dict[str, np.ndarray]:
        return {name: np.arange(windows + 1) * (len(total) - 1) // windows for name, total in sums.items()}

    def rows(windows: int) -> np.ndarray:
        return np.stack([np.diff(sums[name][at]) for name, at in bounds(windows).items()])

    def size(windows: int) -> int:
        held = zip((fingerprint for fingerprint, _ in counts.values()), rows(windows), strict=True)
        each = [[_disk_bytes(fingerprint, int(n), shard_rows) for n in own] for fingerprint, own in held]
        return max(map(sum, zip(*each, strict=True)))

    total = sum(int(total[-1]) for total in sums.values())
    most = max(1, min(total // max(1, least), max(len(total) - 1 for total in sums.values())))
    found = next((n for n in range(max(1, size(1) // most_bytes), most + 1) if size(n) <= most_bytes), None)
    if found is None or rows(found).sum(0).min() < least:
        fits = next(n for n in range(most, 0, -1) if n == 1 or rows(n).sum(0).min() >= least)
        raise ConfigError(
            f"--max_disk_gb {most_bytes / 1e9:g} is too little for windows of at least {least:,} tokens, a batch of "
            f"training; give {size(fits) / 1e9 * 1.01:.3g} or more, or lower --batch_size, --model_batch_size or "
            "--ctx_len"
        )
    ends, held = bounds(found), rows(found)
    return WindowPlan(
        {
            name: Cut(fingerprint, tuple(ends[name][1:].tolist()), tuple(own.tolist()))
            for (name, (fingerprint, _)), own in zip(counts.items(), held, strict=True)
        }
    )


def _disk_bytes(fingerprint: Fingerprint, rows: int, shard_rows: int) -> int:
    """What so many rows take on disk at most; a shard is cut after the forward batch that fills it."""
    shards = -(-rows // shard_rows)
    return shards and shard_bytes(fingerprint, rows) + (shards - 1) * shard_bytes(fingerprint, 0)


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


def _cut(value: Any) -> Cut:
    """A cut from its JSON; raises ValueError when it is none."""
    if not isinstance(value, dict) or set(value) != {"fingerprint", "ends", "rows"}:
        raise ValueError("a corpus in it is not cut")
    lists = [value["ends"], value["rows"]]
    if not all(isinstance(one, list) and one and all(type(n) is int and n >= 0 for n in one) for one in lists):
        raise ValueError("its windows are not counted")
    if sorted(value["ends"]) != value["ends"]:
        raise ValueError("its windows do not follow one another")
    return Cut(sealed.record(Fingerprint, value["fingerprint"]), tuple(value["ends"]), tuple(value["rows"]))
