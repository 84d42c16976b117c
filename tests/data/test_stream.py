"""The stream: every row once an epoch, the same order from any starting point, and a thread that ends with it."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sae_forge.data import stream as stream_module
from sae_forge.data.shards import BLOCK_ROWS, Fingerprint, ShardReader, ShardWriter
from sae_forge.data.stream import ActivationStream
from sae_forge.errors import ConfigError, DataError, ShardError

SIZES = {"gnomes": 2000, "elves": 701}
ROWS = sum(SIZES.values())


def make_shards(folder: Path, first: int, rows: int, shard_rows: int = 600, **changes) -> ShardReader:
    """Shards of rows that hold their own number, three wide; ragged blocks in the middle and at the end."""
    settings = {"model": "tiny", "weights": "0", "tokenizer": "1", "hook_point": "blocks.1.hook_resid_post", "d_in": 3}
    settings |= {"storage_dtype": "fp32", "ctx_len": 32, "bos": "row", "batch_size": 4, "max_tokens": None}
    fingerprint = Fingerprint(**{**settings, "corpus": "c", "source": "c", "role": "retain", **changes})
    numbers = torch.arange(first, first + rows)
    with ShardWriter(folder, fingerprint, shard_rows=shard_rows) as writer:
        for index, part in enumerate(numbers.split(100)):
            writer.write_batch(index, part[:, None].expand(-1, fingerprint.d_in).float(), part, part, part)
        writer.finish()
    return ShardReader(folder)


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> list[ShardReader]:
    root = tmp_path_factory.mktemp("shards")
    gnomes = make_shards(root / "gnomes", 0, SIZES["gnomes"])
    return [gnomes, make_shards(root / "elves", SIZES["gnomes"], SIZES["elves"])]


def take(stream: ActivationStream, count: int, start: int = 0) -> list[list[int]]:
    """The numbers of the rows of some batches."""
    batches = stream.batches(start)
    found = [next(batches) for _ in range(count)]
    assert all(batch.shape == (stream.batch_size, stream.d_in) for batch in found)
    return [batch[:, 0].long().tolist() for batch in found]


def stream_of(
    readers: list[ShardReader], *, batch_size: int, pool_rows: int, seed: int = 0, cached: bool | None = None
) -> ActivationStream:
    """A stream with as much memory as pools of so many rows take."""
    pool_rows = max(pool_rows, 2 * batch_size, 2 * BLOCK_ROWS)
    blocks = -(-pool_rows // BLOCK_ROWS)
    plain = ActivationStream(readers, batch_size=batch_size, seed=seed)
    gigabytes = plain._held_bytes(blocks * BLOCK_ROWS) / 1e9
    stream = ActivationStream(readers, batch_size=batch_size, seed=seed, shuffle_gb=gigabytes, cached=cached)
    assert stream._pools == -(-sum(reader.block_count for reader in readers) // blocks)
    return stream


def flat(batches: list[list[int]]) -> list[int]:
    return [row for batch in batches for row in batch]


@pytest.mark.slow
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batch_size=st.integers(1, ROWS), pool_rows=st.integers(1, 4000), seed=st.integers(0, 2**40))
def test_no_row_is_lost_or_repeated_in_an_epoch(readers, batch_size: int, pool_rows: int, seed: int) -> None:
    stream = stream_of(readers, batch_size=batch_size, seed=seed, pool_rows=pool_rows)
    assert stream.batches_per_epoch == ROWS // batch_size
    epochs = take(stream, 2 * stream.batches_per_epoch)
    for epoch in (epochs[: stream.batches_per_epoch], epochs[stream.batches_per_epoch :]):
        rows = flat(epoch)
        assert len(set(rows)) == len(rows) == ROWS - ROWS % batch_size
        assert set(rows) <= set(range(ROWS))


@pytest.mark.slow
@pytest.mark.parametrize("pool_rows", [512, 700, 10_000])
def test_from_any_start_come_exactly_the_batches_an_unbroken_run_gives(readers, pool_rows: int) -> None:
    stream = stream_of(readers, batch_size=97, seed=3, pool_rows=pool_rows)
    count = 2 * stream.batches_per_epoch + 5
    unbroken = take(stream, count)
    for start in range(count):
        assert take(stream, min(4, count - start), start) == unbroken[start : start + 4]
    opened = [ShardReader(reader.folder) for reader in readers]
    again = stream_of(opened, batch_size=97, seed=3, pool_rows=pool_rows)
    assert take(again, 7, start=stream.batches_per_epoch - 3) == unbroken[stream.batches_per_epoch - 3 :][:7]


def test_a_batch_larger_than_a_pool_of_short_blocks_is_still_whole(tmp_path: Path) -> None:
    reader = make_shards(tmp_path, 0, 1200, shard_rows=100)
    stream = stream_of([reader], batch_size=250, pool_rows=2 * BLOCK_ROWS)
    assert max(len(pool.places) for pool, _ in zip(stream._plan(0), range(6), strict=False)) * 100 < 250
    rows = flat(take(stream, 4))
    assert len(set(rows)) == 1000
    assert take(stream, 3, start=1) == take(stream, 4)[1:]


def test_order_depends_on_the_seed_and_on_the_epoch(readers) -> None:
    stream = ActivationStream(readers, batch_size=97, seed=0)
    first, second = take(stream, 1), take(stream, 1, start=stream.batches_per_epoch)
    other = take(ActivationStream(readers, batch_size=97, seed=1), 1)
    assert first == take(stream, 1)
    assert first != second
    assert first != other


def test_rows_are_mixed_across_sequences_and_corpora_in_proportion_to_size(readers) -> None:
    stream = ActivationStream(readers, batch_size=300, seed=0)
    for batch in take(stream, stream.batches_per_epoch):
        of_elves = np.mean(np.array(batch) >= SIZES["gnomes"])
        assert abs(of_elves - SIZES["elves"] / ROWS) < 0.12  # four standard deviations
        assert np.mean(np.abs(np.diff(batch)) == 1) < 0.02  # neighbours are not left side by side


def test_rows_come_in_the_dtype_and_with_the_bits_of_the_shards(tmp_path: Path) -> None:
    reader = make_shards(tmp_path, 0, 700, storage_dtype="bf16", d_in=5)
    stored = torch.cat([block.acts for block in reader.iter_blocks()])
    batch = next(ActivationStream([reader], batch_size=700, seed=0).batches())
    assert batch.dtype == stored.dtype == torch.bfloat16
    assert torch.equal(batch.sort(0).values, stored.sort(0).values)


def test_no_more_than_two_pools_are_ever_read_ahead(readers, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = []
    load = ActivationStream._load
    monkeypatch.setattr(
        ActivationStream, "_load", lambda self, *given: loads.append(len(given[0].places)) or load(self, *given)
    )
    stream = stream_of(readers, batch_size=100, pool_rows=2 * BLOCK_ROWS)
    batches = stream.batches()
    for step in range(3 * stream.batches_per_epoch):
        next(batches)
        consumed = (step + 1) * 100
        time.sleep(0.002)  # time enough to read too far
        assert len(loads) <= 2 + consumed // 300 + consumed // ROWS
    assert max(loads) <= 2
    batches.close()


def reading_threads() -> int:
    return sum(thread.name.startswith("activation-stream") for thread in threading.enumerate())


def test_the_reading_thread_ends_with_the_iterator(readers) -> None:
    before = reading_threads()
    batches = ActivationStream(readers, batch_size=10, seed=0).batches()
    assert reading_threads() == before  # nothing is read until it is asked for
    next(batches)
    assert reading_threads() > before
    batches.close()
    assert reading_threads() == before
    dropped = ActivationStream(readers, batch_size=10, seed=0).batches()
    next(dropped)
    del dropped
    assert reading_threads() == before


def test_reading_past_the_page_cache_gives_the_same_batches(readers) -> None:
    through, past = (
        stream_of(readers, batch_size=97, seed=3, pool_rows=700, cached=cached) for cached in (True, False)
    )
    assert take(through, 40) == take(past, 40)


def test_the_stream_counts_what_it_read_and_how_long_it_kept_its_consumer_waiting(readers) -> None:
    stream = ActivationStream(readers, batch_size=100, seed=0)
    assert (stream.bytes_read, stream.seconds_waited) == (0, 0.0)
    batches = stream.batches()
    next(batches)
    batches.close()
    row = stream.d_in * stream.dtype.itemsize
    assert ROWS * row <= stream.bytes_read <= 2 * ROWS * row  # all is one pool, and the next may have been begun
    assert stream.seconds_waited > 0


def test_a_batch_that_is_kept_keeps_its_numbers_and_others_leave_their_room(readers) -> None:
    stream = stream_of(readers, batch_size=50, pool_rows=2 * BLOCK_ROWS)
    batches = stream.batches()
    kept = [next(batches) for _ in range(60)]
    copies = take(stream, 60)
    assert [batch[:, 0].long().tolist() for batch in kept] == copies
    batches.close()
    rooms = stream_module._Rooms(10, 4)
    first = rooms.take(10)
    place, held = first.ctypes.data, first[3:]
    assert rooms.take(10).ctypes.data != place
    del first, held
    assert rooms.take(10).ctypes.data == place


def test_damage_is_raised_where_the_batches_are_used(tmp_path: Path) -> None:
    reader = make_shards(tmp_path, 0, 2000)
    path = tmp_path / "shard-00002.safetensors"
    content = bytearray(path.read_bytes())
    content[-6000] ^= 4
    path.write_bytes(content)
    stream = stream_of([reader], batch_size=100, pool_rows=2 * BLOCK_ROWS)
    before = reading_threads()
    with pytest.raises(ShardError, match=r"shard-00002\.safetensors is damaged"):
        for _ in stream.batches():
            pass
    assert reading_threads() == before


def test_too_few_rows_for_one_batch_are_refused_with_both_numbers(readers) -> None:
    assert ActivationStream(readers, batch_size=ROWS, seed=0).batches_per_epoch == 1
    with pytest.raises(DataError, match=rf"hold {ROWS} tokens, less than one batch of {ROWS + 1}; lower --batch_size"):
        ActivationStream(readers, batch_size=ROWS + 1, seed=0)
    with pytest.raises(DataError, match="no shards"):
        ActivationStream([], batch_size=1, seed=0)


@pytest.mark.parametrize(
    ("field", "value"),
    [("model", "huge"), ("hook_point", "blocks.2.hook_resid_post"), ("d_in", 4), ("storage_dtype", "fp16")],
)
def test_corpora_of_different_kinds_are_not_mixed(readers, tmp_path: Path, field: str, value) -> None:
    other = make_shards(tmp_path, 0, 300, **{field: value})
    with pytest.raises(ShardError, match=f"{field} expected .*, found {value!r}"):
        ActivationStream([readers[0], other], batch_size=10, seed=0)


@pytest.mark.parametrize(("threads", "cores"), [(1, 1), (3, 2), (8, 64)])
def test_the_order_is_the_same_with_any_number_of_threads_and_cores(
    readers, monkeypatch: pytest.MonkeyPatch, threads: int, cores: int
) -> None:
    given = {"batch_size": 97, "seed": 3, "shuffle_gb": 0.000_15}
    stream = ActivationStream(readers, **given)
    assert stream._pools > 2
    expected = take(stream, 2 * stream.batches_per_epoch)
    monkeypatch.setattr(stream_module, "_THREADS", threads)
    monkeypatch.setattr(stream_module.os, "cpu_count", lambda: cores)
    assert take(ActivationStream(readers, **given), len(expected)) == expected


def test_too_little_memory_is_refused_with_the_least_that_will_do(readers) -> None:
    given = {"batch_size": 1300, "seed": 0}
    said = r"--shuffle_gb 1e-05 .* batches of 1300 tokens, 3 wide in float32"
    with pytest.raises(ConfigError, match=said) as refused:
        ActivationStream(readers, **given, shuffle_gb=1e-5)
    least = float(str(refused.value).split("give ")[1].split(" or more")[0])
    stream = ActivationStream(readers, **given, shuffle_gb=least)
    assert stream._pool_rows(least) >= 2 * 1300
    with pytest.raises(ConfigError):
        ActivationStream(readers, **given, shuffle_gb=least - 0.001)


def test_a_pool_is_never_larger_than_an_epoch(readers) -> None:
    stream = ActivationStream(readers, batch_size=97, seed=0, shuffle_gb=1.0)
    assert stream._room_rows == ROWS
    assert stream.held_bytes < 1e6


PEAK = """
import sys
from contextlib import closing
from itertools import islice
from pathlib import Path
from sae_forge.data.shards import ShardReader
from sae_forge.data.stream import ActivationStream

