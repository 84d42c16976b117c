"""A folder on any store that fsspec reaches (``s3://``, ``gs://``, ``file://`` …), spoken to in the words of pathlib.

Only what shards need is here, each as one request that is tried again a bounded number of times. Nothing is renamed:
many stores cannot. A file gets its name by one put, which object stores make whole or not at all. Where a put can be
cut short, what follows it (a sidecar, a manifest) is missing, and ``files.is_there`` knows a record that was cut.

Credentials are for the implementation to find in its environment. They are in no URL that is accepted, and are taken
out of what a store says before it is repeated.
"""

import io
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

from sae_forge.errors import ConfigError, RemoteError
from sae_forge.store.retry import Patience
from sae_forge.store.secrets import scrubbed

Answer = TypeVar("Answer")

TRIES = 6
"""How often a request is made before it counts as failed."""
_PAUSE = 0.25
"""Seconds before the second try; each pause is twice the one before."""
_DEADLINE = 120.0
"""Seconds after which no further try begins."""
_SECONDS, _SLOWEST = 60.0, 2**20
"""What one request may take where the implementation can break it off: so long, and a second for so many bytes."""
_ENDS = 64 * 2**10
"""Bytes at either end of an uploaded file that are read back."""
_FINAL = (
    FileNotFoundError, PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError, NotImplementedError,
    ImportError, TypeError, ValueError, KeyError, AttributeError, RecursionError,
)  # fmt: skip
"""Answers that will not change by asking again."""

_SCHEME = re.compile(r"[a-z][a-z0-9+.:-]*://", re.IGNORECASE)
"""How a URL begins; a chain of them is one too, to be refused."""
_KINDS = {"link": stat.S_IFLNK, "directory": stat.S_IFDIR, "file": stat.S_IFREG}
"""What stores call what lies there; a pipe or a device has another name, and is none of these."""


def is_url(text: str) -> bool:
    """Whether this names a store rather than a folder of this machine."""
    return _SCHEME.match(text) is not None


def check_url(text: str, flag: str) -> None:
    """Refuse a URL that carries a secret, or is no plain place.

    Raises:
        ConfigError: never with the URL in it.
    """
    scheme, _, rest = text.partition("://")
    netloc, path = rest.partition("/")[::2]
    # held against the text with its %xx spelled out as well: an implementation will decode what looks harmless here
    wrong = {
        "a password (user:…@)": re.search(":.*@", plain := unquote(rest), re.DOTALL) is not None,
        "a colon that no port follows": re.search(r":(?!\d+$)", unquote(netloc)) is not None,
        "a parameter (;…)": ";" in plain,
        "a query or fragment (?… or #…)": "?" in text or "#" in text,
        "a chain of file systems (::)": "::" in text,
        "a character that cannot be printed": not text.isprintable() or not unquote(text).isprintable(),
        "a step up (..)": ".." in unquote(path).split("/"),
        "no place": not rest.strip("/."),
        "a relative folder (file:///… is an absolute one)": scheme.lower() in ("file", "local") and netloc != "",
    }
    for what, holds in wrong.items():
        if holds:
            raise ConfigError(
                f"{flag} holds {what}; give a plain URL such as s3://bucket/folder, and leave credentials to the "
                "environment variables or files of its fsspec implementation"
            )


def connect(url: str, local: Path) -> "RemotePath":
    """The folder at ``url``; nothing is asked of the store yet.

    Args:
        local: A folder of this machine that stands for it: files are made there before they are uploaded, and locks
            are held there.

    Raises:
        ConfigError: no installed implementation knows such a URL, or the URL carries a secret.
    """
    check_url(url, "the place of the shards")
    from fsspec.core import url_to_fs  # 0.1 s that no other command should wait for

    scheme, _, rest = url.partition("://")
    host, *steps = rest.split("/")
    url = "/".join([f"{scheme.lower()}://{host}", *(step for step in steps if step not in ("", "."))])
    try:
        fs, path = url_to_fs(url)  # and no setting: some pass theirs on to libraries that know none
    except ImportError as error:
        raise ConfigError(f"{url} needs a library that is not installed: {scrubbed(str(error))}") from None
    except OSError as error:  # some ask their server for a session
        raise RemoteError(f"{url} could not be reached ({_told(error)}); check the URL and the network") from None
    except Exception as error:  # noqa: BLE001 (every implementation has errors of its own)
        raise ConfigError(f"{url} cannot be used ({_told(error)}); see fsspec's list of protocols") from None
    return RemotePath(url, local, fs, path.rstrip("/"))


