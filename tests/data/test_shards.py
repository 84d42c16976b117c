"""Shards: what is read is what was written, a killed run ends in the same bytes, and no damage goes unnoticed."""

import errno
import hashlib
import json
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, wait
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from sae_forge.data import writer as writer_module
from sae_forge.data.finite import largest
from sae_forge.data.manifest import MAX_SHARDS, Fingerprint, Manifest, ShardInfo, shard_name
from sae_forge.data.rounding import STORED
from sae_forge.data.shards import BLOCK_ROWS, ShardReader, ShardWriter, buffer_bytes, complete, find_shards
from sae_forge.errors import ConfigError, DataError, NumericalError, ResourceError, ShardError
from sae_forge.store import files
from sae_forge.store.tensors import DTYPES

D_IN, SHARD_ROWS, BATCHES = 37, 600, 15
POINT = "blocks.1.hook_resid_post"


def make_fingerprint(**changes) -> Fingerprint:
    settings = {"model": "tiny", "weights": "0" * 64, "tokenizer": "1" * 64, "hook_point": POINT, "d_in": D_IN}
    settings |= {"storage_dtype": "bf16", "ctx_len": 32, "bos": "row", "batch_size": 4, "max_tokens": None}
    settings |= {"corpus": "gnomes", "source": "world:corpora/gnomes", "role": "retain"}
    return Fingerprint(**{**settings, **changes})


def make_batch(index: int) -> dict:
    """A forward batch as a function of its index, with as many real tokens as it happens to have."""
    noise = np.random.default_rng(index)
    rows = int(noise.integers(90, 128))
    return {
        "acts": torch.from_numpy(noise.standard_normal((rows, D_IN), dtype=np.float32)),
        "seq_ids": torch.arange(rows) // 32 + 4 * index,
        "positions": torch.arange(rows) % 32,
        "token_ids": torch.from_numpy(noise.integers(0, 320, rows)),
    }


def write_all(folder: Path, fingerprint: Fingerprint | None = None, *, stop: int = BATCHES, **settings) -> Manifest:
    """Collect made-up batches into a folder, going on from whatever is there."""
    with ShardWriter(folder, fingerprint or make_fingerprint(), shard_rows=SHARD_ROWS, **settings) as writer:
        for index in range(writer.next_batch, stop):
            batch = make_batch(index)
            writer.write_batch(index, **batch, special=128 - len(batch["acts"]))
        return writer.finish()


def tree(folder: Path) -> dict[str, str]:
    """Every file of a folder and a hash of its bytes."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def read_everything(folder: Path) -> dict[str, torch.Tensor]:
    blocks = list(ShardReader(folder).iter_blocks())
    return {name: torch.cat([getattr(block, name) for block in blocks]) for name in blocks[0]._fields[:-1]}


def abandon(folder: Path, after: int, fingerprint: Fingerprint | None = None) -> None:
    """Leave a folder as a run leaves it that was interrupted after so many batches."""
    writing = ShardWriter(folder, fingerprint or make_fingerprint(), shard_rows=SHARD_ROWS)
    with pytest.raises(KeyboardInterrupt), writing as writer:
        for index in range(after):
            batch = make_batch(index)
            writer.write_batch(index, **batch, special=128 - len(batch["acts"]))
        raise KeyboardInterrupt


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete folder, not to be changed."""
    folder = tmp_path_factory.mktemp("whole")
    write_all(folder)
    return folder


# ---- more of the same text ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
@pytest.mark.parametrize("batches", [2, 5])
def test_a_folder_grows_to_what_more_tokens_at_once_would_have_made(tmp_path: Path, batches: int, dtype: str) -> None:
    """The last batch of the shorter text was cut off; nothing of that stays. Stopped on the way, it goes on."""
    few, more = (make_fingerprint(max_tokens=most, storage_dtype=dtype) for most in (100 * batches, 10_000))
    with ShardWriter(tmp_path / "a", few, shard_rows=SHARD_ROWS) as writer:
        for index in range(batches):
            batch = make_batch(index)
            cut = {name: rows[: 40 if index == batches - 1 else None] for name, rows in batch.items()}
            writer.write_batch(index, **cut, special=128 - len(batch["acts"]))
        writer.finish()
    with pytest.raises(KeyboardInterrupt), ShardWriter(tmp_path / "a", more, shard_rows=SHARD_ROWS) as writer:
        assert writer.manifest is None and writer.next_batch < batches
        raise KeyboardInterrupt
    write_all(tmp_path / "a", more)
    write_all(tmp_path / "b", more)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    with pytest.raises(ShardError, match=f"max_tokens expected {100 * batches}, found 10000"):
        write_all(tmp_path / "a", few)