def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

reader = ShardReader(Path(sys.argv[1]))
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = status("VmRSS")
given, cached = float(sys.argv[2]), sys.argv[3] == "True"
stream = ActivationStream([reader], batch_size=1024, seed=0, shuffle_gb=given, cached=cached)
with closing(stream.batches()) as batches:
    for _ in islice(batches, stream.batches_per_epoch + 10):
        pass
print(status("VmHWM") - before, stream.held_bytes)
"""


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A third of a GB of rows."""
    folder = tmp_path_factory.mktemp("wide")
    fingerprint = Fingerprint(
        model="tiny", weights="0", tokenizer="1", hook_point="blocks.1.hook_resid_post", d_in=1024,
        storage_dtype="bf16", ctx_len=32, bos="row", batch_size=128, max_tokens=None, corpus="c", source="c",
        role="retain",
    )  # fmt: skip
    acts, places = torch.randn(4096, 1024), torch.arange(4096)
    with ShardWriter(folder, fingerprint, shard_rows=65_536) as writer:
        for index in range(40):
            writer.write_batch(index, acts, places, places, places)
        writer.finish()
    return folder


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the peak of memory from /proc")
@pytest.mark.parametrize(("gigabytes", "cached"), [(0.1, True), (0.15, False)])
def test_memory_stays_within_a_tenth_of_the_flag(wide: Path, gigabytes: float, cached: bool) -> None:
    command = [sys.executable, "-c", PEAK, str(wide), str(gigabytes), str(cached)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    peak, held = map(int, ended.stdout.split())
    assert held <= gigabytes * 1e9
    assert 0.9 < peak / (gigabytes * 1e9) < 1.1
