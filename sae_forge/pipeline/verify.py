"""``verify``: every file of a run folder, read to its last byte and held against what was written down about it.

Nothing is changed. What no record speaks of (a picture, a table for people) is checked as far as its format allows, and
counted as unproven where that is not far enough.
"""

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow
import pyarrow.parquet

from sae_forge.data.manifest import MANIFEST, Manifest, Sidecar, shard_name, shard_number, sidecar_path
from sae_forge.data.shard_file import ShardFile
from sae_forge.errors import CheckpointError, DataError, ForgeError, RemoteError, ShardError
from sae_forge.features.selection import Selection
from sae_forge.outcome import Outcome
from sae_forge.progress import SILENT, Progress
from sae_forge.sae.store import CFG, WEIGHTS, load_sae
from sae_forge.store import files
from sae_forge.store.remote import AnyPath
from sae_forge.store.runs import Run
from sae_forge.store.seal import is_sealed
from sae_forge.training.further import CHECKPOINTS
from sae_forge.training.state import LEVEL, STATE, verify_checkpoint

Verdict = Literal["whole", "damaged", "unproven"]

_LEFTOVER = re.compile(r"\..*\.part|\.tmp.{6}")
_PNG = b"\x89PNG\r\n\x1a\n"


class _UnprovenError(Exception):
    """Nothing contradicts the file, and nothing proves it."""


@dataclass(frozen=True)
class Check:
    """One file, and what raises unless it is whole."""

    path: AnyPath
    read: Callable[[], object]

    @property
    def bytes(self) -> int:
        """Length of the file; 0 when it is missing."""
        return self.path.stat().st_size if self.path.is_file() else 0


@dataclass(frozen=True)
class Finding:
    """What is known of one file after reading it."""

    path: AnyPath
    verdict: Verdict
    reason: str = ""
    """One line that names the file, unless it is whole."""


def verify(run: Run, progress: Progress = SILENT) -> Outcome:
    """What every file of the run is worth; the outcome's exit code is 2 when one is damaged or missing.

    Raises:
        DataError: there is no such folder, or nothing in it.
        RemoteError: the store that holds its shards does not answer.
    """
    checks = list(iter_checks(run.folder))
    if not checks:
        raise DataError(f"{run.folder} holds no file of a run; name a run folder with --run_dir")
    total, findings = sum(check.bytes for check in checks), []
    with progress.task("verify", total, "bytes") as task:
        for check in checks:
            findings.append(_find(check))
            task.advance(check.bytes, damaged=float(sum(finding.verdict == "damaged" for finding in findings)))
    damaged, unproven = ([one for one in findings if one.verdict == kind] for kind in ("damaged", "unproven"))
    shown = {
        path: str(path.relative_to(run.folder) if isinstance(path, Path) and path.is_relative_to(run.folder) else path)
        for path in (finding.path for finding in findings)
    }
    told = f"{len(checks)} files, {total / 1e9:.3f} GB: {len(checks) - len(damaged) - len(unproven)} whole"
    told += f", {len(unproven)} that nothing proves" if unproven else ""
    told += f", {len(damaged)} damaged or missing" if damaged else ""
    return Outcome(
        run=run,
        outputs={},
        metrics={
            "files": len(checks),
            "bytes": total,
            **{
                name: [{"file": shown[finding.path], "reason": finding.reason} for finding in listed]
                for name, listed in (("damaged", damaged), ("unproven", unproven))
            },
        },
        summary="\n".join([*(f"{finding.verdict}: {finding.reason}" for finding in (*unproven, *damaged)), told]),
        exit_code=DataError.exit_code if damaged else 0,
        noted=False,
    )


