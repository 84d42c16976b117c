"""A source named in one string, to documents: a file, a folder, a built-in, or a ``datasets`` id."""

import itertools
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import xxhash

from sae_forge import builtin
from sae_forge.data.packing import PackedBatch, Tokenizer, iter_packed
from sae_forge.data.records import READERS, Source, local_path, open_sources, visible_files
from sae_forge.errors import DataError

__all__ = ["PackedBatch", "Tokenizer", "corpus_identity", "corpus_name", "iter_packed", "iter_texts"]

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
    sources = open_sources(source, split)
    documents = itertools.chain.from_iterable(_documents(one, text_field) for one in sources)
    texts = itertools.islice(_clean(documents, source), limit)
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
    if local and Path(name).suffix.lower() in READERS:
        name = Path(name).stem
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-")[:100] or "corpus"


def corpus_identity(source: str) -> str:
    """What a corpus is, for a fingerprint: an id as given, else a name and a hash of the content; never a path.

    Of a file larger than 32 MiB only the length and both ends are hashed.
    """
    path = local_path(source)
    if not path.exists():
        return source
    hasher = xxhash.xxh3_128()
    for file in [path] if path.is_file() else visible_files(path):
        hasher.update(f"{file.relative_to(path).as_posix()!r} {file.stat().st_size}\n".encode())
        with file.open("rb") as content:
            hasher.update(content.read(_SAMPLE_BYTES))
            content.seek(max(content.tell(), file.stat().st_size - _SAMPLE_BYTES))
            hasher.update(content.read(_SAMPLE_BYTES))
    name = source if builtin.is_builtin(source) else corpus_name(source)
    return f"{name} xxh3:{hasher.hexdigest()}"


def _documents(source: Source, text_field: str | None) -> Iterator[str]:
    """The text of each record, a plain string or an object; null texts are skipped."""
    field: str | None = None

    def choose(columns: Collection[str], text_columns: Collection[str], *, typed: bool = True) -> str:
        nonlocal field
        meant = () if typed else [name for name in columns if name in ("text", text_field)]
        field = _choose_field(source.name, columns, {*text_columns, *meant}, text_field)
        return field

    for place, record in source.read(choose):
        where = f"{source.name} {place}"
        if isinstance(record, str):
            yield record
            continue
        if not isinstance(record, Mapping):
            raise DataError(f"{where} is neither an object nor a string")
        if field is None:
            meant = ("text", text_field)
            texts = [
                str(name)
                for name, value in record.items()
                if isinstance(value, str) or (value is None and name in meant)
            ]
            choose(record, texts)
        text = record.get(field)
        if text is not None and not isinstance(text, str):
            raise DataError(f"{where}: {field!r} holds {type(text).__name__}, not text")
        if field not in record:
            raise DataError(f"{where} has no {field!r}; it has {', '.join(map(str, record)) or 'none'}")
        if text is not None:
            yield text


def _choose_field(where: str, columns: Collection[str], text_columns: Collection[str], asked: str | None) -> str:
    """The column that holds the text: the one asked for, else ``text``, else the only one that holds any text.

    Raises:
        DataError: there is no such column, or several could be meant; lists the columns.
    """
    listed = ", ".join(str(column)[:40] for column in itertools.islice(columns, 20)) or "none"
    if asked is not None:
        if asked not in text_columns:
            why = "holds no text" if asked in columns else "does not exist"
            raise DataError(f"{where}: column {asked!r} {why}; its columns are {listed}; choose one with --text_field")
        return asked
    if "text" in text_columns:
        return "text"
    if len(text_columns) == 1:
        return next(iter(text_columns))
    count = "several columns" if text_columns else "no column"
    raise DataError(
        f"{where} has {count} of text and none named 'text'; its columns are {listed}; choose with --text_field"
    )


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
