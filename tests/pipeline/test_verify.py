"""``verify``: it says of every file whether it is whole, changes none, and is not fooled by what lies beside."""

import json
import struct
import zlib
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from cli.app import build
from sae_forge.data.shards import Fingerprint, ShardWriter
from sae_forge.errors import DataError
from sae_forge.pipeline.verify import verify
from sae_forge.sae.store import Provenance, save_sae
from sae_forge.sae.topk import TopKSAE
from sae_forge.store import files
from sae_forge.store.runs import Run
from sae_forge.store.seal import is_sealed

POINT = "blocks.1.hook_resid_post"


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    parts = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def write_shards(folder: Path, *, finish: bool = True) -> None:
    fingerprint = Fingerprint(
        model="toy", weights="w", tokenizer="t", hook_point=POINT, d_in=4, storage_dtype="fp32", ctx_len=32, bos="row",
        batch_size=4, max_tokens=None, corpus="c", source="c", role="retain",
    )  # fmt: skip
    with ShardWriter(folder, fingerprint, shard_rows=100) as writer:
        for index in range(3):
            ids = torch.arange(100)
            writer.write_batch(index, torch.randn(100, 4), ids, ids.int(), ids.int())
        if finish:
            writer.finish()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run folder with one of everything that is quick to make."""
    run = Run(tmp_path / "run")
    run.open("toy")
    write_shards(run.folder / "shards" / "retain-c" / POINT)
    save_sae(
        run.folder / "saes" / POINT / "k2-d8-s0", TopKSAE(4, 8, 2, seed=0), Provenance(model="toy", hook_point=POINT)
    )
    files.publish_bytes(run.folder / "features" / "a.png", png((b"IHDR", b"0"), (b"IEND", b"")))
    run.log("train", {})
    return run


def names(entries: list[dict[str, str]]) -> list[str]:
    return [entry["file"].split("/")[-1] for entry in entries]


def test_a_whole_run_is_whole_and_stays_as_it_is(run: Run) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")}
    outcome = verify(run)
    outcome.log("verify", 1.0)
    assert (outcome.exit_code, outcome.metrics["damaged"], outcome.metrics["unproven"]) == (0, [], [])
    assert outcome.metrics["files"] == 11
    assert {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")} == before


def test_a_flip_anywhere_in_any_file_is_found_and_only_there(run: Run) -> None:
    for path in [path for path in run.folder.rglob("*") if path.is_file() and "logs" not in path.parts]:
        content = path.read_bytes()
        for byte in {0, len(content) // 3, len(content) - 1} if content else ():
            path.write_bytes(content[:byte] + bytes([content[byte] ^ 4]) + content[byte + 1 :])
            metrics = verify(run).metrics
            assert names(metrics["damaged"]) == [path.name], (path, byte)
            assert str(path) in metrics["damaged"][0]["reason"]
        path.write_bytes(content)
    assert verify(run).exit_code == 0


@pytest.mark.parametrize("name", ["shard-00001.safetensors", "shard-00001.json", "sae_weights.safetensors"])
def test_what_is_missing_is_named(run: Run, name: str) -> None:
    next(run.folder.rglob(name)).unlink()
    outcome = verify(run)
    assert outcome.exit_code == 2
    assert names(outcome.metrics["damaged"]) == [name]
    assert "is missing" in outcome.metrics["damaged"][0]["reason"]


def test_what_a_stopped_command_left_is_no_damage(run: Run) -> None:
    begun = run.folder / "shards" / "retain-d" / POINT
    with pytest.raises(KeyboardInterrupt):
        write_shards_and_stop(begun)
    (begun / ".shard-00002.safetensors.part").write_bytes(b"half")
    (begun / "shard-00002.json").unlink()
    outcome = verify(run)
    assert outcome.exit_code == 0
    assert {".shard-00002.safetensors.part", "shard-00002.json"} <= set(names(outcome.metrics["unproven"]))


def write_shards_and_stop(folder: Path) -> None:
    write_shards(folder)
    (folder / "manifest.json").unlink()
    raise KeyboardInterrupt


def test_json_of_another_hand_is_read_and_counted_as_unproven(run: Run) -> None:
    (run.folder / "run.json").write_text('{"model": "toy"}')
    outcome = verify(run)
    assert outcome.exit_code == 0
    assert names(outcome.metrics["unproven"]) == ["run.json"]
    assert run.model == "toy"


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file of a run"):
        verify(Run(tmp_path))


def test_the_command_prints_a_line_a_file_and_ends_with_2(run: Run) -> None:
    where = ["verify", "--run_dir", str(run.folder)]
    assert CliRunner().invoke(build(only="verify"), where).exit_code == 0
    for name in ("run.json", "shard-00000.safetensors"):
        path = next(run.folder.rglob(name))
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    said = CliRunner().invoke(build(only="verify"), where)
    assert said.exit_code == 2
    lines = [line for line in said.stdout.splitlines() if "run.json" in line or "shard-00000" in line]
    assert len(lines) == 2
    machine = CliRunner().invoke(build(only="verify"), [*where, "--json"])
    assert machine.exit_code == 2
    assert names(json.loads(machine.stdout)["metrics"]["damaged"]) == ["run.json", "shard-00000.safetensors"]


# ---- seals --------------------------------------------------------------------------------------


def test_a_seal_is_nothing_to_a_reader_of_json_and_proves_every_byte(tmp_path: Path) -> None:
    value = {"k": 32, "name": "ü", "share": 0.30000000000000004}
    path = tmp_path / "a.json"
    files.publish_json(path, value)
    content = path.read_bytes()
    assert json.loads(content) == value == files.read_json(path, kind=DataError, what="it")
    assert is_sealed(content)
    for byte in range(len(content)):
        for bit in (0, 2, 5):
            path.write_bytes(content[:byte] + bytes([content[byte] ^ 1 << bit]) + content[byte + 1 :])
            with pytest.raises(DataError, match=r"a\.json"):
                files.read_json(path, kind=DataError, what="it")
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match=r"a\.json"):
            files.read_json(path, kind=DataError, what="it")


def test_a_folder_that_is_discarded_is_gone_before_its_files_are(tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "step-1"
    folder.mkdir()
    (folder / "a").write_text("x")

    def killed(path: Path, ignore_errors: bool = False) -> None:
        if Path(path).exists():
            raise KeyboardInterrupt

    monkeypatch.setattr("shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        files.discard_folder(folder)
    assert [path.name for path in tmp_path.iterdir()] == [".step-1.part"]