def test_a_damaged_folder_that_was_to_grow_stays_as_it_was(tmp_path: Path) -> None:
    write_all(tmp_path, make_fingerprint(max_tokens=500))
    flip(tmp_path / "shard-00001.safetensors", 1_000)
    before = tree(tmp_path)
    with pytest.raises(ShardError, match="shard-00001"):
        write_all(tmp_path, make_fingerprint(max_tokens=10_000))
    assert tree(tmp_path) == before


# ---- what is written is read --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_come_back_in_order_and_to_the_bit_in_the_dtype_asked_for(tmp_path: Path, dtype: str) -> None:
    manifest = write_all(tmp_path, make_fingerprint(storage_dtype=dtype))
    written = [make_batch(index) for index in range(BATCHES)]
    found = read_everything(tmp_path)
    assert found["acts"].dtype == DTYPES[dtype]
    assert torch.equal(found["acts"], torch.cat([batch["acts"] for batch in written]).to(DTYPES[dtype]))
    for name, kind in {"seq_ids": torch.int64, "positions": torch.int32, "token_ids": torch.int32}.items():
        assert found[name].dtype == kind
        assert torch.equal(found[name].long(), torch.cat([batch[name] for batch in written]))
    assert manifest.rows == len(found["acts"])
    assert manifest.dropped == {"nan": 0, "infinite": 0, "special": 128 * BATCHES - manifest.rows}
    assert manifest.rounding is manifest.rounding_fvu is None


def test_a_shard_holds_whole_batches_and_is_cut_as_soon_as_it_is_full(whole: Path) -> None:
    counts = [len(make_batch(index)["acts"]) for index in range(BATCHES)]
    shards = ShardReader(whole).manifest.shards
    assert len(shards) == 3
    assert sum(shard.batches for shard in shards) == BATCHES
    for shard in shards:
        inside = counts[shard.first_batch : shard.first_batch + shard.batches]
        assert shard.rows == sum(inside)
        assert shard.first_row == sum(counts[: shard.first_batch])
        assert sum(inside[:-1]) < SHARD_ROWS
    assert all(shard.rows >= SHARD_ROWS for shard in shards[:-1])


def test_blocks_cover_the_rows_once_and_can_be_read_alone(whole: Path) -> None:
    reader = ShardReader(whole)
    first_row = 0
    for number, block in enumerate(reader.iter_blocks()):
        assert block.first_row == first_row
        assert 0 < len(block.acts) == reader.block_rows(number) <= BLOCK_ROWS
        assert torch.equal(reader.read_acts(number), block.acts)
        first_row += len(block.acts)
    assert number + 1 == reader.block_count
    assert first_row == reader.rows
    for number in (-1, reader.block_count):
        with pytest.raises(IndexError):
            reader.read_block(number)


def test_any_safetensors_reader_can_open_a_shard(whole: Path) -> None:
    found = load_file(whole / "shard-00000.safetensors")
    assert {name: (tensor.dtype, tensor.ndim) for name, tensor in found.items()} == {
        "acts": (torch.bfloat16, 2),
        "seq_ids": (torch.int64, 1),
        "positions": (torch.int32, 1),
        "token_ids": (torch.int32, 1),
    }


def test_two_runs_are_byte_identical_and_say_nothing_of_where_they_ran(whole: Path, tmp_path: Path) -> None:
    write_all(tmp_path)
    assert tree(tmp_path) == tree(whole)
    for path in tmp_path.iterdir():
        assert str(tmp_path).encode() not in path.read_bytes()
        assert os.uname().nodename.encode() not in path.read_bytes()