@dataclass(frozen=True)
class RemotePath:
    """A file or folder of a store; two are equal when their URLs are.

    Raises:
        RemoteError: from any method that asks the store, when it refused, or failed as often as was tried.
    """

    url: str
    local: Path = field(compare=False)
    """What stands for it on this machine."""
    _fs: Any = field(compare=False, repr=False)
    _path: str = field(compare=False, repr=False)
    _listed: dict[str, Any] | None = field(default=None, compare=False, repr=False)
    """What a listing said of it, if it comes from one."""

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> "RemotePath":
        return RemotePath(f"{self.url}/{name}", self.local / name, self._fs, f"{self._path}/{name}")

    @property
    def name(self) -> str:
        """The last part."""
        return self.url.rpartition("/")[2]

    @property
    def parent(self) -> "RemotePath":
        """The folder above."""
        above = self._path.rpartition("/")[0]
        return RemotePath(self.url.rpartition("/")[0], self.local.parent, self._fs, above)

    def with_suffix(self, suffix: str) -> "RemotePath":
        """The same name with another ending."""
        return self.parent / Path(self.name).with_suffix(suffix).name

    # ---- what is there --------------------------------------------------------------------------

    def stat(self) -> os.stat_result:
        """Its kind and length; all else is 0.

        Raises:
            FileNotFoundError: nothing has this name.
        """
        entry = self._listed if self._listed is not None else self._ask("looked up", self._look)
        kind = stat.S_IFLNK if entry.get("islink") else _KINDS.get(entry["type"], stat.S_IFIFO)
        return os.stat_result((kind, 0, 0, 1, 0, 0, entry.get("size") or 0, 0, 0, 0))

    lstat = stat

    def exists(self) -> bool:
        """Whether anything has this name."""
        return self._mode() != 0

    def is_file(self) -> bool:
        """Whether a file has this name."""
        return stat.S_ISREG(self._mode())

    def is_dir(self) -> bool:
        """Whether it is a folder; on an object store, whether any name begins with it."""
        return stat.S_ISDIR(self._mode())

    def _mode(self) -> int:
        """Its kind, 0 when nothing has this name."""
        try:
            return self.stat().st_mode
        except FileNotFoundError:
            return 0

    def iterdir(self) -> Iterator["RemotePath"]:
        """What lies in this folder; nothing when there is no such folder."""

        def once() -> list[dict[str, Any]]:
            self._fs.invalidate_cache(
                self._path
            )  # fsspec would answer from what it listed before, and others write too
            answer = self._call("ls", self._path, detail=True)
            entries = [entry for entry in answer if isinstance(entry, dict)] if isinstance(answer, list) else []
            named = all(isinstance(entry.get("name"), str) for entry in entries)
            if not isinstance(answer, list) or len(entries) < len(answer) or not named:
                raise TypeError("the store did not answer with a list of what is there")
            return entries

        try:
            entries = self._ask("listed", once)
        except FileNotFoundError:
            return
        for entry in entries:
            name = entry["name"].rstrip("/").rpartition("/")[2]
            if entry["name"].strip("/") != self._path.strip("/") and name not in ("", ".", ".."):
                yield replace(self / name, _listed=entry if _says_all(entry) else None)

    def glob(self, pattern: str) -> Iterator["RemotePath"]:
        """What lies in this folder under names like this; a slash goes one folder down."""
        first, _, rest = pattern.partition("/")
        for path in self.iterdir():
            if fnmatchcase(path.name, first):
                yield from path.glob(rest) if rest else (path,)

    # ---- reading --------------------------------------------------------------------------------

    def read(self, begin: int, end: int) -> bytes:
        """Bytes ``begin`` to ``end``; fewer only where the file ends before.

        Raises:
            FileNotFoundError: nothing has this name.
        """
        return self.read_many([(begin, end)])[0]

    def read_many(self, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        """The bytes of each of these spans, all asked for at once where the implementation can."""
        asked = [(begin, end) for begin, end in spans if begin < end]
        if not asked:
            return [b""] * len(spans)
        begins, ends = (list(bounds) for bounds in zip(*asked, strict=True))
        paths = [self._path] * len(asked)

        def once() -> list[bytes]:
            seconds = _SECONDS + (sum(ends) - sum(begins)) / _SLOWEST
            answers = self._call("cat_ranges", paths, begins, ends, on_error="raise", seconds=seconds)
            parts = []
            for answer, (begin, end) in zip(answers, asked, strict=True):
                parts.append(content := _content(answer)[: end - begin])
                # short at the end of the file is right, short before it is a connection that broke without an error
                if begin + len(content) < end <= (size := self._look()["size"]):
                    raise OSError(f"{len(content)} bytes came of {end - begin} at {begin}, in a file of {size}")
            return parts

        parts = iter(self._ask("read", once))
        return [next(parts) if begin < end else b"" for begin, end in spans]

    def read_bytes(self) -> bytes:
        """All of it."""
        return self.read(0, self.stat().st_size)

    def open(self, mode: str) -> io.BufferedReader:
        """A file to be read, some KiB at a request."""
        assert mode == "rb"
        return io.BufferedReader(_Raw(self), 16 * 2**10)

    # ---- writing --------------------------------------------------------------------------------

    def put(self, file: Path) -> None:
        """Upload ``file`` under this name; its length and both its ends are then as they are here.

        A file that was there is replaced: on an object store at once, elsewhere perhaps not. What is no file is not:
        a store would write through a link.
        """
        size = file.stat().st_size
        if (mode := self._mode()) and not stat.S_ISREG(mode):
            raise RemoteError(
                f"{self} is a link, a folder or a device, and no file that could be replaced; remove it, or choose "
                "another --shards_dir"
            )

        def once() -> None:
            if not getattr(self._fs, "async_impl", False):  # file systems; of an object store it would make a bucket
                self._fs.makedirs(self._path.rpartition("/")[0], exist_ok=True)
            self._call("put_file", str(file), self._path, seconds=_SECONDS + size / _SLOWEST)
            # some stores answer a put that was cut short as a good one, so what lies there is looked at
            if (arrived := self._look()["size"]) != size:
                raise OSError(f"{arrived} bytes arrived of {size}")
            with file.open("rb") as handle:
                for begin, end in ((0, min(size, _ENDS)), (max(0, size - _ENDS), size)):
                    handle.seek(begin)
                    stored = b"" if begin == end else _content(self._call("cat_file", self._path, start=begin, end=end))
                    if handle.read(end - begin) != stored:
                        raise OSError(f"what arrived differs between bytes {begin} and {end}")

        try:
            self._ask("written", once)
        except FileNotFoundError:
            raise RemoteError(f"{self} could not be written: there is no such bucket or folder") from None

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete this file."""
        try:
            self._ask("deleted", lambda: self._call("rm_file", self._path))
        except FileNotFoundError:
            if not missing_ok:
                raise

    # ---- requests -------------------------------------------------------------------------------

    def _look(self) -> dict[str, Any]:
        for listed in (self._path, self._path.rpartition("/")[0]):  # its own entry, and that in its folder's listing
            self._fs.invalidate_cache(listed)
        if (is_link := getattr(self._fs, "islink", None)) is not None and is_link(self._path):
            return {"type": "link", "size": 0}  # of one that leads nowhere, info says that nothing is there
        entry = self._call("info", self._path)
        if not _says_all(entry):
            raise OSError("the store did not say what it is and how long")
        return entry

    def _call(self, name: str, *args: Any, seconds: float = _SECONDS, **settings: Any) -> Any:
        """One request, broken off after so many seconds by an implementation that can be."""
        # fsspec's synchronous methods take no time limit; the coroutine behind one, run on its loop, does
        if getattr(self._fs, "async_impl", False) and hasattr(self._fs, f"_{name}"):
            from fsspec.asyn import sync

            return sync(self._fs.loop, getattr(self._fs, f"_{name}"), *args, timeout=seconds, **settings)
        return getattr(self._fs, name)(*args, **settings)

    def _ask(self, done: str, request: Callable[[], Answer]) -> Answer:
        """The answer to a request, made again while it fails in a way that may pass.

        Raises:
            FileNotFoundError: nothing has this name, or what should be a folder above it is none.
            RemoteError: any other failure.
        """
        until = time.monotonic() + _DEADLINE  # from now, not from the first failure: a request may hang for minutes
        patience = Patience(tries=TRIES, first=_PAUSE, longest=_DEADLINE, seconds=_DEADLINE, until=until)
        wait: float | None = 0.0
        said, advice = "", "check the network and the credentials of its store"
        while wait is not None:
            time.sleep(wait)
            try:
                return request()
            except (FileNotFoundError, NotADirectoryError) as error:
                raise FileNotFoundError(_told(error)) from None
            except Exception as error:  # noqa: BLE001 (every implementation has errors of its own)
                said, wait = _told(error), patience.next_wait()
                if isinstance(error, _FINAL):
                    advice = "check the URL and what its credentials allow"
                    break
        raise RemoteError(f"{self} could not be {done} ({said}); {advice}, and run the same command again")


AnyPath = Path | RemotePath
"""Where shards are: on this machine or on a store."""


def beside(path: AnyPath) -> Path:
    """The path on this machine where what goes to ``path`` is made ready."""
    return path.local if isinstance(path, RemotePath) else path


def _says_all(entry: Any) -> bool:
    """Whether a store told the kind of something and, of a file, its length."""
    return isinstance(entry, dict) and "type" in entry and (entry["type"] != "file" or type(entry.get("size")) is int)


def _content(answer: Any) -> bytes:
    """What a store answered for bytes; not every version of fsspec raises an error that it was answered."""
    if isinstance(answer, Exception):
        raise answer
    if not isinstance(answer, bytes | bytearray | memoryview):
        raise TypeError(f"the store answered {type(answer).__name__} for bytes")
    return bytes(answer)


class _Raw(io.RawIOBase):
    """A remote file as Python reads files."""

    def __init__(self, path: RemotePath) -> None:
        super().__init__()
        self._path, self._size, self._at = path, path.stat().st_size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        content = self._path.read(self._at, min(self._at + len(buffer), self._size))
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)


def _told(error: Exception) -> str:
    """An error of a store in its own words, as far as they may be repeated."""
    return f"{type(error).__name__}: {scrubbed(str(error))}".rstrip(": ")
