"""Shards on a URL: the same bytes as in a folder, whatever the store does on the way, and no secret in sight."""

import asyncio
import json
import os
import shutil
import threading
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote
from uuid import uuid4

import fsspec
import pytest
import torch
from fsspec import AbstractFileSystem
from fsspec.asyn import AsyncFileSystem
from test_ranks import over_ranks
from test_shards import make_batch, make_fingerprint
from tiny_run import forge

from sae_forge import ranks
from sae_forge.config.collect import CollectConfig
from sae_forge.data.shards import ShardReader, ShardWriter, complete, find_shards
from sae_forge.data.stream import ActivationStream
from sae_forge.errors import ConfigError, RemoteError, ResourceError, ShardError
from sae_forge.pipeline.verify import verify
from sae_forge.store import files, remote
from sae_forge.store.remote import AnyPath, RemotePath, connect, is_url
from sae_forge.store.runs import Run
from sae_forge.store.seal import is_sealed, sealed_json

CANARY = "sEcReT-canary-77"
WHERE = Path("forget-gnomes") / "blocks.1.hook_resid_post"


class Brittle(AbstractFileSystem):
    """A store in a folder, whose puts show half a file under its final name and whose requests fail on command."""

    protocol = "brittle"
    root: ClassVar[Path]
    dies_at: ClassVar[int | None]
    """The put in which the store goes down for good, with half of the file there."""
    faults: ClassVar[dict[str, int]]
    """For each kind of request, how many of the next ones fail."""
    asked: ClassVar[Counter[str]]
    _counting: ClassVar = threading.Lock()

    def _enter(self, kind: str) -> None:
        with self._counting:
            self.asked[kind] += 1
            if self.dies_at is not None and (self.asked["put"] > self.dies_at):
                raise ConnectionError(f"http://me:{CANARY}@store/?sig={CANARY} is down, {CANARY}")
            if self.faults.get(kind, 0) > 0:
                self.faults[kind] -= 1
                raise TimeoutError(f"slow down, said http://store/x?X-Signature={CANARY}")

    def _at(self, path: str) -> Path:
        return self.root / self._strip_protocol(path).strip("/")

    def _entry(self, path: Path) -> dict[str, Any]:
        kind = "directory" if path.is_dir() else "file"
        return {"name": str(path.relative_to(self.root)), "type": kind, "size": path.stat().st_size}

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        self._enter("info")
        return self._entry(self._at(path))

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        self._enter("ls")
        return [self._entry(found) for found in self._at(path).iterdir()]

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        self._enter("cat")
        content = self._at(path).read_bytes()[start:end]
        if self.faults.get("short", 0):
            self.faults["short"] -= 1
            return content[: len(content) // 2]
        return content

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        self._at(path).mkdir(parents=True, exist_ok=exist_ok)

    def put_file(self, lpath: str, rpath: str, **_: Any) -> None:
        content = Path(lpath).read_bytes()
        self._at(rpath).write_bytes(content[: len(content) // 2])
        self._enter("put")
        if self.faults.get("cut", 0):
            self.faults["cut"] -= 1
        else:
            self._at(rpath).write_bytes(content)

    def rm_file(self, path: str) -> None:
        self._enter("rm")
        self._at(path).unlink()


class Awaited(AsyncFileSystem):
    """The brittle store as one that is awaited; what went wrong with a range stands in the answer, as in old fsspec."""

    protocol = "awaited"
    hangs: ClassVar[float]

    def __init__(self) -> None:  # takes no setting, as that of sftp
        super().__init__()
        self._store = Brittle()

    def _under(self, path: str) -> str:
        return str(self._strip_protocol(path))

    async def _info(self, path: str, **_: Any) -> dict[str, Any]:
        return self._store.info(self._under(path))

    async def _ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        return self._store.ls(self._under(path))

    async def _cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        await asyncio.sleep(self.hangs)
        return self._store.cat_file(self._under(path), start, end)

    async def _cat_ranges(self, paths: list[str], starts: list[int], ends: list[int], **_: Any) -> list[Any]:
        parts = map(self._cat_file, paths, starts, ends)
        return await asyncio.gather(*parts, return_exceptions=True)

    async def _put_file(self, lpath: str, rpath: str, **_: Any) -> None:
        self._store.makedirs(self._under(rpath).rpartition("/")[0], exist_ok=True)
        self._store.put_file(lpath, self._under(rpath))

    async def _rm_file(self, path: str, **_: Any) -> None:
        self._store.rm_file(self._under(path))


fsspec.register_implementation("brittle", Brittle, clobber=True)
fsspec.register_implementation("awaited", Awaited, clobber=True)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[Brittle]:
    """The brittle store, empty and well."""
    monkeypatch.setattr(remote, "_PAUSE", 0.0)
    Brittle.root, Brittle.dies_at, Brittle.faults, Brittle.asked = tmp_path / "bucket", None, {}, Counter()
    Awaited.hangs = 0.0
    Brittle.root.mkdir()
    return Brittle


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The secret is in the environment, as that of a store would be."""
    monkeypatch.setenv("STORE_SECRET_KEY", CANARY)


def folder_at(url: str, tmp_path: Path) -> AnyPath:
    place = Run(tmp_path / "run", url).shards
    for part in WHERE.parts:
        place = place / part
    return place


def write(folder: AnyPath, *, stop: int = 9, **settings: Any) -> None:
    with ShardWriter(folder, make_fingerprint(), shard_rows=300, **settings) as writer:
        for index in range(writer.next_batch, stop):
            writer.write_batch(index, **make_batch(index))
        writer.finish()


def contents(folder: AnyPath) -> dict[str, bytes]:
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    return {name: content for name, content in found.items() if name != ".lock"}


@pytest.fixture
def plain(tmp_path: Path) -> dict[str, bytes]:
    """What the same writing leaves in a plain folder."""
    write(tmp_path / "plain")
    found = contents(tmp_path / "plain")
    assert len(found) == 2 * 3 + 1
    return found


def leftovers(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "run").rglob("*") if path.is_file() and path.name != ".lock")


# ---- the same bytes -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "memory", "brittle", "awaited"])
def test_a_store_holds_the_bytes_of_a_plain_folder(kind: str, store, plain, tmp_path: Path) -> None:
    url = {"file": f"file://{tmp_path}/bucket/a", "memory": f"memory://{uuid4().hex}/a"}.get(kind, f"{kind}://a")
    folder = folder_at(url, tmp_path)
    assert not complete(folder)
    write(folder)
    assert contents(folder) == plain
    assert leftovers(tmp_path) == []
    assert find_shards(tmp_path / "run", shards=Run(tmp_path / "run", url).shards) == [folder]
    here, there = ShardReader(tmp_path / "plain"), ShardReader(folder)
    for one, other in zip(here.iter_blocks(), there.iter_blocks(), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one[:-1], other[:-1], strict=True))
    write(folder)  # complete: nothing to do
    assert contents(folder) == plain


@pytest.mark.parametrize("storage_dtype", ["bf16", "int8"])
def test_batches_of_training_are_those_of_a_plain_folder(storage_dtype: str, store, tmp_path: Path) -> None:
    found = []
    for folder in (tmp_path / "plain", folder_at("brittle://a", tmp_path)):
        with ShardWriter(folder, make_fingerprint(storage_dtype=storage_dtype), shard_rows=700) as writer:
            for index in range(20):
                writer.write_batch(index, **make_batch(index))
            writer.finish()
        batches = ActivationStream([ShardReader(folder)], batch_size=100, seed=3).batches()
        found.append([next(batches).clone() for _ in range(30)])
        batches.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.slow
def test_ranks_fill_one_url_as_one_process_does(plain, tmp_path: Path) -> None:
    folder = folder_at(f"file://{tmp_path}/bucket", tmp_path)

    def share(rank: int) -> None:
        with ShardWriter(folder, make_fingerprint(), shard_rows=300, team=ranks.here()) as writer:
            for index in range(writer.next_batch, 9):
                batch = make_batch(index)
                if writer.is_own(writer.begun):
                    writer.write_batch(index, **batch)
                else:
                    writer.pass_over(index, len(batch["acts"]))
            writer.finish()

    assert over_ranks(2, share, tmp_path / "said") == [0, 0]
    assert contents(folder) == plain


def test_reading_in_order_asks_for_far_more_than_a_block_at_a_time(store, tmp_path: Path) -> None:
    folder = folder_at("brittle://a", tmp_path)
    with ShardWriter(folder, make_fingerprint(), shard_rows=20_000) as writer:
        for index in range(100):
            writer.write_batch(index, **make_batch(index))
        writer.finish()
    reader = ShardReader(folder)
    assert reader.block_count > 40
    store.asked.clear()
    assert sum(len(block.acts) for block in reader.iter_blocks()) == reader.rows
    assert store.asked["cat"] < 20
    store.asked.clear()
    assert sum(len(acts) for acts in reader.iter_acts(range(5, 25), reader.make_scratch())) == 20 * 256
    assert store.asked["cat"] == 1


# ---- faults -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_store_that_goes_down_in_any_put_is_gone_on_with(keys, store, plain, tmp_path: Path) -> None:
    for put in range(len(plain)):
        shutil.rmtree(store.root)
        store.root.mkdir()
        store.asked.clear()
        store.dies_at = put
        folder = folder_at("brittle://a", tmp_path)
        with pytest.raises(RemoteError) as caught:
            write(folder)
        assert str(folder) in str(caught.value)
        assert CANARY not in str(caught.value)
        assert caught.value.exit_code == 5
        store.dies_at = None
        torn = [path for path in store.root.rglob("*") if path.is_file() and path.read_bytes() != plain[path.name]]
        assert len(torn) == 1
        assert not complete(folder)
        with pytest.raises(ShardError, match=r"unfinished|holds no shards"):
            ShardReader(folder)
        write(folder)
        assert contents(folder) == plain, put
        assert leftovers(tmp_path) == []


def test_a_put_that_arrives_cut_short_is_noticed_and_made_again(store, plain, tmp_path: Path) -> None:
    folder = folder_at("brittle://a", tmp_path)
    store.faults = {"cut": 5}
    write(folder)
    assert contents(folder) == plain
    store.faults = {"cut": 100}
    with pytest.raises(RemoteError, match=r"bytes arrived of"):
        write(folder_at("brittle://b", tmp_path))


def test_requests_that_fail_for_a_while_are_made_again_and_not_for_ever(store, plain, tmp_path: Path) -> None:
    folder = folder_at("brittle://a", tmp_path)
    for kind in ("info", "ls", "put", "cat", "rm"):
        store.faults = {kind: remote.TRIES - 1}
        write(folder, fresh=True)
        assert contents(folder) == plain
        assert store.faults == {kind: 0}
    reader = ShardReader(folder)
    store.faults = {"cat": remote.TRIES - 1}
    assert len(list(reader.iter_blocks())) == reader.block_count
    store.asked.clear()
    store.faults = {"cat": 10**6}
    with pytest.raises(RemoteError, match=r"shard-00000\.safetensors could not be read \(TimeoutError") as caught:
        reader.read_acts(0)
    assert store.asked["cat"] == remote.TRIES
    assert CANARY not in str(caught.value)


def test_a_read_that_fails_within_an_answer_is_made_again_and_named(keys, store, tmp_path: Path, monkeypatch) -> None:
    folder = folder_at("awaited://a", tmp_path)
    write(folder)
    reader = ShardReader(folder)
    store.faults = {"cat": remote.TRIES - 1}
    assert len(list(reader.iter_blocks())) == reader.block_count
    store.faults = {"cat": 10**6}
    with pytest.raises(RemoteError, match=r"shard-00000\.safetensors could not be read \(TimeoutError") as caught:
        reader.read_acts(0)
    assert CANARY not in str(caught.value)
    store.faults = {}
    monkeypatch.setattr(remote, "_SECONDS", 0.02)
    Awaited.hangs = 100.0
    with pytest.raises(RemoteError, match=r"shard-00000\.safetensors could not be read \(FSTimeoutError"):
        reader.read_acts(0)
    Awaited.hangs = 0.0
    (store.root / "a" / WHERE / "shard-00000.safetensors").unlink()
    with pytest.raises(ShardError, match=r"shard-00000\.safetensors is gone"):
        reader.read_acts(0)


def test_an_answer_that_is_too_short_is_asked_for_again_and_deletes_nothing(store, plain, tmp_path: Path) -> None:
    folder = folder_at("brittle://a", tmp_path)
    write(folder)
    (store.root / "a" / WHERE / "manifest.json").unlink()
    store.faults = {"short": remote.TRIES - 1}
    write(folder)
    assert (contents(folder), store.asked["rm"]) == (plain, 0)
    store.faults = {"short": 10**6}
    with pytest.raises(RemoteError, match=r"shard-00000\.json could not be read \(OSError: \d+ bytes came of \d+ at 0"):
        (folder / "shard-00000.json").read_bytes()


def test_an_answer_that_is_too_long_is_cut(store, plain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_at("brittle://a", tmp_path)
    write(folder)
    cat_file = store.cat_file
    monkeypatch.setattr(store, "cat_file", lambda self, path, start, end: bytearray(cat_file(self, path, start, None)))
    here, there = ShardReader(tmp_path / "plain"), ShardReader(folder)
    for one, other in zip(here.iter_blocks(), there.iter_blocks(), strict=True):
        assert torch.equal(one.acts, other.acts)


ANSWERS = [
    *[("cat_file", answer, "TypeError: the store answered", 1) for answer in (None, "x", 5)],
    *[("info", answer, "OSError: the store did not say", remote.TRIES) for answer in (None, {"name": "x"})],
    ("info", {"name": "x", "type": "file", "size": None}, "OSError: the store did not say", remote.TRIES),
    *[("info", kind("x"), kind.__name__, 1) for kind in (KeyError, RecursionError, AttributeError)],
    *[("ls", answer, "TypeError: the store did not answer", 1) for answer in (None, [{"type": "file"}], ["x"])],
]


@pytest.mark.parametrize(("request_", "answer", "said", "tries"), ANSWERS)
def test_an_answer_that_is_none_is_one_error(request_, answer, said, tries, store, tmp_path: Path, monkeypatch) -> None:
    folder, asked = folder_at("brittle://a", tmp_path), []
    write(folder)

    def answered(*_: Any, **__: Any) -> Any:
        asked.append(1)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(store, request_, answered)
    with pytest.raises(RemoteError, match=rf"^brittle://a/\S+ could not be (listed|read|looked up) \({said}"):
        list(folder.iterdir()) if request_ == "ls" else (folder / "manifest.json").read_bytes()
    assert len(asked) == tries


def test_a_listing_that_leaves_lengths_out_is_asked_after(store, tmp_path: Path, monkeypatch) -> None:
    folder = folder_at("brittle://a", tmp_path)
    write(folder)
    entry = store._entry
    lengths = {path.name: path.stat().st_size for path in folder.iterdir()}
    monkeypatch.setattr(store, "ls", lambda self, path, **_: [
        {**entry(self, found), "size": None} for found in self._at(path).iterdir()
    ])  # fmt: skip
    assert {path.name: path.stat().st_size for path in folder.iterdir()} == lengths
    assert min(lengths.values()) > 0


def test_what_others_did_meanwhile_is_seen(store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By an implementation that remembers what it has listed, and forgets the one folder it is told to."""
    remembered, ask = {}, store.info

    def info(self: Brittle, path: str) -> dict[str, Any]:
        listed = path if path in remembered else path.rpartition("/")[0]
        found = remembered.setdefault(listed, {})
        if path not in found:
            found[path] = ask(self, path)
        return found[path]

    monkeypatch.setattr(store, "info", info)
    monkeypatch.setattr(store, "invalidate_cache", lambda self, path=None: remembered.pop(path, None))
    place = connect("brittle://a", tmp_path / "run")
    (store.root / "a" / "b").mkdir(parents=True)
    (store.root / "a" / "b" / "c").touch()
    assert [(place / "b").is_dir(), (place / "b" / "c").is_file()] == [True, True]
    remembered["a/b"] = {path: ask(Brittle(), path) for path in ("a/b", "a/b/c")}
    shutil.rmtree(store.root / "a" / "b")
    assert not (place / "b").exists()
    remembered["a/b"] = {"a/b/c": {"type": "file", "size": 0}}
    assert not (place / "b" / "c").exists()


@pytest.mark.slow
def test_a_flipped_byte_on_the_store_is_refused_on_reading_by_name(store, tmp_path: Path) -> None:
    folder = folder_at("brittle://a", tmp_path)
    write(folder)
    for path in sorted(store.root.rglob("*.*")):
        whole = path.read_bytes() if path.is_file() else b""
        for byte in {0, 9, len(whole) // 2, *range(len(whole) - 4, len(whole))} if whole else ():
            path.write_bytes(whole[:byte] + bytes([whole[byte] ^ 4]) + whole[byte + 1 :])
            with pytest.raises(ShardError, match=f"{path.name}|unfinished"):
                list(ShardReader(folder).iter_blocks())
            path.write_bytes(whole[:-1])
            with pytest.raises(ShardError, match=f"{path.name}|unfinished"):
                list(ShardReader(folder).iter_blocks())
            path.write_bytes(whole)
    assert list(ShardReader(folder).iter_blocks())


def test_a_shard_that_goes_or_shrinks_after_it_was_opened_is_named(store, tmp_path: Path) -> None:
    folder = folder_at("brittle://a", tmp_path)
    write(folder)
    reader, path = ShardReader(folder), store.root / "a" / WHERE / "shard-00001.safetensors"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ShardError, match=r"shard-00001\.safetensors ends early"):
        reader.read_acts(2)
    path.unlink()
    with pytest.raises(ShardError, match=r"shard-00001\.safetensors is gone"):
        reader.read_acts(2)
    with pytest.raises(ShardError, match=r"shard-00001\.safetensors is gone"):
        list(reader.iter_acts([2], reader.make_scratch()))


def test_a_link_on_a_store_that_has_them_is_refused(tmp_path: Path) -> None:
    folder = folder_at(f"file://{tmp_path}/bucket", tmp_path)
    write(folder)
    shard = tmp_path / "bucket" / WHERE / "shard-00001.safetensors"
    shard.rename(tmp_path / "elsewhere")
    shard.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ShardError, match=r"shard-00001\.safetensors is missing or not a plain file"):
        ShardReader(folder)


def test_only_a_file_is_replaced_by_a_put(tmp_path: Path) -> None:
    """A store in a folder would write through a link, into what it points to."""
    bucket, victim, file = tmp_path / "bucket", tmp_path / "victim", tmp_path / "file"
    (bucket / "folder").mkdir(parents=True)
    (bucket / "link").symlink_to(victim)
    (bucket / "nowhere").symlink_to(tmp_path / "made")
    os.mkfifo(bucket / "pipe")
    place = connect(f"file://{bucket}", tmp_path / "run")
    for path in (victim, bucket / "file"):
        path.write_bytes(b"theirs")
    file.write_bytes(b"ours")
    for name in ("link", "nowhere", "folder", "pipe"):
        assert (place / name).exists()
        with pytest.raises(RemoteError, match=f"{name} is a link, a folder or a device"):
            (place / name).put(file)
    assert victim.read_bytes() == b"theirs"
    assert not (tmp_path / "made").exists()
    (place / "file").put(file)
    assert (bucket / "file").read_bytes() == b"ours"


def test_a_file_where_a_folder_should_be_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    place = connect(f"file://{tmp_path}/file/sub", tmp_path / "run")
    assert not place.exists()
    assert not files.is_there(place / "x")
    assert list(place.iterdir()) == []
    with pytest.raises(RemoteError, match="there is no such bucket or folder"):
        files.publish_bytes(place / "x", b"x")
    with pytest.raises(ResourceError, match=r"--shards_dir"):  # on this machine
        files.publish_bytes(tmp_path / "file" / "sub", b"x")


def test_a_damaged_shard_is_not_resumed_from(store, tmp_path: Path) -> None:
    folder = folder_at("brittle://a", tmp_path)
    write(folder)
    bucket = store.root / "a" / WHERE
    (bucket / "manifest.json").unlink()
    shard = bucket / "shard-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"!")
    with pytest.raises(ShardError, match=r"shard-00001\.safetensors is damaged"):
        write(folder)


def test_two_writers_that_share_a_run_folder_notice_one_another(store, tmp_path: Path) -> None:
    folder = folder_at("brittle://a", tmp_path)
    with files.locked(folder), pytest.raises(ConfigError, match=r"another process is writing brittle://a"):
        write(folder)


def test_a_record_that_was_cut_off_is_not_there(tmp_path: Path) -> None:
    record = sealed_json({"a": {"b": {}}, "c": [{"d": 1}, {}]})
    place = connect(f"file://{tmp_path}", tmp_path / "beside") / "x"
    for length in range(len(record) + 1):
        (tmp_path / "x").write_bytes(record[:length])
        assert files.is_there(place) == (length == len(record))


# ---- the run folder -----------------------------------------------------------------------------


def read_pointer(run: Path) -> dict[str, Any]:
    content = (run / "shards" / "place.json").read_bytes()
    assert is_sealed(content)
    return json.loads(content)


SMALL = ["--max_tokens", "1500", "--storage_dtype", "bf16", "--shard_rows", "700"]
TRAIN = ["--max_steps", "10", "--batch_size", "256", "--expansion_factor", "2", "--loss_tokens", "200"]
FEATURES = ["--num_features", "4", "--max_neutral_freq", "0.5", "--min_ratio", "1", "--min_target_fires", "1"]
FEATURES += ["--snippets", "1", "--max_freq", "1"]


def published(folder: Path) -> dict[str, bytes]:
    """What a run folder holds beside its shards, its locks and its logs."""
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if name.partition("/")[0] not in ("logs", "shards")}


@pytest.mark.slow
def test_later_commands_find_the_shards_that_collect_put_on_a_url(tmp_path: Path) -> None:
    """And what they make of them is what they make of shards in the run folder."""
    url, flags = f"file://{tmp_path}/bucket/tiny", ["--model", "tiny-llama"]
    for run, place in {"here": [], "there": ["--shards_dir", url]}.items():
        where = [*flags, "--run_dir", str(tmp_path / run)]
        printed = forge("collect", *where, *SMALL, *place, "--json")
        assert ((url in printed), (tmp_path / run / "shards" / "place.json").exists()) == ((run == "there"),) * 2
        forge("train", *where, *TRAIN)
    here, there = tmp_path / "here", tmp_path / "there"
    assert published(here) == published(there)
    assert read_pointer(there) == {"shards_dir": url}
    shards = {path.relative_to(here / "shards"): path for path in (here / "shards").glob("*/*/[!.]*")}
    assert len(shards) > 8
    for name, path in shards.items():
        assert (tmp_path / "bucket" / "tiny" / name).read_bytes() == path.read_bytes(), name

    whole = json.loads(forge("verify", "--run_dir", str(there), "--json"))["metrics"]
    assert whole["files"] == verify(Run(here)).metrics["files"] + len(["place.json", "begun.json"])
    assert whole["damaged"] == whole["unproven"] == []
    assert "4 of 4 chosen latents" in forge("features", *flags, "--run_dir", str(there), *FEATURES)
    assert (tmp_path / "bucket" / "tiny" / "refusal-everyday").exists()  # which features collects
    shard = next((tmp_path / "bucket").rglob("shard-00000.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"!")
    found = verify(Run(there))
    assert (found.exit_code, len(found.metrics["damaged"])) == (2, 1)
    assert found.metrics["damaged"][0]["file"] == f"{url}/{shard.relative_to(tmp_path / 'bucket' / 'tiny')}"

    said = forge("train", *flags, "--run_dir", str(there), *TRAIN, "--shards_dir", f"file://{tmp_path}/other", code=2)
    assert f"the shards of {there} are in {url}" in said
    said = forge("features", *flags, "--run_dir", str(here), "--shards_dir", url, code=2)
    assert f"the shards of {here} are in {here}/shards" in said


def test_a_plain_folder_is_kept_relative_to_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = Run(Path("run"), "big/shards")
    run.open("toy")
    assert read_pointer(tmp_path / "run") == {"shards_dir": "../../big/shards"}
    monkeypatch.chdir("/")
    again = Run(tmp_path / "run")
    assert again.shards == tmp_path / "big" / "shards"
    assert Run(tmp_path / "run", str(tmp_path / "big" / "shards")).shards == again.shards
    (tmp_path / "big" / "shards" / "corpus" / "point").mkdir(parents=True)
    (tmp_path / "big" / "shards" / "corpus" / "point" / "shard-00000.json").touch()
    with pytest.raises(ConfigError, match="choose another --run_dir"):
        _ = Run(tmp_path / "run", str(tmp_path / "run" / "shards")).shards
    own = Run(tmp_path / "own", str(tmp_path / "own" / "shards"))
    own.open("toy")
    assert own.shards == tmp_path / "own" / "shards"
    assert not (tmp_path / "own" / "shards" / "place.json").exists()


def test_one_place_has_one_spelling(tmp_path: Path) -> None:
    place = connect(f"FILE://{tmp_path}//a/./b/", tmp_path)
    assert place == connect(f"file://{tmp_path}/a/b", tmp_path)
    assert (str(place / "x"), place.name) == (f"file://{tmp_path}/a/b/x", "b")
    assert [is_url(text) for text in ("s3://a", "S3://a", "a::s3://b", "://a", "a/b://c", "a:/b")] == [True] * 3 + [
        False
    ] * 3
    own = Run(tmp_path / "own", f"file://{tmp_path}/own/./shards/")
    own.open("toy")
    assert own.shards == tmp_path / "own" / "shards"
    assert not (tmp_path / "own" / "shards").exists()


NO_PLACES = [
    b"{",
    b"[]\n",
    b'{"shards_dir": 3}\n',
    b'{"shards_dir": "s3://a/?b=c"}\n',
    b'{"shards_dir": "a\\u0000b"}\n',
]


@pytest.mark.parametrize("content", NO_PLACES)
def test_a_pointer_that_is_none_is_refused(content: bytes, tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.open("toy")
    files.publish_bytes(tmp_path / "shards" / "place.json", content)
    with pytest.raises((ShardError, ConfigError), match=r"place"):
        _ = run.shards


# ---- secrets ------------------------------------------------------------------------------------

HOSTILE = [
    f"s3://me:{CANARY}@bucket/x", f"s3://me%3A{CANARY}@bucket/x", f"s3://bucket/x?secret={CANARY}",
    f"s3://bucket/x#{CANARY}", f"simplecache::s3://bucket/{CANARY}", f"s3://bucket/../{CANARY}",
    f"s3://bucket/%2e%2e/{CANARY}", f"s3://bucket/{CANARY}\x1b[2J", f"s3://bucket/{CANARY}%0a", "s3://", f"s3:///?{CANARY}",
    f"s3://me:ab/{CANARY}@bucket/x", f"s3:///me:{CANARY}@bucket", f"s3://me:{CANARY}/x", f"az://c;Key={CANARY}/x",
    f"file://{CANARY}/x", f"file://~/{CANARY}", "file:///.", "file:///./",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("url", HOSTILE)
def test_a_url_with_a_secret_or_no_place_is_refused_and_not_shown(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        CollectConfig(shards_dir=url)
    assert CANARY not in str(caught.value)
    said = forge("collect", "--model", "tiny-llama", "--run_dir", str(tmp_path / "run"), "--shards_dir", url, code=2)
    assert CANARY not in said
    assert not (tmp_path / "run").exists()


def test_an_unknown_kind_of_url_is_one_line(tmp_path: Path) -> None:
    where = ["--model", "tiny-llama", "--run_dir", str(tmp_path / "run")]
    assert "nosuchstore://a" in forge("collect", *where, "--shards_dir", "nosuchstore://a", code=2)


def test_what_a_store_says_is_repeated_without_secrets(keys, store, tmp_path: Path) -> None:
    store.dies_at = 0
    place = Run(tmp_path / "run", "brittle://a").shards
    assert isinstance(place, RemotePath)
    files.publish_bytes(tmp_path / "file", b"x")
    with pytest.raises(RemoteError, match=r"brittle://a/x could not be written \(ConnectionError: http://…@") as caught:
        (place / "x").put(tmp_path / "file")
    assert CANARY not in str(caught.value)
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)


class Refusing(AbstractFileSystem):
    """A store that fails before anything is asked of it."""

    protocol = "refusing"
    says: ClassVar[Exception]

    def __init__(self) -> None:
        raise self.says


def test_a_store_that_cannot_be_connected_to_is_one_line_without_secrets(tmp_path: Path, monkeypatch) -> None:
    fsspec.register_implementation("refusing", Refusing, clobber=True)
    longer = f"{CANARY}/+{CANARY[::-1]}"
    for name, value in {"A_KEY": CANARY, "B_TOKEN": longer}.items():
        monkeypatch.setenv(name, value)
    said = f"no {CANARY} {longer} {quote(longer, safe='')} {quote(longer).lower()} Basic {CANARY[::-1]}="
    for says, expected in {
        RuntimeError(said): ConfigError, ConnectionRefusedError(said): RemoteError, ValueError(said): ConfigError,
    }.items():  # fmt: skip
        Refusing.says = says
        with pytest.raises(expected, match=r"^refusing://a \S.*: no") as caught:
            connect("refusing://a", tmp_path)
        assert not any(part.lower() in str(caught.value).lower() for part in (CANARY, CANARY[::-1]))