def iter_checks(folder: Path) -> Iterator[Check]:
    """A check for every file of a run, those that are missing included; ``logs/`` and locks apart."""
    yield from _checks_in(folder)
    with suppress(ShardError):  # a pointer that is damaged is a finding of its own
        shards, names = Run(folder).shards, Run(folder).corpora
        if shards != folder / "shards":  # where a pointer leads, other runs may have theirs too
            its = [corpus for name in names for corpus in (shards / name).glob("*")] if names else shards.glob("*/*")
            for corpus in sorted(its, key=str):
                if corpus.is_dir():
                    yield from _shard_checks(corpus)
                    yield from (Check(path, lambda at=path: _sealed_json(at)) for path in corpus.glob("config.json"))
        absent = [name for name in names if not any((shards / name).glob("*/*"))]
        for name in absent:
            yield Check(shards / name, lambda at=shards / name: _absent(at, others=len(absent) < len(names)))


def _checks_in(folder: Path) -> Iterator[Check]:
    """A check for every file that lies in the run folder."""
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder).parts
        if path.is_dir() and not path.is_symlink():
            if _holds_shards(inside):
                yield from _shard_checks(path)
            elif inside[0] == "saes" and len(inside) == 3 and (path / CFG).exists() and not (path / WEIGHTS).exists():
                yield Check(path / WEIGHTS, lambda at=path: _weights(at))
        elif inside[0] != "logs" and path.name != ".lock":
            # what `_shard_checks` answers for is left to it
            own = _holds_shards(inside[:-1]) and (path.name == MANIFEST or shard_number(path.name) is not None)
            if not own:
                yield Check(path, _reader(path, inside))


def _find(check: Check) -> Finding:
    try:
        check.read()
    except _UnprovenError as doubt:
        return Finding(check.path, "unproven", f"{check.path} {doubt}")
    except RemoteError:  # says nothing of the file
        raise
    except ForgeError as error:
        return Finding(check.path, "damaged", " ".join(str(error).split()))
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        return Finding(check.path, "damaged", f"{check.path} is damaged: {' '.join(str(error).split())[:200]}")
    return Finding(check.path, "whole")


def _reader(path: Path, inside: tuple[str, ...]) -> Callable[[], object]:
    """What reads a file that stands outside the folders of shards."""
    if path.is_symlink() or not path.is_file():
        return lambda: _refuse("is not a plain file; nothing here makes such a thing")
    if _LEFTOVER.fullmatch(path.name) or any(_LEFTOVER.fullmatch(part) for part in inside):
        return lambda: _refuse("was left behind by a command that was stopped; the same command replaces it")
    if path.parent.parent.name in (CHECKPOINTS, LEVEL):
        return lambda: _checkpoint(path)
    if inside[0] == "saes" and path.name == WEIGHTS:
        return lambda: _weights(path.parent)
    if inside[0] == "features" and path.suffix == ".json":
        return lambda: (Selection.load(path), _sealed_json(path))
    readers = {".json": _sealed_json, ".png": _picture, ".parquet": _table}
    return lambda: readers.get(path.suffix, _other)(path)


def _sealed_json(path: AnyPath) -> None:
    files.read_json(path, kind=DataError, what="a record of a run")
    if not is_sealed(path.read_bytes()):
        raise _UnprovenError("has no seal: another version or another program wrote it")


def _weights(folder: Path) -> None:
    """An SAE's weights against the hash in its settings; settings that are damaged themselves say nothing of them."""
    cfg = None
    with suppress(CheckpointError):
        cfg = files.read_json(folder / CFG, kind=CheckpointError, what="the settings of an SAE")
    ours = cfg.get("sae_forge") if isinstance(cfg, dict) else None
    if cfg is None or not isinstance(ours, dict) or "weights_sha256" not in ours:
        raise _UnprovenError(f"has no hash to be held against: {CFG} is damaged, missing, or of another program")
    load_sae(folder)


def _checkpoint(path: Path) -> None:
    """A file of a checkpoint against the hash in its state; a damaged state says nothing of the others."""
    try:
        verify_checkpoint(path.parent, STATE)
    except CheckpointError:
        if path.name == STATE:
            raise
        raise _UnprovenError(f"has no hash to be held against: {STATE} beside it is damaged") from None
    verify_checkpoint(path.parent, path.name)


