"""What can be made again from other files, and is kept so that it need not be: it may be deleted at any time."""

import os
import time
from contextlib import suppress
from pathlib import Path

from sae_forge.errors import DataError, ResourceError
from sae_forge.store import files

_SETTLED = 2.0
"""Seconds after which a file that is written again shows it by its times."""


def cache_folder() -> Path:
    """``$SAE_FORGE_CACHE``, else ``sae_forge`` in the user's cache folder."""
    if named := os.environ.get("SAE_FORGE_CACHE"):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "sae_forge"


def known_sha256(path: Path) -> str:
    """sha256 of a file that is read only if it was not yet, or if anything was written to it since.

    That is told by its place, length and times, so damage that a disk does by itself goes unseen: a file whose content
    is about to be read whole is hashed with ``files.file_sha256``.
    """
    stat = path.stat()
    identity = [str(path.resolve()), stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
    record = cache_folder() / "hashes" / f"{files.digest(identity)}.json"
    try:
        told = files.read_json(record, kind=DataError, what="the hash of a file", proven=True)
        if isinstance(told, dict) and isinstance(told.get("content"), str):
            return told["content"]
    except DataError:  # not there, or damaged
        pass
    sha256 = files.file_sha256(path)
    if time.time() - stat.st_ctime > _SETTLED:
        with suppress(ResourceError):  # no room, or none of ours
            files.publish_json(record, {"content": sha256})
    return sha256
