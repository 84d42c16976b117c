"""Files are whole or absent, parsed strictly, and written by one process at a time."""

import json
import os
import resource
import stat
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from sae_forge.errors import ConfigError, DataError, ResourceError, ShardError
from sae_forge.store import files, tensors


def read(path: Path):
    return files.read_json(path, kind=DataError, what="a list of things")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---- publish ------------------------------------------------------------------------------------


def test_published_content_replaces_the_old_and_leaves_no_part_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.json"
    files.publish_json(path, {"b": 1, "a": [2]})
    files.publish_json(path, {"b": 3, "a": "ü"})
    assert read(path) == {"a": "ü", "b": 3}
    assert path.read_text().lstrip() == '{\n "a": "ü",\n "b": 3\n}\n'
    assert names(path.parent) == ["a.json"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_while_writing_keeps_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a"
    files.publish_bytes(path, b"old")
    with pytest.raises(error), files.publish(path) as part:
        part.write_bytes(b"half")
        raise error
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_a_full_disk_is_a_resource_error_that_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"a\.bin.*No space left"), files.publish(tmp_path / "a.bin") as part:
        part.write_bytes(b"x")
        with Path("/dev/full").open("wb", buffering=0) as full:
            full.write(b"x")
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_a_resource_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ResourceError, match="file"):
        files.publish_bytes(tmp_path / "file" / "a", b"x")
    with pytest.raises(ResourceError, match="file"), files.locked(tmp_path / "file"):
        pass


def test_tensors_that_do_not_fit_leave_nothing_and_say_so(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(ResourceError, match=r"could not write .*a\.safetensors.*--run_dir"):
            tensors.publish_tensors(tmp_path / "a.safetensors", {"x": torch.zeros(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names(tmp_path) == []


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_the_mode_of_a_file_is_what_the_umask_allows(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        tensors.publish_tensors(tmp_path / "a.safetensors", {"x": torch.zeros(3)})
        files.publish_json(tmp_path / "a.json", 1)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o666 & ~mask}


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), files.publish_folder(tmp_path / "out") as part:
        (part / "a").write_text("half")
        raise RuntimeError
    assert names(tmp_path) == []
    with files.publish_folder(tmp_path / "out") as part:
        (part / "a").write_text("whole")
        assert not (tmp_path / "out").exists()
    assert (tmp_path / "out" / "a").read_text() == "whole"
    assert names(tmp_path) == ["out"]


def test_the_leftovers_of_a_killed_folder_are_not_published(tmp_path: Path) -> None:
    stale = tmp_path / ".out.part"
    stale.mkdir()
    (stale / "stale").write_text("")
    with files.publish_folder(tmp_path / "out") as part:
        (part / "a").write_text("")
    assert names(tmp_path / "out") == ["a"]


# ---- strict JSON --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b'{"a": 1, "a": 2}',
        b"[NaN]",
        b"[-Infinity]",
        b'"\xff"',
        b"[" * 100_000,
        b"[" * 40 + b"]" * 40,
        b"[" + b"9" * 5000 + b"]",
        b"{} {}",
    ],
)
def test_json_that_is_not_strict_is_refused_in_one_line_that_names_the_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.json is not a list of things") as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_what_is_no_file_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo", tmp_path / "missing", tmp_path / "missing" / "below"):
        with pytest.raises(DataError, match=path.name):
            read(path)


def test_a_file_beyond_the_size_cap_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "big").open("wb") as file:
        file.truncate(files.MAX_JSON_BYTES + 1)
    with pytest.raises(DataError, match="larger than"):
        read(tmp_path / "big")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(json_values)
def test_what_is_published_reads_back_equal(value) -> None:
    text = json.dumps(value, ensure_ascii=False)
    assert files.parse_json(text.encode("utf-8", "surrogatepass") if text.isascii() else text.encode()) == value
    assert files.parse_json(files.canonical(value)) == value


@given(st.dictionaries(st.text(), st.integers(), min_size=2))
def test_a_digest_depends_on_the_content_and_not_on_the_order_of_keys(value: dict[str, int]) -> None:
    assert files.digest(dict(reversed(value.items()))) == files.digest(value)
    key = next(iter(value))
    assert files.digest({**value, key: value[key] + 1}) != files.digest(value)


