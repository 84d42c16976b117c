"""How fast shards become shuffled batches, beside a plain read of the same files from end to end in the same round.

Every way of reading is taken with the files dropped from the page cache (cold) and with them in it (warm). What
verifying costs is seen by reading without it, which only this file can do. Nothing is timed before the stream has been
seen to give rows of the shards, each once.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
import xxhash
from timing import Seconds, both, conditions, ratios, table, write_json
from torch import Tensor

from sae_forge.data.shard_file import ShardFile
from sae_forge.data.shards import Fingerprint, ShardReader, ShardWriter, complete
from sae_forge.data.stream import ActivationStream
from sae_forge.store.tensors import DTYPES

PLAIN, ORDER, ORDER_BARE = "files end to end", "blocks in order", "blocks in order, not verified"
STREAM, STREAM_BARE, BUSY = "stream", "stream, not verified", "stream, busy consumer"
HEAD = ("reading", "GB/s median / best", "k rows/s median", "share of the plain read")
READ_BYTES = 2**20
CTX_LEN = 1024


def main() -> None:
    """Make shards, read them every way in every round, and print a table for each state of the page cache."""
    options = _options()
    with tempfile.TemporaryDirectory() as scratch:
        reader = _shards(options, options.folder or Path(scratch))
        stream = ActivationStream(
            [reader], batch_size=options.batch_size, seed=0, shuffle_gb=options.shuffle_gb, cached=options.cached
        )
        _check(reader, stream)
        sizes = {name: value for name, value in vars(options).items() if name not in ("json", "folder", "gigabytes")}
        found: dict[str, Any] = {
            "sizes": sizes | {"rows": reader.rows, "bytes": _bytes(reader), "shards": len(reader.manifest.shards)},
            "conditions": conditions(torch.device("cpu")),
            "memory": _memory(stream, options.shuffle_gb),
        }
        for name in ("cold", "warm"):
            found[name] = _rounds(reader, stream, options.rounds, cold=name == "cold")
    found["load_after"] = conditions(torch.device("cpu"))["load"]
    print(found["conditions"] | {"load_after": found["load_after"]}, found["sizes"], sep="\n")
    for name in ("cold", "warm"):
        rows = [_row(case, found[name], found["sizes"]) for case in found[name] if case != BUSY]
        print("", name, "", table(HEAD, rows), "", _remarks(found[name]), sep="\n")
    print(f"\nMemory: {_shown(found['memory'])}")
    write_json(options.json, found)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0, help="size of the shards")
    parser.add_argument("--d_in", type=int, default=2304)
    parser.add_argument("--storage_dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--shard_rows", type=int, default=65_536)
    parser.add_argument("--batch_size", type=int, default=4096, help="rows of a batch")
    parser.add_argument("--shuffle_gb", type=float, default=1.2, help="memory the stream may take")
    parser.add_argument(
        "--cached",
        action=argparse.BooleanOptionalAction,
        help="the stream reads through the page cache, or past it; unset: as it chooses",
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="where the shards lie or go, and stay; unset: a temporary folder")
    parser.add_argument("--json", type=Path, help="where the single times go")
    return parser.parse_args()


# ---- the shards ---------------------------------------------------------------------------------


def _shards(options: argparse.Namespace, folder: Path) -> ShardReader:
    """Rows of noise, written as collect writes them."""
    rows = max(
        options.batch_size, round(options.gigabytes * 1e9 / (options.d_in * DTYPES[options.storage_dtype].itemsize))
    )
    fingerprint = Fingerprint(
        model="noise",
        weights="",
        tokenizer="",
        hook_point="blocks.0.hook_resid_post",
        d_in=options.d_in,
        storage_dtype=options.storage_dtype,
        ctx_len=CTX_LEN,
        bos="none",
        batch_size=8,
        max_tokens=rows,
        corpus="noise",
        source="noise",
        role="retain",
    )
    if not complete(folder):
        noise = torch.Generator().manual_seed(0)
        with ShardWriter(folder, fingerprint, shard_rows=options.shard_rows, fresh=True) as writer:
            for index, numbers in enumerate(torch.arange(rows).split(8 * CTX_LEN)):
                acts = torch.randn(len(numbers), options.d_in, generator=noise)
                writer.write_batch(index, acts, numbers // CTX_LEN, numbers % CTX_LEN, numbers % CTX_LEN)
            writer.finish()
    return ShardReader(folder, expect={"d_in": options.d_in, "storage_dtype": options.storage_dtype})


def _files(reader: ShardReader) -> list[Path]:
    return [reader.folder / shard.file for shard in reader.manifest.shards]


def _bytes(reader: ShardReader) -> int:
    return sum(shard.bytes for shard in reader.manifest.shards)


def _check(reader: ShardReader, stream: ActivationStream) -> None:
    """An epoch of the stream holds rows of the shards, each once, and all that fill whole batches."""
    stored = [row for block in range(reader.block_count) for row in _row_hashes(reader.read_acts(block))]
    given = [row for batch in _epoch(stream) for row in _row_hashes(batch)]
    whole = len(set(stored)) == len(stored) and len(set(given)) == len(given) and set(given) <= set(stored)
    if not whole or len(given) != stream.batches_per_epoch * stream.batch_size:
        raise SystemExit("the stream lost, repeated or changed a row; nothing was timed")


def _row_hashes(rows: Tensor) -> Iterator[int]:
    return map(xxhash.xxh3_64_intdigest, rows.contiguous().view(torch.uint8).numpy())


# ---- ways of reading ----------------------------------------------------------------------------


def _rounds(reader: ShardReader, stream: ActivationStream, rounds: int, *, cold: bool) -> Seconds:
    """Seconds that each way took for all rows, once a round; a first round warms up and is not counted."""
    cases: dict[str, Callable[[], float]] = {
        PLAIN: partial(_timed, partial(_read_files, reader)),
        ORDER: partial(_timed, partial(_read_blocks, reader)),
        ORDER_BARE: partial(_unverified, partial(_timed, partial(_read_blocks, reader))),
        STREAM: partial(_streamed, stream, 0.0),
        STREAM_BARE: partial(_unverified, partial(_streamed, stream, 0.0)),
    }
    names = [*cases, BUSY]
    seconds: Seconds = {name: [] for name in names}
    for number in range(rounds + 1):
        pause = (seconds[STREAM][-1] if seconds[STREAM] else 0.0) / stream.batches_per_epoch
        cases[BUSY] = partial(_streamed, stream, pause)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            if cold:
                _forget(reader)
            spent = cases[name]()
            if name == BUSY:  # what a step took over the longer of its two parts
                spent /= max(pause * stream.batches_per_epoch, seconds[STREAM][-1]) if pause else 1.0
            if number:
                seconds[name].append(spent)
            elif name == STREAM:
                seconds[name].append(spent)  # the first pause is taken from it
    del seconds[STREAM][0]
    return seconds


def _timed(read: Callable[[], None]) -> float:
    started = time.perf_counter()
    read()
    return time.perf_counter() - started


def _read_files(reader: ShardReader) -> None:
    """Every byte of every file into one buffer, in order: what the disk, or the page cache, can give one reader."""
    buffer = memoryview(bytearray(READ_BYTES))
    for path in _files(reader):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def _read_blocks(reader: ShardReader) -> None:
    for _ in reader.iter_acts(range(reader.block_count), reader.make_scratch()):
        pass


def _epoch(stream: ActivationStream) -> Iterator[Tensor]:
    with closing(stream.batches()) as batches:
        yield from islice(batches, stream.batches_per_epoch)


def _streamed(stream: ActivationStream, pause: float) -> float:
    """An epoch handed out to who spends ``pause`` seconds with each batch; ending the threads is not counted."""
    started = time.perf_counter()
    with closing(stream.batches()) as batches:
        for _ in islice(batches, stream.batches_per_epoch):
            if pause:
                time.sleep(pause)
        return time.perf_counter() - started


def _unverified(read: Callable[[], float]) -> float:
    """The same without a hash of what was read."""

    def trust(self: ShardFile, block: int, content: memoryview) -> None:
        pass

    with patch.object(ShardFile, "_verify_acts", trust):
        return read()


def _forget(reader: ShardReader) -> None:
    """Drop the shards from the page cache; they were written long enough ago to be on the disk."""
    for path in _files(reader):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _memory(stream: ActivationStream, shuffle_gb: float) -> dict[str, int]:
    """Resident bytes that an epoch added at its peak, beside those it was said to take and those it may take."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _status("VmRSS")
    for _ in _epoch(stream):
        pass
    return {"peak": _status("VmHWM") - before, "held": stream.held_bytes, "given": round(shuffle_gb * 1e9)}


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


# ---- the table ----------------------------------------------------------------------------------


def _row(case: str, seconds: Seconds, sizes: dict[str, Any]) -> tuple[str, ...]:
    rate = [sizes["bytes"] / 1e9 / spent for spent in seconds[case]]
    rows = sizes["rows"] / median(seconds[case])
    return (case, both((median(rate), max(rate))), f"{rows / 1e3:.0f}", both(ratios(seconds[PLAIN], seconds[case])))


def _remarks(seconds: Seconds) -> str:
    cost = ratios(seconds[ORDER], seconds[ORDER_BARE]), ratios(seconds[STREAM], seconds[STREAM_BARE])
    return (
        f"Verifying takes {both(cost[0])} times as long in order and {both(cost[1])} in the stream. A consumer as "
        f"slow as the stream takes {median(seconds[BUSY]):.2f} / {min(seconds[BUSY]):.2f} times the longer of the two."
    )


def _shown(memory: dict[str, int]) -> str:
    peak, held, given = (memory[name] / 1e9 for name in ("peak", "held", "given"))
    return (
        f"an epoch added {peak:.3f} GB at its peak, of {held:.3f} expected and {given:.3f} given ({peak / given:.3f})"
    )


if __name__ == "__main__":
    main()
