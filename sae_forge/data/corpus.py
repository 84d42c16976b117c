"""A source named in one string, to documents: a file, a folder, a built-in, or a ``datasets`` id."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import xxhash

from sae_forge import builtin
from sae_forge.data import hub_datasets, sources
from sae_forge.data.packing import PackedBatch, Tokenizer, iter_packed
from sae_forge.errors import DataError

__all__ = ["PackedBatch", "Tokenizer", "corpus_identity", "corpus_name", "iter_packed", "iter_texts"]

_HUB_ID = re.compile(r"([\w-][\w.-]*(?:/[\w-][\w.-]*)?)(?::([\w.+-]+))?(?:@([\w.+-]+))?", re.ASCII)
_SAMPLE_BYTES = 16 * 2**20


def iter_texts(
    source: str, *, text_field: str | None = None, split: str = "train", limit: int | None = None
) -> Iterator[str]:
    """The documents of a corpus in order, streamed; blank ones are left out.

    The first document is read before this returns, so a source that cannot work fails here and not later.

    Args:
        source: jsonl, json, txt (blank lines between documents), csv, tsv or parquet; a folder of these or one
            that ``datasets`` saved; ``world:corpora/<domain>``; or a ``datasets`` id with an optional ``:config``
            and ``@split``.
            What exists on disk wins over an id of the same name.
        text_field: Column of the text; unset, ``text`` or else the only text column.
        split: Split of a ``datasets`` source that does not name its own.
        limit: Documents at most.

    Raises:
        DataError: missing, empty, malformed, or without a text column (lists the columns).
        RemoteError: the Hub could not be reached or refused.
    """
    texts = itertools.islice(_clean(_open(source, text_field, split), source), limit)
    first = next(texts, None)
    if first is None:
        raise DataError(f"corpus {source} is empty: it holds no document with text; choose another")
    return itertools.chain([first], texts)


def corpus_name(source: str) -> str:
    """A folder name for a corpus: a file's stem, or an id with ``/``, ``:`` and ``@`` replaced by ``--``."""
    local = builtin.is_builtin(source) or Path(source).exists()
    path = Path(source.removeprefix(builtin.SCHEME))
    # The name as given, not where a link leads: the Hub's cache links readable names to hashes.
    name = (path.name.strip(".") or path.resolve().name) if local else re.sub("[/:@]", "--", source)
    if local and Path(name).suffix.lower() in sources.READERS:
        name = Path(name).stem
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-")[:100] or "corpus"


def corpus_identity(source: str) -> str:
    """What a corpus is, for a fingerprint: an id as given, else a name and a hash of the content; never a path.

    Of a file larger than 32 MiB only the length and both ends are hashed.
    """
    path = _local(source)
    if not path.exists():
        return source
    hasher = xxhash.xxh3_128()
    for file in [path] if path.is_file() else _visible_files(path):
        hasher.update(f"{file.relative_to(path).as_posix()!r} {file.stat().st_size}\n".encode())
        with file.open("rb") as content:
            hasher.update(content.read(_SAMPLE_BYTES))
            content.seek(max(content.tell(), file.stat().st_size - _SAMPLE_BYTES))
            hasher.update(content.read(_SAMPLE_BYTES))
    name = source if builtin.is_builtin(source) else corpus_name(source)
    return f"{name} xxh3:{hasher.hexdigest()}"


def _local(source: str) -> Path:
    """Where a source would lie on this machine, whether or not it does."""
    return builtin.locate(source) if builtin.is_builtin(source) else Path(source)


def _open(source: str, text_field: str | None, split: str) -> Iterator[str]:
    path = _local(source)
    if path.is_dir():
        return _read_folder(path, text_field, split)
    if path.exists():
        if not path.is_file() or path.suffix.lower() not in sources.READERS:
            raise DataError(f"{path} is no corpus: give a file that ends in {', '.join(sources.READERS)}, or a folder")
        return sources.read_file(path, text_field)
    named = _HUB_ID.fullmatch(source)
    if named is None or path.suffix.lower() in sources.READERS:
        raise DataError(
            f"corpus {source} does not exist; give a file, a folder, a datasets id or world:corpora/<domain>"
        )
    name, config, own_split = named.groups()
    return hub_datasets.read_hub(name, config, text_field, own_split or split)


def _read_folder(folder: Path, text_field: str | None, split: str) -> Iterator[str]:
    if hub_datasets.is_saved_dataset(folder):
        return hub_datasets.read_saved_dataset(folder, text_field, split)
    found = [path for path in _visible_files(folder) if path.suffix.lower() in sources.READERS]
    if not found:
        raise DataError(f"folder {folder} holds no corpus; files may end in {', '.join(sources.READERS)}")
    return itertools.chain.from_iterable(sources.read_file(path, text_field) for path in found)


def _visible_files(folder: Path) -> list[Path]:
    """Every file below, in order of path, but for hidden ones."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def _clean(texts: Iterator[str], source: str) -> Iterator[str]:
    for number, text in enumerate(texts, 1):
        if text.strip():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise DataError(
                    f"corpus {source}, document {number}, holds half a surrogate pair: {error.reason}"
                ) from error
            yield text
