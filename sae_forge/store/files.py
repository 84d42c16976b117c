"""Files that are whole or absent: the one publish helper, strict JSON, hashes, locks and disk checks.

Every final name in a run folder is created here and nowhere else: write ``.name.part``, fsync, chmod,
rename, fsync the folder. A process killed at any point leaves either the old file or the new one.

JSON is published under its seal (``seal.py``), and :func:`read_json` refuses a file that its seal contradicts.

On a store that fsspec reaches there is no rename: a file is made on this machine and uploaded under its final name.
"""

import fcntl
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

from sae_forge.errors import ConfigError, ForgeError, ResourceError
from sae_forge.store.remote import AnyPath, RemotePath, beside
from sae_forge.store.seal import is_sealed, sealed_json

MAX_JSON_BYTES = 16 * 2**20
MAX_JSON_DEPTH = 32
MAX_JSON_CONTAINERS, MAX_JSON_VALUES = 2**18, 3 * 2**19
"""What a file may hold of lists and objects, and of values: in memory each is many times its length in the file."""
_READING_UMASK = Lock()


# ---- publish ------------------------------------------------------------------------------------


@contextmanager
def publish(path: AnyPath) -> Iterator[Path]:
    """Yield a part file to write; it becomes ``path`` durably when the block ends without an error.

    On an error or an interrupt the part file is removed and ``path`` keeps what it had; on a store that makes a name
    before the whole file is there, ``path`` may be cut short.

    Raises:
        ResourceError: the disk is full or the folder cannot be written.
        RemoteError: the store did not take it.
    """
    here = beside(path)
    # in the same folder, as a rename cannot cross file systems; one name for all tries, so a killed one leaves one file
    part = here.with_name(f".{here.name}.part")
    _make_folder(here.parent)
    try:
        yield part
        if isinstance(path, RemotePath):
            path.put(part)
        else:
            # the content must be durable before its name is: some file systems write a rename first, and a power cut
            # would leave the name over nothing; the name itself is durable once its folder is
            _sync_file(part)
            part.replace(here)
            _sync_folder(here.parent)
    except OSError as error:
        raise _resource_error(here, error) from error
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def publish_folder(path: Path) -> Iterator[Path]:
    """Yield a scratch folder to fill; all of it becomes ``path`` at once when the block ends.

    ``path`` must not exist yet. Files inside are written plainly: the rename is what publishes them.
    """
    _make_folder(path.parent)
    part = scratch_of(path)
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir()
        yield part
        for file in sorted(part.rglob("*")):
            if file.is_file():
                _sync_file(file)
        _sync_folder(part)
        part.rename(path)
        _sync_folder(path.parent)
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        if isinstance(error, OSError):
            raise _resource_error(path, error) from error
        raise


def scratch_of(path: Path) -> Path:
    """Where a folder is filled before it is published; for those who help to fill it."""
    return path.with_name(f".{path.name}.part")


def discard_folder(path: Path) -> None:
    """Remove a published folder, or the rest of one: it is gone under its name before the first of its files is.

    Raises:
        ResourceError: the system did not do it.
    """
    part = scratch_of(path)
    discard_rest(part)  # a rename onto a folder that holds something fails
    try:
        if path.exists():
            path.rename(part)
    except OSError as error:
        raise _resource_error(path, error) from error
    discard_rest(part)


def discard_rest(part: Path) -> None:
    """Remove what a killed :func:`discard_folder` or :func:`publish_folder` left under its scratch name.

    Raises:
        ResourceError: the system did not do it.
    """
    try:
        shutil.rmtree(part)
    except FileNotFoundError:
        return
    except OSError as error:
        raise _resource_error(part, error) from error


def publish_bytes(path: AnyPath, content: bytes) -> None:
    """Write ``content`` so that ``path`` is never seen half-written."""
    with publish(path) as part:
        part.write_bytes(content)


def publish_json(path: AnyPath, value: Any) -> None:
    """Write ``value`` as :func:`sealed_json`."""
    publish_bytes(path, sealed_json(value))


def publish_once(path: Path, value: Any) -> None:
    """Write JSON beside what other processes write, unless one of them has written it."""
    # files are made under one name for all tries, so two processes at one of them would write into each other's
    with locked(path.parent, wait=True):
        if not path.exists():
            publish_json(path, value)


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it, each durable in the one above."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]  # the deepest first
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for made in reversed(missing):
            _sync_folder(made.parent)
    except OSError as error:
        raise _resource_error(folder, error) from error


def _sync_file(path: Path) -> None:
    with _READING_UMASK:  # it can only be read by setting it: two threads at once would leave the other's
        os.umask(mask := os.umask(0o022))
    with path.open("rb") as file:
        # what writes parts for us may have made them 0600, as safetensors and tempfile do: who may read a folder may
        # read every file in it
        os.fchmod(file.fileno(), 0o666 & ~mask)
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _resource_error(path: Path, error: OSError) -> ResourceError:
    reason = error.strerror or str(error)
    return ResourceError(
        f"could not write {path}: {reason}; free some space, or choose another --run_dir (for shards --shards_dir)"
    )


# ---- strict JSON --------------------------------------------------------------------------------


