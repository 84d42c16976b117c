"""Records of any source, the one reader of text and questions alike: a file, a folder, the built-in world, an id.

Every reader streams, holding a line, a paragraph or a batch of rows at a time; only a ``.json`` list is read whole.
A record is an object, or a plain string. Each comes with the place it stands at, for messages.
"""

import csv
import itertools
import json
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from string import ascii_uppercase
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa

from sae_forge import builtin
from sae_forge.errors import DataError

MAX_LINE_BYTES = 64 * 2**20
MAX_PARAGRAPH = 2**20
"""Characters of a ``.txt`` document; a longer one is cut at the end of a line."""
BATCH_ROWS = 1024
"""Rows of a table in memory at once."""

_HUB_ID = re.compile(r"([\w-][\w.-]*(?:/[\w-][\w.-]*)?)(?::([\w.+-]+))?(?:@([\w.+-]+))?", re.ASCII)

Placed = Iterator[tuple[str, Any]]
"""Records, each with its place: ``line 3``."""


@runtime_checkable
class Choose(Protocol):
    """Names the column that is wanted, so that no other need be read."""

    def __call__(self, columns: Collection[str], text_columns: Collection[str], *, typed: bool = True) -> str:
        """Of all ``columns`` one; where they are not ``typed``, ``text_columns`` are those that look like text."""
        ...


@dataclass(frozen=True)
class Source:
    """One file, or one split of a dataset, not yet read."""

    name: str
    """As messages name it."""
    read: Callable[[Choose | None], Placed]


def open_sources(source: str, split: str) -> list[Source]:
    """What a source stands for: one file, each file of a folder in order of path, or one split of a dataset.

    What exists on disk wins over an id of the same name.

    Args:
        source: jsonl, json, txt (blank lines between documents), csv, tsv or parquet; a folder of these or one that
            ``datasets`` saved; ``world:KIND/DOMAIN``; or a ``datasets`` id, ``:config`` and ``@split`` after it.
        split: Split of a dataset that does not name its own.

    Raises:
        DataError: it is not there, or of no kind that is read here.
    """
    path = local_path(source)
    if path.is_dir():
        return _open_folder(path, split)
    if path.exists():
        if not path.is_file() or path.suffix.lower() not in READERS:
            raise DataError(f"{path} is not read here: give a file that ends in {', '.join(READERS)}, or a folder")
        return [_open_file(path)]
    named = _HUB_ID.fullmatch(source)
    if named is None or path.suffix.lower() in READERS:
        raise DataError(f"{source} does not exist; give a file, a folder, a datasets id or world:KIND/DOMAIN")
    from sae_forge.data.hub_datasets import read_hub

    name, config, own_split = named.groups()
    return [Source(name, partial(read_hub, name, config, own_split or split))]


def local_path(source: str) -> Path:
    """Where a source would lie on this machine, whether or not it does."""
    return builtin.locate(source) if builtin.is_builtin(source) else Path(source)


def visible_files(folder: Path) -> list[Path]:
    """Every file below, in order of path, but for hidden ones."""
    below = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in below if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def one_line(error: BaseException) -> str:
    """What an exception says, short and without line breaks."""
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else text[:199] + "…"


def _open_folder(folder: Path, split: str) -> list[Source]:
    from sae_forge.data.hub_datasets import is_saved_dataset, read_saved_dataset

    if is_saved_dataset(folder):
        return [Source(str(folder), partial(read_saved_dataset, folder, split))]
    readable = [path for path in visible_files(folder) if path.suffix.lower() in READERS]
    if not readable:
        raise DataError(f"folder {folder} holds nothing that is read here; files may end in {', '.join(READERS)}")
    return [_open_file(path) for path in readable]


def _open_file(path: Path) -> Source:
    def read(choose: Choose | None) -> Placed:
        try:
            yield from READERS[path.suffix.lower()](path, choose)
        except (OSError, ValueError, csv.Error, pa.ArrowException) as error:
            raise DataError(f"{path} cannot be read: {one_line(error)}") from error

    return Source(str(path), read)