# ---- locks and disk -----------------------------------------------------------------------------


def test_a_second_writer_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    hold = (
        "import sys, time, pathlib; from sae_forge.store import files; lock = files.locked(pathlib.Path(sys.argv[1])); "
    )
    hold += "lock.__enter__(); print('held', flush=True); time.sleep(60)"
    root = Path(__file__).parents[2]
    with subprocess.Popen([sys.executable, "-c", hold, str(tmp_path)], stdout=subprocess.PIPE, cwd=root) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(ConfigError, match="another process is writing") as caught, files.locked(tmp_path):
            pass
        assert caught.value.exit_code == 2
        holder.kill()  # its lock goes with it
        holder.wait()
    with files.locked(tmp_path):
        pass


def test_the_lock_is_free_again_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), files.locked(tmp_path):
        raise RuntimeError
    with files.locked(tmp_path):
        pass


def test_a_disk_too_small_is_refused_with_both_numbers(tmp_path: Path) -> None:
    files.require_disk(tmp_path / "not" / "there" / "yet", 1)
    with pytest.raises(ResourceError, match=r"needs 1000000000\.00 GB and the disk has \d") as caught:
        files.require_disk(tmp_path, 10**18)
    assert caught.value.exit_code == 4


# ---- tensors ------------------------------------------------------------------------------------


def header(content: dict | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 7,
        b"\0" * 8,
        header({"a": ENTRY}, b"x" * 8, length=0),
        header({"a": ENTRY}, b"x" * 8, length=2**63),
        header({"a": ENTRY}, b"x" * 8, length=1000),
        header({"a": ENTRY}, b"x" * 7),
        header({"a": ENTRY}, b"x" * 9),
        header([1, 2], b""),
        header({"a": {**ENTRY, "dtype": "F8"}}, b"x" * 8),
        header({"a": {**ENTRY, "shape": [3]}}, b"x" * 8),
        header({"a": {**ENTRY, "shape": [-2]}}, b"x" * 8),
        header({"a": {**ENTRY, "shape": [2.0]}}, b"x" * 8),
        header({"a": {**ENTRY, "shape": 2}}, b"x" * 8),
        header({"a": {**ENTRY, "data_offsets": [0, 8, 9]}}, b"x" * 8),
        header({"a": {**ENTRY, "data_offsets": [8, 0]}}, b"x" * 8),
        header({"a": ENTRY, "b": ENTRY}, b"x" * 8),
        header({"a": ENTRY, "b": {**ENTRY, "data_offsets": [9, 17]}}, b"x" * 17),
        header({"a": [1]}, b"x" * 8),
        header(b'{"a": %s, "a": %s}' % ((json.dumps(ENTRY).encode(),) * 2), b"x" * 8),
        header({f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(17)}),
        header({"a" * 70_000: ENTRY}, b"x" * 8),
    ],
)
def test_a_header_that_lies_is_refused_before_any_library_sees_it(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(ShardError, match=r"bad\.safetensors is not a shard") as caught:
        tensors.read_header(path, kind=ShardError, what="a shard")
    assert "\n" not in str(caught.value)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_at_all_make_the_header_check_raise_anything_but_its_error(tmp_path_factory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "a"
    path.write_bytes(content)
    with pytest.raises(ShardError):
        tensors.read_header(path, kind=ShardError, what="a shard")


def test_the_header_says_where_each_tensor_lies(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    x, n = torch.randn(5, 3).bfloat16(), torch.arange(7)
    save_file({"x": x, "n": n}, path)
    layout, size = tensors.read_header(path, kind=ShardError, what="a shard")
    assert size == path.stat().st_size
    assert layout["x"][:2] == (torch.bfloat16, (5, 3))
    begin, end = layout["n"][2:]
    assert path.read_bytes()[begin:end] == n.numpy().tobytes()


def test_tensors_read_back_to_the_bit(tmp_path: Path) -> None:
    given = {"x": torch.randn(5, 3).bfloat16().T, "y": torch.zeros(0, 4), "z": torch.tensor(7)}
    tensors.publish_tensors(tmp_path / "a", given, {"note": "kept"})
    found = tensors.read_tensors(tmp_path / "a", kind=ShardError, what="weights")
    assert found.keys() == given.keys()
    assert all(torch.equal(found[name], given[name]) for name in given)
