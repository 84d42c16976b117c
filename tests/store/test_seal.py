"""The one seal: every flipped bit is noticed, and records that prove themselves in the older way are read."""

import json
from pathlib import Path
from typing import Any

import pytest

from sae_forge.errors import ShardError
from sae_forge.store import files
from sae_forge.store.seal import is_sealed, sealed, sealed_json

BODY = {"rows": 3, "name": "ü"}


def read(path: Path) -> Any:
    return files.read_json(path, kind=ShardError, what="a record", proven=True)


def test_no_bit_of_a_sealed_record_flips_unnoticed(tmp_path: Path) -> None:
    path, content = tmp_path / "a.json", sealed_json(BODY)
    path.write_bytes(content)
    assert read(path) == BODY and json.loads(content) == BODY
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(ShardError, match=r"a\.json is not a record"):
            read(path)


def test_a_record_that_has_lost_its_seal_is_read_only_where_no_proof_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(BODY))
    assert files.read_json(path, kind=ShardError, what="a record") == BODY
    with pytest.raises(ShardError, match="nothing proves it"):
        read(path)


def test_a_record_of_version_0_1_proves_itself_by_its_sha256(tmp_path: Path) -> None:
    path, record = tmp_path / "a.json", {**BODY, "sha256": files.digest(BODY)}
    for content in (json.dumps(record).encode(), sealed_json(record)):
        path.write_bytes(content)
        assert read(path) == BODY
    path.write_text(json.dumps({**record, "rows": 4}))
    with pytest.raises(ShardError, match="does not match its sha256"):
        read(path)


def test_a_link_is_no_record_that_was_written_where_it_lies(tmp_path: Path) -> None:
    files.publish_json(tmp_path / "a.json", BODY)
    (tmp_path / "b.json").symlink_to("a.json")
    with pytest.raises(ShardError, match=r"b\.json is a link"):
        read(tmp_path / "b.json")


def test_what_is_too_short_for_a_seal_has_none() -> None:
    assert not is_sealed(b"")
    assert not is_sealed(b" " * 65)
    assert is_sealed(sealed(b"x"))


def test_a_bit_turned_in_a_seal_leaves_no_content_without_one() -> None:
    content = sealed(b"<p>")
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError, match="it is damaged"):
            is_sealed(bytes(flipped))
    assert not is_sealed(b" " * 60 + b"<p>  </p>")
