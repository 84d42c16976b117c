"""Documents of files, by suffix; every reader streams, holding a line, a paragraph or a batch of rows at a time.

Only a ``.json`` list is read whole.
"""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from sae_forge.data.tables import one_line, read_csv, read_parquet, read_records
from sae_forge.errors import DataError

MAX_LINE_BYTES = 64 * 2**20
MAX_PARAGRAPH = 2**20
"""Characters of a ``.txt`` document; a longer one is cut at the end of a line."""


def read_file(path: Path, text_field: str | None) -> Iterator[str]:
    """The documents of one file, by its suffix.

    Raises:
        DataError: the file is damaged, is no text, or has no such column; the message names file and line.
    """
    try:
        yield from READERS[path.suffix.lower()](path, text_field)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read: {one_line(error)}") from error


def _read_txt(path: Path, text_field: str | None) -> Iterator[str]:
    """Documents are separated by blank lines."""
    del text_field  # plain text has no columns
    held: list[str] = []
    size = 0
    for _, line in _lines(path):
        if line.strip():
            held.append(line)
            size += len(line)
        if held and (size > MAX_PARAGRAPH or not line.strip()):
            yield "".join(held).strip()
            held, size = [], 0
    yield "".join(held).strip()


def _read_jsonl(path: Path, text_field: str | None) -> Iterator[str]:
    return read_records(_json_lines(path), str(path), text_field)


def _read_json(path: Path, text_field: str | None) -> Iterator[str]:
    """A list of records; a file that does not start with ``[`` is read as JSON lines, which many are."""
    with path.open("rb") as file:
        start = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    if not start.startswith(b"["):
        return _read_jsonl(path, text_field)
    try:
        records = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {one_line(error)}") from error
    return read_records(enumerate(records, 1), str(path), text_field)


def _json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in _lines(path):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}, line {number}, is not JSON: {one_line(error)}") from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with path.open("rb") as file:
        for number in itertools.count(1):
            line = file.readline(MAX_LINE_BYTES + 1)
            if not line:
                return
            if len(line) > MAX_LINE_BYTES:
                raise DataError(f"{path}, line {number}, is longer than {MAX_LINE_BYTES} bytes; is it a text file?")
            if b"\0" in line:
                raise DataError(f"{path}, line {number}, holds a NUL byte; is it a text file?")
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(f"{path}, line {number}, is not UTF-8: {error.reason}; convert it to UTF-8") from error


READERS = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".txt": _read_txt,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_parquet,
}
"""Which reader a file's suffix calls for."""