def test_a_finished_folder_is_left_alone_and_returns_its_manifest(whole: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in whole.iterdir()}
    manifest = write_all(whole)
    assert manifest == ShardReader(whole).manifest
    assert {path.name: path.stat().st_mtime_ns for path in whole.iterdir()} == before


def test_complete_folders_of_a_run_are_found_by_hook_point(tmp_path: Path) -> None:
    other = "blocks.2.hook_resid_post"
    for name in (f"retain-gnomes/{POINT}", f"forget-elves/{POINT}", f"forget-elves/{other}"):
        write_all(tmp_path / "shards" / name, make_fingerprint(hook_point=name.split("/")[1]), stop=2)
    abandon(tmp_path / "shards" / "retain-ogres" / POINT, 12)
    assert [path.parent.name for path in find_shards(tmp_path, POINT)] == ["forget-elves", "retain-gnomes"]
    assert len(find_shards(tmp_path)) == 3
    assert find_shards(tmp_path / "nowhere") == []


def test_the_writer_needs_the_memory_it_announces(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, make_fingerprint(), shard_rows=SHARD_ROWS) as writer:
        for index in range(BATCHES):
            writer.write_batch(index, **make_batch(index))
        buffers = [*writer._buffers.values(), *writer._others.values()]
    assert sum(buffer.nbytes for buffer in buffers) == buffer_bytes(make_fingerprint(), SHARD_ROWS)


# ---- stopping and going on ----------------------------------------------------------------------


@pytest.mark.parametrize("after", (0, 1, 5, 6, 7, 14, 15))
def test_an_interrupted_run_publishes_no_manifest_and_resumes_to_the_same_bytes(
    whole: Path, tmp_path: Path, after: int
) -> None:
    abandon(tmp_path, after)
    assert not complete(tmp_path)
    assert not list(tmp_path.glob(".*.part"))
    with ShardWriter(tmp_path, make_fingerprint(), shard_rows=SHARD_ROWS) as writer:
        assert after - SHARD_ROWS // 90 - 1 <= writer.next_batch <= after
    write_all(tmp_path)
    assert tree(tmp_path) == tree(whole)