def read_json(path: AnyPath, *, kind: type[ForgeError], what: str, proven: bool = False) -> Any:
    """Read JSON that may come from anyone: capped in size and depth, no duplicate keys, no NaN.

    Args:
        kind: The error to raise; its message names the file.
        what: What the file should be ("a shard manifest"), for that message.
        proven: It is only ever written here, so a link and a file that nothing proves are refused too. Records of
            version 0.1 hold the sha256 of their own canonical form; they are held against it and read without it.
    """
    if proven:
        require_plain(path, kind=kind, what=what)
    try:
        status = path.stat()  # before it is opened: opening a pipe would wait for ever
        if not stat.S_ISREG(status.st_mode):
            raise kind(f"{path} is not a regular file, so it cannot be {what}")
        if status.st_size > MAX_JSON_BYTES:
            raise kind(f"{path} is larger than {MAX_JSON_BYTES} bytes, so it cannot be {what}")
        content = path.read_bytes() if isinstance(path, Path) else path.read(0, status.st_size)
        has_seal, value = is_sealed(content), parse_json(content)
        if proven and isinstance(value, dict) and "sha256" in value:
            if value.pop("sha256") != digest(value):
                raise ValueError("it is damaged: its content does not match its sha256")
        elif proven and not has_seal:
            raise ValueError("it has lost its seal, so nothing proves it")
        return value
    except FileNotFoundError:
        raise kind(f"{path} is missing; it should be {what}") from None
    except OSError as error:
        raise kind(f"{path} cannot be read as {what}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise kind(f"{path} is not {what}: {error}") from error


def parse_json(content: bytes) -> Any:
    """Parse strictly.

    Raises:
        ValueError: bad UTF-8, bad JSON, a duplicate key, NaN or Infinity; longer, deeper, or more values than the caps.
    """
    if len(content) > MAX_JSON_BYTES:
        raise ValueError(f"it is larger than {MAX_JSON_BYTES} bytes")
    # counted before anything is built; marks inside texts count too, which only makes the caps stricter
    containers, values = (sum(map(content.count, marks)) for marks in ((b"[", b"{"), (b",", b":")))
    if containers > MAX_JSON_CONTAINERS or values > MAX_JSON_VALUES:
        raise ValueError(f"it holds more than {MAX_JSON_CONTAINERS} lists and objects, or {MAX_JSON_VALUES} values")
    value = json.loads(content.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    _check_depth(value)
    return value


def is_there(record: AnyPath) -> bool:
    """Whether a JSON object was published under this name; one that an upload was cut off in lacks its last brace."""
    if isinstance(record, Path):
        return record.exists()
    try:
        size = record.stat().st_size
        return size > MAX_JSON_BYTES or record.read(0, size).endswith(b"\n}\n")  # a giant is for its reader to refuse
    except FileNotFoundError:
        return False


def require_plain(path: AnyPath, *, kind: type[ForgeError], what: str) -> None:
    """Refuse what a link points to, for files that are only ever written here, where they lie."""
    if isinstance(path, Path) and path.is_symlink():  # of a store, read_json sees it
        raise kind(f"{path} is a link; {what} is a plain file where it was written")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for key, item in pairs:
        if key in value:
            raise ValueError(f"the key {key!r} appears twice")
        value[key] = item
    return value


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _check_depth(value: Any, depth: int = 0) -> None:
    if depth > MAX_JSON_DEPTH:
        raise ValueError(f"nested deeper than {MAX_JSON_DEPTH} levels")
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_depth(child, depth + 1)


# ---- hashes -------------------------------------------------------------------------------------


def canonical(value: Any) -> bytes:
    """The one byte string that stands for a JSON value, to be hashed."""
    # names of artefacts and hashes in manifests hang on every blank of it: another form would orphan what is on disk
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def digest(value: Any) -> str:
    """sha256 of the canonical JSON, in hex."""
    return hashlib.sha256(canonical(value)).hexdigest()


def short_hash(value: Any) -> str:
    """The first 8 hex digits of :func:`digest`: enough to tell two settings apart in a name."""
    return digest(value)[:8]


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- folders ------------------------------------------------------------------------------------


@contextmanager
def locked(place: AnyPath, *, wait: bool = False) -> Iterator[None]:
    """Hold a folder for one writer; a killed holder's lock vanishes with its process.

    A store knows no locks: there it is the folder beside it that is held, so only processes that share the run folder
    notice one another.

    Args:
        wait: For the other process, which will not be long, instead of refusing.

    Raises:
        ConfigError: another process is writing there.
        ResourceError: nothing can be written there.
    """
    folder = beside(place)
    _make_folder(folder)
    try:
        # flock and no lock file alone: the kernel drops it with its holder, so none is ever stale
        handle = os.open(folder / ".lock", os.O_CREAT | os.O_RDWR, 0o666)
    except OSError as error:
        raise _resource_error(folder, error) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise ConfigError(f"another process is writing {place}; wait for it or choose another --run_dir") from None
    try:
        yield
    finally:
        os.close(handle)  # the file stays: were it removed, one could hold the old file and another a new one


def require_disk(folder: Path, need: int) -> None:
    """Refuse before writing what the disk cannot hold.

    Args:
        need: Bytes about to be written.

    Raises:
        ResourceError: names the folder, the bytes needed and the bytes free.
    """
    standing = folder  # the disk is asked of a folder that is there; this one may not be yet
    while not standing.exists():
        standing = standing.parent
    free = shutil.disk_usage(standing).free
    if free < need:
        raise ResourceError(
            f"{folder} needs {need / 1e9:.2f} GB and the disk has {free / 1e9:.2f} GB free ({need} and {free} bytes); "
            "lower --max_tokens, use --storage_dtype bf16 or int8, or choose another --run_dir"
        )