# ---- by suffix ----------------------------------------------------------------------------------


def _read_txt(path: Path, choose: Choose | None) -> Placed:
    """Documents are separated by blank lines."""
    del choose  # plain text has no columns
    held: list[str] = []
    size = 0
    number = 0
    for number, line in _lines(path):
        if line.strip():
            held.append(line)
            size += len(line)
        if held and (size > MAX_PARAGRAPH or not line.strip()):
            yield f"line {number}", "".join(held).strip()
            held, size = [], 0
    if held:
        yield f"line {number}", "".join(held).strip()


def _read_jsonl(path: Path, choose: Choose | None) -> Placed:
    del choose
    for number, line in _lines(path):
        if line.strip():
            yield f"line {number}", _parsed(line, f"{path} line {number}")


def _read_json(path: Path, choose: Choose | None) -> Placed:
    """A list of records; a file that does not start with ``[`` is read as JSON lines, which many are."""
    with path.open("rb") as file:
        start = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    if not start.startswith(b"["):
        yield from _read_jsonl(path, choose)
        return
    for number, record in enumerate(_parsed(path.read_text(encoding="utf-8-sig"), str(path)), 1):
        yield f"record {number}", record


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON: {one_line(error)}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} appears twice")
    return record


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with path.open("rb") as file:
        for number in itertools.count(1):
            line = file.readline(MAX_LINE_BYTES + 1)
            if not line:
                return
            if len(line) > MAX_LINE_BYTES:
                raise DataError(f"{path} line {number} is longer than {MAX_LINE_BYTES} bytes; is it a text file?")
            if b"\0" in line:
                raise DataError(f"{path} line {number} holds a NUL byte; is it a text file?")
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(f"{path} line {number} is not UTF-8: {error.reason}; convert it to UTF-8") from error


def _read_csv(path: Path, choose: Choose | None) -> Placed:
    """Rows under a header, or of the MMLU archive: question, options, the right one's letter, and no header.

    Quoted values may hold line breaks; an empty one is null.
    """
    csv.field_size_limit(MAX_LINE_BYTES)
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    reader = csv.reader((line for _, line in _lines(path)), strict=True, delimiter=delimiter)
    rows = filter(None, reader)
    header = next(rows, [])
    if _is_question(header):
        for row in itertools.chain([header], rows):
            if not _is_question(row):
                raise DataError(f"{path} line {reader.line_num} does not end in an option's letter, as line 1 does")
            yield f"line {reader.line_num}", {"question": row[0], "choices": row[1:-1], "answer": row[-1]}
        return
    for row in rows:
        place = f"line {reader.line_num}"
        if len(row) != len(header):
            raise DataError(f"{path} {place} has {len(row)} columns, its header {len(header)}")
        if choose is not None:
            choose(header, [name for name, cell in zip(header, row, strict=True) if not _is_number(cell)], typed=False)
            choose = None
        yield place, {name: cell or None for name, cell in zip(header, row, strict=True)}


def _is_question(row: list[str]) -> bool:
    """Whether a row ends in the letter of one of the options before it."""
    return len(row) >= 4 and row[-1].strip() in tuple(ascii_uppercase[: len(row) - 2])


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _read_parquet(path: Path, choose: Choose | None) -> Placed:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as table:
        schema = table.schema_arrow
        columns = None if choose is None else [choose(schema.names, text_columns(schema))]
        numbers = itertools.count(1)
        for batch in table.iter_batches(BATCH_ROWS, columns=columns):
            yield from ((f"row {next(numbers)}", record) for record in batch.to_pylist())


def text_columns(schema: pa.Schema) -> list[str]:
    """The columns whose values are strings."""

    def holds_text(kind: pa.DataType) -> bool:
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)

    return [field.name for field in schema if holds_text(field.type)]


READERS: dict[str, Callable[[Path, Choose | None], Placed]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".txt": _read_txt,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
}
"""Which reader a file's suffix calls for."""
