"""Several SAEs by one name: a list with commas, a glob, a folder of some, or a pattern over a Hub repository."""

import os
import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from glob import glob, has_magic
from itertools import islice, takewhile
from pathlib import Path, PurePosixPath

from sae_forge.config.model import expanded
from sae_forge.errors import CheckpointError, ConfigError
from sae_forge.sae import directory
from sae_forge.sae.formats import table
from sae_forge.sae.released import Reference, listed
from sae_forge.store.runs import POINTER

MOST = 64
"""SAEs of one pattern; more are taken for a slip."""
SHOWN = 12
_MAX_LISTED = 20_000
_PATTERN = re.compile(r"(?P<place>[\w.-]+/[\w.-]+(?:@[\w./-]+)?):(?P<path>[\w.,:=+/*?\[\]!-]+)")
_OF_RELEASE = re.compile(r"[\w.-]+:[\w.,:=+/*?\[\]!-]+")


def named_by(text: str) -> tuple[str, ...]:
    """What ``--sae`` stands for: names that each stand for one SAE, in the order that people count in.

    Raises:
        ConfigError: a pattern that nothing fits (says what is near), or that too much does (says what).
        RemoteError: the Hub refused, does not have the repository, or cannot be reached.
    """
    saes = tuple(dict.fromkeys(name for part in _parts(text) for name in _of(part)))
    if len(saes) > MOST:
        raise ConfigError(f"--sae {text} stands for {len(saes)} SAEs, and {MOST} are the most: {_shown(saes)}")
    return saes


def in_order(names: Iterable[str]) -> list[str]:
    """Sorted with numbers as numbers: ``average_l0_59`` before ``average_l0_142``."""

    def key(name: str) -> list[tuple[bool, int | str]]:
        parts = filter(None, re.split(r"(\d+)", name))
        return [(False, int(part)) if part.isdecimal() else (True, part) for part in parts]

    return sorted(names, key=key)


def _parts(text: str) -> list[str]:
    """The names between commas; a comma may stand in a name too."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if len(parts) < 2 or _is_there(text) or not all(map(_is_name, parts)):
        return [text]
    return parts


def _is_name(part: str) -> bool:
    hub = _PATTERN.fullmatch(part) or _OF_RELEASE.fullmatch(part)
    return bool(hub) or has_magic(part) or _is_there(part)


def _is_there(name: str) -> bool:
    return os.path.exists(expanded(name))  # noqa: PTH110 (which has no error for a name longer than any file's)


def _of(part: str) -> list[str]:
    path = expanded(part)
    if _is_there(part):
        return _below(path) or [part]
    if not has_magic(part):
        return [part]
    if here := glob(str(path)):  # noqa: PTH207 (a pattern that may be absolute)
        return _fitting(part, [name for name in here if _is_sae(Path(name))], here)
    if (read := _PATTERN.fullmatch(part)) is not None:
        return _in_repository(part, read["place"], read["path"])
    if _OF_RELEASE.fullmatch(part) and directory.is_installed():
        names = [entry.name for entry in directory.entries()]
        return _fitting(part, [name for name in names if fnmatchcase(name, part)], names)
    raise ConfigError(f"--sae {part} fits nothing here, and is no pattern of the form owner/name:folder/* over the Hub")


def _below(path: Path) -> list[str]:
    """The SAEs of a folder that is none itself, if they are several."""
    if not path.is_dir() or _is_sae(path):
        return []
    every = islice((one for one in path.rglob("*") if one.is_file()), _MAX_LISTED)
    names = [one.relative_to(path).as_posix() for one in every]
    inside = {str(path / PurePosixPath(name).parent) for name in names if PurePosixPath(name).name == POINTER}
    inside |= {str(path / name) for name in _saes_among(names)}
    return in_order(inside) if len(inside) > 1 else []


def _is_sae(path: Path) -> bool:
    """Whether a file or folder is one SAE, read or not."""
    if (path / POINTER).is_file():
        return True
    try:
        return table.on_disk(path) is not None
    except CheckpointError:  # several, or a format that is not read: the file says it when it is opened
        return path.is_file()


def _in_repository(part: str, place: str, path: str) -> list[str]:
    """The SAEs of a Hub repository whose folders begin as the pattern says, one name of it for each level."""
    wanted = path.strip("/").split("/")
    fixed = list(takewhile(lambda level: not has_magic(level), wanted))
    repo, _, revision = place.partition("@")
    names = listed(Reference(repo, "/".join(fixed), revision or None), _MAX_LISTED)
    saes = _saes_among(names)
    fits = [sae for sae in saes if all(map(fnmatchcase, sae.split("/"), wanted)) and sae.count("/") + 1 >= len(wanted)]
    return _fitting(part, [f"{place}:{sae}" for sae in fits], [f"{place}:{sae}" for sae in saes])


def _saes_among(names: Sequence[str]) -> list[str]:
    """The folders of the SAEs that these files are of; of several in one folder the files."""
    by_file = table.matching(names)
    folders = [folder for _, folder in by_file.values()]
    return [folder if folders.count(folder) == 1 and folder != "." else name for name, (_, folder) in by_file.items()]


def _fitting(part: str, fits: Sequence[str], there: Sequence[str]) -> list[str]:
    if fits:
        return in_order(fits)
    if not there:
        raise ConfigError(f"--sae {part}: there is no SAE of a format that is read ({table.known()})")
    fixed = len(re.split(r"[*?\[]", part)[0])
    near = sorted(in_order(there), key=lambda name: -_alike(name, part[: fixed + 20]))
    raise ConfigError(f"--sae {part} fits none of the {len(there)} there are; the nearest: {_shown(near)}")


def _alike(name: str, part: str) -> int:
    """Characters with which both begin."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(name, part, strict=False)))


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" … and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