def _picture(path: Path) -> None:
    """A PNG against the checksums of its chunks."""
    content, at = path.read_bytes(), len(_PNG)
    if content[:at] != _PNG:
        raise ValueError("it is no PNG")
    while at < len(content):
        length, kind = struct.unpack_from(">I4s", content, at)
        end = at + 8 + length
        if content[end : end + 4] != struct.pack(">I", zlib.crc32(content[at + 4 : end])):
            raise ValueError(f"its chunk {kind!r} at byte {at} does not have its checksum")
        at = end + 4
    if content[-8:-4] != b"IEND":
        raise ValueError("it ends early")


def _table(path: Path) -> None:
    """A parquet file, with the checksums of its pages where it has any."""
    pyarrow.parquet.read_table(path, page_checksum_verification=True)
    raise _UnprovenError("reads as a table; parquet does not prove its own footer")


def _other(path: Path) -> None:
    """A page or a list of frequencies under its seal; what else may lie there has none."""
    if path.suffix not in (".html", ".txt") or not is_sealed(path.read_bytes()):
        raise _UnprovenError("is not proven by any record")


def _refuse(words: str) -> None:
    raise _UnprovenError(words)


def _holds_shards(inside: tuple[str, ...]) -> bool:
    """Whether a folder is that of a corpus at a hook point, or of a window of it."""
    hidden = any(part.startswith(".") for part in inside)  # the rest of a window that was being deleted
    return not hidden and (*inside[:1], len(inside)) in (("shards", 3), ("windows", 5))


def _shard_checks(folder: AnyPath) -> Iterator[Check]:
    """Manifest, sidecars and shards of one corpus at one hook point: those that are there and those that should be."""
    manifest, there = None, {path.name: path for path in folder.iterdir()}
    if (folder / MANIFEST).exists():
        yield Check(folder / MANIFEST, lambda: Manifest.read(folder))
        with suppress(ShardError):
            manifest = Manifest.read(folder)
    numbers = {number for name in there if (number := shard_number(name)) is not None}
    for index in sorted(numbers | set(range(len(manifest.shards) if manifest else 0))):
        shard = folder / shard_name(index)
        sidecar = sidecar_path(folder, shard.name)
        yield Check(
            there.get(sidecar.name, sidecar), lambda at=index: _sidecar(folder, at, manifest, max(numbers, default=-1))
        )
        yield Check(there.get(shard.name, shard), lambda at=index: _shard(folder, at, manifest))


def _sidecar(folder: AnyPath, index: int, manifest: Manifest | None, last: int) -> None:
    path = sidecar_path(folder, shard_name(index))
    _require_known(index, manifest)
    if index == last and not path.exists() and manifest is None and not (folder / MANIFEST).exists():
        raise _UnprovenError("is not there yet: collecting stopped before it; the same command goes on")
    sidecar = Sidecar.read(folder, index)
    if manifest and (sidecar.shard, sidecar.fingerprint) != (manifest.shards[index], manifest.fingerprint):
        raise ShardError(f"{path} is not the one the manifest describes; restore it or collect again with --fresh")


def _shard(folder: AnyPath, index: int, manifest: Manifest | None) -> None:
    """Every block against the hashes in the sidecar; a sidecar that is damaged itself says nothing of its shard."""
    _require_known(index, manifest)
    try:
        sidecar = Sidecar.read(folder, index)
    except ShardError:
        if not (folder / shard_name(index)).exists():
            raise ShardError(f"{folder / shard_name(index)} is missing; collect again with --fresh") from None
        raise _UnprovenError("has no sidecar to be held against") from None
    ShardFile(folder, sidecar).verify()


def _absent(folder: AnyPath, *, others: bool) -> None:
    """Corpora are collected one after the other, so one that is not begun is no damage where others are."""
    if others:
        raise _UnprovenError("is not there: collecting stopped before it, or it was deleted")
    raise ShardError(f"{folder} is missing, and so is all else that was collected; bring it back or collect it again")


def _require_known(index: int, manifest: Manifest | None) -> None:
    if manifest and index >= len(manifest.shards):
        raise _UnprovenError("is unknown to the manifest; every reader ignores it")