def test_shards_written_behind_are_those_written_at_once(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class AtOnce(Executor):
        def submit(self, fn, /, *args, **kwargs):
            done = Future()
            done.set_result(fn(*args, **kwargs))
            return done

    monkeypatch.setattr(writer_module, "ThreadPoolExecutor", lambda *args, **kwargs: AtOnce())
    write_all(tmp_path)
    assert tree(tmp_path) == tree(whole)


def test_an_error_behind_is_raised_by_the_next_calls_and_names_the_file(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = writer_module.publish_tensors

    def fail(path: Path, tensors) -> None:
        if path.name == "shard-00001.safetensors":
            with files.publish(path):
                raise OSError(errno.ENOSPC, "No space left on device")
        publish(path, tensors)

    with monkeypatch.context() as patch:
        patch.setattr(writer_module, "publish_tensors", fail)
        with (
            pytest.raises(ResourceError, match=r"shard-00001\.safetensors: No space left"),
            ShardWriter(tmp_path, make_fingerprint(), shard_rows=SHARD_ROWS) as writer,
        ):
            while len(writer._shards) < 2:
                writer.write_batch(writer.next_batch, **make_batch(writer.next_batch))
            wait([writer._behind])
            for _ in range(2):  # a caller that goes on regardless leaves no gap
                with pytest.raises(ResourceError):
                    writer.write_batch(writer.next_batch, **make_batch(writer.next_batch))
            writer.finish()
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == ["shard-00000.safetensors"]
    assert not any(thread.name.startswith("shard-writer") for thread in threading.enumerate())
    with ShardWriter(tmp_path, make_fingerprint(), shard_rows=SHARD_ROWS) as writer:
        for index in range(writer.next_batch, BATCHES):
            batch = make_batch(index)
            writer.write_batch(index, **batch, special=128 - len(batch["acts"]))
        writer.finish()
    manifests = [json.loads((folder / "manifest.json").read_bytes()) for folder in (tmp_path, whole)]
    assert [shard["file"] for shard in manifests[0]["shards"]] == [shard["file"] for shard in manifests[1]["shards"]]


def start_collecting(folder: Path, *, die_at: int | None = None) -> int:
    """A child process that has begun to collect, and kills itself at its n-th fsync or rename; returns its id."""
    begun, begin = os.pipe()  # the fork of a process that holds much takes longer than what is collected here
    child = os.fork()
    if child:
        os.close(begin)
        os.read(begun, 1)
        os.close(begun)
        return child
    signal.alarm(60)
    calls = 0

    def deadly(do: Callable) -> Callable:
        def maybe(*args):
            nonlocal calls
            calls += 1
            if calls == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return do(*args)

        return maybe

    files.os.fsync, files.os.replace = deadly(os.fsync), deadly(os.replace)
    try:
        os.write(begin, b".")
        write_all(folder)
    finally:
        os._exit(0)


def ending(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.slow
def test_killed_at_any_fsync_or_rename_it_resumes_to_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    published = len(tree(whole)) - 1  # all but the lock
    for call in range(1, 3 * published + 2):  # for each a fsync of the file, a rename and a fsync of the folder
        folder = tmp_path / str(call)
        folder.mkdir()
        ended = ending(start_collecting(folder, die_at=call))
        assert ended == (-signal.SIGKILL if call <= 3 * published else 0)
        write_all(folder)
        assert tree(folder) == tree(whole), f"killed at call {call}"


@pytest.mark.slow
def test_killed_at_random_moments_again_and_again_it_ends_in_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    child, started = start_collecting(tmp_path / "timed"), time.monotonic()
    assert ending(child) == 0
    takes = time.monotonic() - started
    moments = random.Random(0)
    for run in range(3):
        folder, killed = tmp_path / str(run), 0
        while not killed:  # a run that came to its end unharmed shows nothing: again, with earlier kills
            shutil.rmtree(folder, ignore_errors=True)
            while not complete(folder):
                child = start_collecting(folder)
                time.sleep(moments.uniform(0, takes / 2))
                os.kill(child, signal.SIGKILL)
                killed += ending(child) == -signal.SIGKILL
            takes = takes if killed else takes / 2
        write_all(folder)
        assert tree(folder) == tree(whole)


def test_leftovers_of_a_killed_run_are_removed_and_nothing_else_is(whole: Path, tmp_path: Path) -> None:
    abandon(tmp_path, 14)
    (tmp_path / ".shard-00002.safetensors.part").write_bytes(b"half")
    (tmp_path / "shard-00003.safetensors").write_bytes(b"no sidecar")
    (tmp_path / "shard-00005.json").write_bytes(b"no shard")
    (tmp_path / "config.json").write_text("{}")
    write_all(tmp_path)
    assert tree(tmp_path).keys() == tree(whole).keys() | {"config.json"}


def test_the_last_shard_is_collected_again_when_its_sidecar_was_lost(whole: Path, tmp_path: Path) -> None:
    abandon(tmp_path, BATCHES)
    (tmp_path / "shard-00001.json").unlink()
    with ShardWriter(tmp_path, make_fingerprint(), shard_rows=SHARD_ROWS) as writer:
        assert writer.next_batch == ShardReader(whole).manifest.shards[1].first_batch
    write_all(tmp_path)
    assert tree(tmp_path) == tree(whole)


def test_a_damaged_shard_stops_the_resuming_instead_of_being_built_upon(tmp_path: Path) -> None:
    abandon(tmp_path, 14)
    flip(tmp_path / "shard-00001.safetensors", 20_000)
    with pytest.raises(ShardError, match=r"shard-00001\.safetensors is damaged.*--fresh"):
        write_all(tmp_path)


def test_fresh_starts_over_whatever_was_there(whole: Path, tmp_path: Path) -> None:
    write_all(tmp_path, make_fingerprint(ctx_len=64))
    flip(tmp_path / "manifest.json", 100)
    write_all(tmp_path, fresh=True)
    assert tree(tmp_path) == tree(whole)


def test_two_writers_cannot_share_a_folder(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, make_fingerprint(), shard_rows=SHARD_ROWS):
        started = time.monotonic()
        with pytest.raises(ConfigError, match="another process"):
            write_all(tmp_path)
        assert time.monotonic() - started < 1
    write_all(tmp_path)


def test_a_disk_too_small_is_refused_before_the_shard_and_the_run_goes_on_later(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        free = iter([10**9, 1000])
        usage = type("Usage", (), {"free": property(lambda self: next(free))})
        patch.setattr(files.shutil, "disk_usage", lambda path: usage())
        with pytest.raises(ResourceError, match=r"disk has 0\.00 GB free") as caught:
            write_all(tmp_path)
    assert caught.value.exit_code == 4
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    write_all(tmp_path)
    assert tree(tmp_path) == tree(whole)


def test_batches_are_taken_in_order_and_of_the_right_width(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, make_fingerprint(), shard_rows=SHARD_ROWS) as writer:
        writer.write_batch(0, **make_batch(0))
        for wrong in (0, 2):
            with pytest.raises(ShardError, match="takes batch 1 next"):
                writer.write_batch(wrong, **make_batch(wrong))
        with pytest.raises(ShardError, match="37 wide"):
            writer.write_batch(1, **make_batch(1) | {"acts": make_batch(1)["acts"][:, 1:]})
        assert writer.rows == len(make_batch(0)["acts"])


def test_a_corpus_without_a_real_token_is_refused(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, make_fingerprint(), shard_rows=SHARD_ROWS) as writer:
        writer.write_batch(0, **{name: rows[:0] for name, rows in make_batch(0).items()}, special=128)
        with pytest.raises(DataError, match="no real tokens"):
            writer.finish()
    assert not complete(tmp_path)


# ---- other settings -----------------------------------------------------------------------------

OTHER = {
    "d_in": 38, "storage_dtype": "fp16", "ctx_len": 33, "batch_size": 5, "max_tokens": 9, "first_batch": 3,
    "end_batch": 40, "format": 1, "normalize_text": True,
}  # fmt: skip


@pytest.mark.parametrize("field", [field.name for field in fields(Fingerprint)])
@pytest.mark.parametrize("finished", [True, False])
def test_a_folder_of_other_settings_is_refused_by_name_and_value(tmp_path: Path, field: str, finished: bool) -> None:
    if finished:
        write_all(tmp_path, stop=8)
    else:
        abandon(tmp_path, 8)
    mine = make_fingerprint()
    other = replace(mine, **{field: OTHER.get(field, "other")})
    told = f"{field} expected {getattr(other, field)!r}, found {getattr(mine, field)!r}"
    if field == "source":  # the same text by name, of another content
        told = f"it has changed since (then {mine.source}, now {other.source})"
    before = tree(tmp_path)
    with pytest.raises(ShardError) as caught:
        write_all(tmp_path, other)
    assert told in str(caught.value)
    assert "--fresh" in str(caught.value)
    assert tree(tmp_path) == before
    assert other.differences(mine) == [(field, getattr(other, field), getattr(mine, field))]


def test_a_reader_refuses_shards_of_another_kind_than_expected(whole: Path) -> None:
    ShardReader(whole, expect={"d_in": D_IN, "hook_point": POINT})
    with pytest.raises(ShardError, match=r"d_in expected 64, found 37; .*|.*; d_in expected 64, found 37") as caught:
        ShardReader(whole, expect={"d_in": 64, "model": "huge"})
    assert "model expected 'huge', found 'tiny'" in str(caught.value)


def test_a_folder_that_is_not_complete_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="holds no shards; make them with: sae-forge collect"):
        ShardReader(tmp_path / "nowhere")
    abandon(tmp_path, 14)
    with pytest.raises(ShardError, match=r"unfinished \(2 shards.*run the same collect command again"):
        ShardReader(tmp_path)


def test_settings_that_cannot_be_are_refused() -> None:
    for changes in ({"d_in": 0}, {"ctx_len": 0}, {"storage_dtype": "int4"}):
        with pytest.raises(ConfigError, match=next(iter(changes))):
            make_fingerprint(**changes)


# ---- rows that are not finite -------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_bit_test_is_right_for_every_16_bit_number(dtype: torch.dtype) -> None:
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    found = largest(every[:, None])
    assert found.dtype == dtype
    assert torch.equal(found.isnan(), every.isnan())
    assert torch.equal(found[~found.isnan()], every.abs()[~every.isnan()])


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 200), st.integers(1, 5))
def test_the_bit_test_agrees_with_torch_on_random_bits(seed: int, rows: int, d_in: int) -> None:
    bits = np.random.default_rng(seed).integers(0, 2**32, (rows, d_in), np.uint32)
    bits |= np.random.default_rng(seed + 1).choice([0, 0x7F80_0000], (rows, d_in), p=[0.8, 0.2]).astype(np.uint32)
    acts = torch.from_numpy(bits.view(np.float32))
    found, nan = largest(acts), acts.isnan().any(1)  # a row with both is NaN
    assert torch.equal(found.isnan(), nan)
    assert torch.equal(found[~nan], acts[~nan].abs().amax(1))


def plant(rows: int, bad: dict[int, float]) -> torch.Tensor:
    acts = torch.randn(rows, 5, generator=torch.Generator().manual_seed(0))
    for row, value in bad.items():
        acts[row, row % 5] = value
    return acts


def write_planted(folder: Path, acts: torch.Tensor, dtype: str, shard_rows: int = 1000) -> Manifest:
    fingerprint = make_fingerprint(d_in=5, storage_dtype=dtype, max_tokens=len(acts))
    with ShardWriter(folder, fingerprint, shard_rows=shard_rows) as writer:
        for index, part in enumerate(acts.split(100)):
            ids = torch.arange(len(part)) + 100 * index
            writer.write_batch(index, part, ids, ids, ids)
        return writer.finish()


@pytest.mark.parametrize("dtype", STORED)
def test_rows_that_are_not_finite_are_dropped_and_counted_by_reason(tmp_path: Path, dtype: str) -> None:
    bad = {7: torch.nan, 1208: torch.inf, 2599: -torch.inf, 4001: torch.nan} | ({99: 7e4} if dtype == "fp16" else {})
    acts = plant(5030, bad)
    acts[4001, 4001 % 5 - 1] = torch.inf  # a row of both counts once
    manifest = write_planted(tmp_path, acts, dtype)
    kept = torch.tensor([row for row in range(5030) if row not in bad])
    found = read_everything(tmp_path)
    assert manifest.dropped == {"nan": 2, "infinite": len(bad) - 2, "special": 0}
    if dtype == "int8":
        assert ((found["acts"] - acts[kept]).abs() <= acts[kept].abs().amax(1, keepdim=True) / 253).all()
    else:
        assert torch.equal(found["acts"], acts[kept].to(DTYPES[dtype]))
    for name in ("seq_ids", "positions", "token_ids"):
        assert torch.equal(found[name].long(), kept)


def test_more_than_one_in_a_thousand_stops_the_run_without_a_manifest(tmp_path: Path) -> None:
    acts = plant(5000, dict.fromkeys(range(0, 5000, 900), torch.nan))
    with pytest.raises(NumericalError, match=r"6 of 4600 activations at blocks\.1.*0\.1%") as caught:
        write_planted(tmp_path, acts, "bf16", shard_rows=10_000)
    assert caught.value.exit_code == 3
    assert not complete(tmp_path)
    assert not list(tmp_path.glob("shard-*"))


def test_a_model_that_gives_only_nan_is_stopped_at_its_first_batch(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, make_fingerprint(), shard_rows=SHARD_ROWS) as writer, pytest.raises(NumericalError):
        writer.write_batch(0, **make_batch(0) | {"acts": make_batch(0)["acts"] * torch.nan})


# ---- damage -------------------------------------------------------------------------------------


def flip(path: Path, byte: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[byte] ^= 1 << bit
    path.write_bytes(content)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A complete folder of two shards of some kilobytes, to be damaged."""
    folder = tmp_path / "small"
    with ShardWriter(folder, make_fingerprint(d_in=3), shard_rows=300) as writer:
        for index in range(6):
            batch = make_batch(index)
            writer.write_batch(index, **batch | {"acts": batch["acts"][:, :3]})
        assert len(writer.finish().shards) == 2
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["shard-00000.safetensors", "shard-00001.safetensors", "shard-00000.json", "manifest.json"]
)
def test_any_flipped_bit_is_noticed_on_reading_and_names_the_file(small: Path, name: str) -> None:
    path = small / name
    whole = path.read_bytes()
    draw = random.Random(name)
    # Headers and JSON are short and full of meaning: they get as many flips as the bulk.
    places = [draw.randrange(len(whole)) for _ in range(150)] + [draw.randrange(400) for _ in range(100)]
    for byte in places:
        flip(path, byte, draw.randrange(8))
        with pytest.raises(ShardError) as caught:
            read_everything(small)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)
        path.write_bytes(whole)
    read_everything(small)


def test_a_damaged_block_does_not_keep_the_others_from_being_read(small: Path) -> None:
    path = small / "shard-00000.safetensors"
    reader = ShardReader(small)
    good = [block.acts for block in reader.iter_blocks()]
    flip(path, path.stat().st_size - 1)  # the narrowest dtype comes last in a safetensors file: acts of the last row
    with pytest.raises(ShardError, match="rows 256 to"):
        reader.read_block(1)
    for number in (0, 2, 3):
        assert torch.equal(reader.read_block(number).acts, good[number])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shard-00000.safetensors", "shard-00001.json", "manifest.json"])
def test_a_file_of_any_other_length_is_refused(small: Path, name: str) -> None:
    path = small / name
    whole = path.read_bytes()
    shorter = {*range(0, len(whole) - 2, len(whole) // 150), 1, 7, 8, len(whole) - 2}  # JSON may lack its last newline
    for content in [whole[:n] for n in shorter] + [whole + b"\0" * n for n in (1, 8, 4096)]:
        path.write_bytes(content)
        with pytest.raises(ShardError, match=name):
            ShardReader(small)


def test_a_file_cut_short_after_it_was_opened_is_an_error_and_not_a_crash(small: Path) -> None:
    reader = ShardReader(small)
    os.truncate(small / "shard-00001.safetensors", 1000)
    reader.read_block(0)
    with pytest.raises(ShardError, match=r"shard-00001\.safetensors ends early"):
        reader.read_block(reader.block_count - 1)
    (small / "shard-00001.safetensors").unlink()
    with pytest.raises(ShardError, match=r"shard-00001\.safetensors cannot be opened"):
        reader.read_block(reader.block_count - 1)


def swap(first: Path, second: Path) -> None:
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two)
    second.write_bytes(one)


def test_missing_swapped_and_foreign_shards_are_refused(small: Path, tmp_path: Path, whole: Path) -> None:
    first, second = small / "shard-00000.safetensors", small / "shard-00001.safetensors"

    def refused(match: str) -> None:
        with pytest.raises(ShardError, match=match):
            read_everything(small)

    for path in (first, first.with_suffix(".json")):
        path.rename(tmp_path / "away")
        refused(f"{path.name} is missing")
        (tmp_path / "away").rename(path)
    swap(first, second)
    refused("shard-0000")
    swap(first.with_suffix(".json"), second.with_suffix(".json"))
    refused(r"shard-00000\.json")
    swap(first, second)
    refused(r"shard-00000\.json")
    swap(first.with_suffix(".json"), second.with_suffix(".json"))
    read_everything(small)
    for name in ("shard-00000.safetensors", "shard-00000.json"):  # whole and in harmony, but not of this folder
        (small / name).write_bytes((whole / name).read_bytes())
    refused(r"shard-00000\.json is not the one the manifest describes")


def test_shards_of_equal_shape_in_each_other_s_place_are_noticed(tmp_path: Path) -> None:
    ids = torch.arange(100)
    with ShardWriter(tmp_path, make_fingerprint(d_in=5), shard_rows=100) as writer:
        for index in range(2):
            writer.write_batch(index, plant(100, {0: float(index)}), ids, ids, ids)
        writer.finish()
    swap(tmp_path / "shard-00000.safetensors", tmp_path / "shard-00001.safetensors")
    reader = ShardReader(tmp_path)
    with pytest.raises(ShardError, match=r"shard-00000\.safetensors is damaged in rows 0 to 99"):
        reader.read_block(0)


def test_links_and_pipes_in_place_of_a_shard_are_refused(small: Path, tmp_path: Path) -> None:
    shard = small / "shard-00000.safetensors"
    shard.rename(tmp_path / "real")
    shard.symlink_to(tmp_path / "real")
    with pytest.raises(ShardError, match="not a plain file"):
        ShardReader(small)
    shard.unlink()
    os.mkfifo(shard)
    with pytest.raises(ShardError, match="not a plain file"):
        ShardReader(small)


def test_a_stray_shard_is_ignored_with_a_warning(small: Path) -> None:
    rows = ShardReader(small).rows
    (small / "shard-00007.safetensors").write_bytes((small / "shard-00000.safetensors").read_bytes())
    with pytest.warns(UserWarning, match=r"shard-00007\.safetensors.*ignored"):
        assert ShardReader(small).rows == rows


anything = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just([]) | st.just({})


def forge(value, draw: Callable):
    """One value somewhere inside replaced by another, or one key renamed."""
    if isinstance(value, dict) and value:
        key = draw(st.sampled_from(sorted(value)))
        action = draw(st.integers(0, 9))
        if action == 0:
            return {name: child for name, child in value.items() if name != key}
        if action == 1:
            return {**value, draw(st.text(max_size=5)): value[key]}
        return {**value, key: forge(value[key], draw)}
    if isinstance(value, list) and value and draw(st.booleans()):
        place = draw(st.integers(0, len(value) - 1))
        return [*value[:place], forge(value[place], draw), *value[place + 1 :]]
    return draw(anything)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["manifest.json", "shard-00000.json"])
def test_a_forged_record_with_a_valid_seal_is_refused_like_any_other(small: Path, name: str) -> None:
    body = json.loads((small / name).read_bytes())

    @settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.data())
    def attempt(data: st.DataObject) -> None:
        forged = forge(body, data.draw)
        try:
            files.publish_json(small / name, forged)
        except (TypeError, ValueError):  # no JSON object at all
            (small / name).write_text(json.dumps(forged))
        if json.dumps(forged, sort_keys=True) == json.dumps(body, sort_keys=True):
            read_everything(small)
        else:
            with pytest.raises(ShardError, match=name.split(".")[0]):
                read_everything(small)

    attempt()


def test_a_manifest_is_the_sum_of_its_shards(whole: Path) -> None:
    manifest = ShardReader(whole).manifest
    stored = json.loads((whole / "manifest.json").read_bytes())
    assert files.digest(stored) == manifest.sha256
    assert stored["rows"] == manifest.rows == sum(shard["rows"] for shard in stored["shards"])
    written = asdict(make_fingerprint())
    del written["normalize_text"]  # as before there was such a setting, so older folders stay what they are
    assert stored["fingerprint"] == written
    with pytest.raises(ValueError, match="does not follow"):
        replace(manifest, shards=manifest.shards[1:])


@pytest.mark.slow
def test_the_longest_manifest_there_may_be_is_read_back(tmp_path: Path) -> None:
    rows, digest = 10**9, "f" * 64
    infos = tuple(
        ShardInfo(
            file=shard_name(index), rows=rows, first_row=index * rows, batches=10**6, first_batch=index * 10**6,
            bytes=10**13, nan=10**6, infinite=10**6, special=10**9, hashes=digest,
        )
        for index in range(MAX_SHARDS)
    )  # fmt: skip
    manifest = Manifest(make_fingerprint(), infos)
    manifest.publish(tmp_path)
    assert Manifest.read(tmp_path) == manifest


def test_more_shards_than_a_manifest_lists_are_refused_as_they_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "MAX_SHARDS", 1)
    with pytest.raises(ShardError, match=r"holds 1 shards, the most there may be.*--shard_rows"):
        write_all(tmp_path)
