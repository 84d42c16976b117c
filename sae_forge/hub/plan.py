"""What a push would upload: named files only, each read once through no link, without corpus text or local paths.

A folder walk uploads whatever lies there, through links too. Here a file goes out because it is on this list:
``<hook point>/{cfg.json,sae_weights.safetensors,features.json}``, ``eval.json``, ``plots/*.png``, and what is written
for the occasion: ``README.md`` and ``config.json``.
"""

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from sae_forge import builtin
from sae_forge.errors import CheckpointError, ConfigError, DataError, ForgeError
from sae_forge.sae.store import CFG, WEIGHTS
from sae_forge.store import files, records
from sae_forge.store.seal import readable_json
from sae_forge.store.weights import require_same

FEATURES = "features.json"
REPORT = "eval.json"
MANIFEST = "config.json"
"""At the root, because the Hub counts downloads by this name; it also lists what a push wrote."""
CARD = "README.md"

TOKEN = re.compile(rb"hf_[A-Za-z0-9]{20,}")
"""How a Hub token looks."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PLOT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,100}\.png")
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Upload:
    """One file as it will lie in the repository."""

    path: str
    content: bytes | Path
    """Bytes of a small file; the place of a large one."""
    size: int
    sha256: str
    """How the Hub knows a large file."""
    blob: str
    """Git's name of a small one."""

    @classmethod
    def of(cls, path: str, content: bytes) -> "Upload":
        """A file held in memory."""
        # git hashes "blob", a blank, the length in decimal, a null byte, then the content
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
        return cls(path, content, len(content), hashlib.sha256(content).hexdigest(), blob.hexdigest())

    @classmethod
    def at(cls, path: str, source: Path, kind: type[ForgeError]) -> "Upload":
        """A file too large to hold, hashed where it lies."""
        with opened(source, kind) as file:
            size = os.fstat(file.fileno()).st_size
            sha256, blob = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
            while chunk := file.read(2**20):
                sha256.update(chunk)
                blob.update(chunk)
        return cls(path, source, size, sha256.hexdigest(), blob.hexdigest())

    def is_stored_as(self, name: str | None) -> bool:
        """Whether the Hub's name of a file, git's or that of large storage, is the name of this content."""
        return name in (self.sha256, self.blob)


@contextmanager
def opened(path: Path, kind: type[ForgeError]) -> Iterator[BinaryIO]:
    """A regular file open for reading; never what a link points to.

    Raises:
        kind: it is missing, a link, or no regular file.
    """
    try:
        # O_NOFOLLOW and a look at the open file, since between a check of the name and a read it could be exchanged;
        # O_NONBLOCK, or opening a pipe would wait for somebody to write into it
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        reason = "a link, and push follows none" if path.is_symlink() else (error.strerror or str(error))
        raise kind(f"{path} cannot be published: {reason}") from None
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise kind(f"{path} cannot be published: it is not a regular file")
        yield file


def public_name(model: str, weights: str) -> str:
    """What a model is called in public: built in, or on the Hub; nothing for one that lay in a folder.

    A folder goes by its last name, which has no owner in front, and ``gpt2`` may hold anything. A name without an owner
    is the Hub's only where the model's weights are known by a commit.
    """
    if builtin.model_folder(model) is not None or _HUB_ID.fullmatch(model) or _COMMIT.fullmatch(weights):
        return model
    return ""


def sae_files(folder: Path, inside: str, model: str) -> tuple[dict[str, Any], list[Upload]]:
    """The SAE's settings without paths, and its two files for the repository folder ``inside``.

    Args:
        model: The public name of its language model, under which it is published; nothing where it has none.

    Raises:
        CheckpointError: a file is missing, a link, or not what the settings say it is.
    """
    cfg, content = _record(folder / CFG, CheckpointError, "the settings of an SAE")
    weights = Upload.at(f"{inside}/{WEIGHTS}", folder / WEIGHTS, CheckpointError)
    expected = cfg.get("sae_forge", {}).get("weights_sha256")
    if expected is not None and weights.sha256 != expected:
        raise CheckpointError(f"{folder / WEIGHTS} is damaged: its hash is not the one in {CFG}")
    public = _public(cfg)
    ours = public.get("sae_forge")
    provenance = ours.get("provenance") if isinstance(ours, dict) else None
    for about, name in ((public.get("metadata"), "model_name"), (provenance, "model")):
        if isinstance(about, dict) and name in about:
            about[name] = model
    # byte for byte where nothing is taken out, so that the file's hash stays the one the run knows
    return public, [Upload.of(f"{inside}/{CFG}", content if public == cfg else readable_json(public)), weights]


def selection_file(path: Path, inside: str, weights: str, *, contexts: bool) -> Upload:
    """The selection as it will be published, without corpus text unless ``contexts``.

    Args:
        weights: sha256 of the SAE's weights file, which the selection must be about.

    Raises:
        DataError: it is no selection, or one of another SAE.
    """
    record, _ = _record(path, DataError, "a selection of latents")
    latents = record.get("latents")
    if not isinstance(latents, list) or not all(isinstance(entry, dict) and "index" in entry for entry in latents):
        raise DataError(f"{path} is not a selection of latents; make one with: sae-forge features")
    require_same(
        str(record.get("weights", "")),
        weights,
        f"{path} was made for an SAE",
        "this one",
        kind=DataError,
        advice="make one with: sae-forge features",
    )
    return Upload.of(f"{inside}/{FEATURES}", readable_json(_public(record, contexts=contexts)))


def report_files(folder: Path) -> tuple[dict[str, Any], list[Upload]]:
    """The report's numbers, and its files: ``eval.json`` and the plots beside it.

    Raises:
        DataError: it is no report.
    """
    record, _ = _record(folder / REPORT, DataError, "a report of eval")
    public, uploads = _public(record), {}
    places = [folder] if (folder / "plots").is_symlink() else [folder, folder / "plots"]
    for path in sorted(path for place in places for path in place.glob("*.png")):
        if _PLOT.fullmatch(path.name) and path.is_file() and not path.is_symlink():
            with opened(path, DataError) as file:
                content = file.read()
            if content.startswith(_PNG):
                uploads[path.name] = Upload.of(f"plots/{path.name}", content)
    return public, [Upload.of(REPORT, readable_json(public)), *uploads.values()]


def refuse_secrets(uploads: list[Upload], token: str | None) -> None:
    """Raise ConfigError when a file holds something that looks like a Hub token, or is the one in use."""
    for upload in uploads:
        content = upload.content
        if isinstance(content, bytes) and (TOKEN.search(content) or (token is not None and token.encode() in content)):
            raise ConfigError(f"{upload.path} holds what looks like a Hub token; remove it there and push again")


def _public(value: Any, *, contexts: bool = False) -> Any:
    """The same JSON, a path of this machine reduced to its last part, and without snippets unless ``contexts``."""
    if isinstance(value, dict):
        hidden = () if contexts else ("snippets",)
        return {key: [] if key in hidden else _public(child, contexts=contexts) for key, child in value.items()}
    if isinstance(value, list):
        return [_public(child, contexts=contexts) for child in value]
    if isinstance(value, str) and value.startswith(("/", "~/", "file:")):
        return Path(value).name
    return value


def _record(path: Path, kind: type[ForgeError], what: str) -> tuple[dict[str, Any], bytes]:
    """A JSON object and its bytes, read once: what is checked is what goes out."""
    with opened(path, kind) as file:
        content = file.read(files.MAX_JSON_BYTES + 1)
    return records.read_content(dict[str, Any], content, path, error=kind, what=what), content
