"""The formats that are read, in the order they are tried; a new one is a file here and a line in ``FORMATS``."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from sae_forge.errors import CheckpointError, ConfigError
from sae_forge.sae.formats.dictionary_learning import DICTIONARY_LEARNING
from sae_forge.sae.formats.format import Format, Found
from sae_forge.sae.formats.gemma_scope import GEMMA_SCOPE
from sae_forge.sae.formats.gemma_scope_2 import GEMMA_SCOPE_2
from sae_forge.sae.formats.llama_scope import LLAMA_SCOPE, LLAMA_SCOPE_R1
from sae_forge.sae.formats.refused import REFUSED
from sae_forge.sae.formats.saelens import SAELENS
from sae_forge.sae.formats.single_pickles import DEEPSEEK_R1, GOODFIRE, INLP, QWEN_SCOPE
from sae_forge.sae.formats.sparsify import SPARSIFY

FORMATS: tuple[Format, ...] = (
    SAELENS, GEMMA_SCOPE, GEMMA_SCOPE_2, SPARSIFY, DICTIONARY_LEARNING, LLAMA_SCOPE, LLAMA_SCOPE_R1, QWEN_SCOPE,
    GOODFIRE, DEEPSEEK_R1, INLP,
)  # fmt: skip

WRITTEN: tuple[Format, ...] = tuple(entry for entry in FORMATS if entry.writer is not None)
"""Those that are written too."""

BY_NAME: dict[str, Format] = {entry.name: entry for entry in (*FORMATS, *REFUSED)}

TENSORS = (".safetensors", ".npz", ".pt", ".pth", ".bin")
"""Endings of files that may hold weights."""
_MAX_LISTED = 10_000


def matching(names: Iterable[str], only: str | None = None) -> dict[str, tuple[Format, str]]:
    """For the first format that has any, each of its weights files among ``names`` with the SAE's folder.

    Args:
        names: Paths with slashes, of every file in question.
        only: The one of them that is meant to be a weights file; None: any.
    """
    listed = set(names)
    for entry in (*FORMATS, *REFUSED):
        recognised: dict[str, tuple[Format, str]] = {}
        for name in sorted(listed) if only is None else [only]:
            if (folder := _folder_of(name, entry)) is None:
                continue
            beside, other = (
                {str(PurePosixPath(folder, each)) for each in kind} for kind in (entry.beside, entry.not_beside)
            )
            if beside <= listed and not other & listed:
                recognised[name] = entry, folder
        if recognised:
            return recognised
    return {}


def _folder_of(name: str, entry: Format) -> str | None:
    """The SAE's folder, if ``name`` is what the format calls its weights file."""
    parts, pattern = PurePosixPath(name).parts, PurePosixPath(entry.weights).parts
    if len(parts) < len(pattern) or not all(map(fnmatchcase, parts[-len(pattern) :], pattern)):
        return None
    return str(PurePosixPath(*parts[: -len(pattern)]))


def known() -> str:
    """The formats that are read, for a message."""
    return ", ".join(entry.name for entry in FORMATS)


def written(name: str) -> Format:
    """The format that is written under this name, however it is spelled: ``gemma-scope`` is ``Gemma Scope``.

    Raises:
        ConfigError: none is.
    """
    for entry in WRITTEN:
        if spelled(entry.name) == spelled(name):
            return entry
    raise ConfigError(f"--to {name} is no format that is written; choose one of {', '.join(map(flag, WRITTEN))}")


def flag(entry: Format) -> str:
    """Its name as a flag takes it."""
    return spelled(entry.name)


def spelled(name: str) -> str:
    """A name without case or spaces."""
    return name.strip().lower().replace(" ", "-").replace("_", "-")


def the_one(
    found: Mapping[str, tuple[Format, str]], shown: str, names: Iterable[str], layer: int | None = None
) -> tuple[Format, str, str]:
    """Format, folder and weights file of the one SAE that ``matching`` found.

    Args:
        shown: What was looked into, for messages.
        names: All that is there.
        layer: Which one is meant, where there is one for each layer.

    Raises:
        CheckpointError: it found none, though there are files that may hold weights, or several.
    """
    chosen = found
    if len(found) > 1 and layer is not None:
        chosen = {name: each for name, each in found.items() if _digits(name) == layer} or found
    if len(chosen) > 1:
        raise CheckpointError(f"{shown} holds {len(chosen)} SAEs, as {', '.join(sorted(chosen)[:4])}; name one of them")
    for name, (entry, folder) in chosen.items():
        return entry, folder, name
    tensors = sorted(name for name in names if name.endswith(TENSORS)) or ["no weights at all"]
    raise CheckpointError(f"{shown} holds {', '.join(tensors[:3])}: no SAE of a format that is read ({known()})")


def on_disk(path: Path, layer: int | None = None) -> Found | None:
    """The SAE that a file or folder holds; None where no weights of any kind are.

    Args:
        layer: Which one is meant, in a folder that holds one for each layer.

    Raises:
        CheckpointError: it holds weights of a format that is not read, or several SAEs.
    """
    if path.is_dir():
        start, names = path, _names(path, path)
        recognised = matching(names)
        recognised = {name: each for name, each in recognised.items() if each[1] == "."} or recognised
    elif path.exists():
        start = path.parent.parent  # of a file in a folder of its own, as checkpoints/final.safetensors
        only = path.relative_to(start).as_posix()
        recognised = matching([*_names(path.parent, start), *_names(start, start), only], only)
        if not recognised and path.suffix == ".npz":
            return Found(GEMMA_SCOPE, path.parent, path, str(path.parent.resolve() / path.stem))
        names = [path.name]
    else:
        return None
    if not recognised and not any(name.endswith(TENSORS) for name in names):
        return None
    entry, folder, name = the_one(recognised, str(path), names, layer)
    weights = start / name
    where = weights.parent.resolve() / weights.name if "*" in entry.weights else (start / folder).resolve()
    return Found(entry, start / folder, weights, str(where))


def _digits(name: str) -> int | None:
    digits = "".join(filter(str.isdigit, PurePosixPath(name).name.partition(".")[0]))
    return int(digits) if digits else None


def _names(folder: Path, start: Path) -> list[str]:
    """Files in a folder and one level below it, by their path from ``start``."""
    paths = [path for pattern in ("*", "*/*") for path in folder.glob(pattern) if path.is_file()]
    return [path.relative_to(start).as_posix() for path in paths[:_MAX_LISTED]]
