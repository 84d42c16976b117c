"""Question and prompt files read strictly, one record at a time, each with the place it stands at."""

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from sae_forge import builtin
from sae_forge.errors import DataError
from sae_forge.statistics.answers import LETTERS
from sae_forge.store import files

Record = dict[str, Any]

HEADS = ({"prompt"}, {"text"}, {"question", "answer"})
"""Columns of which a csv file's first line must name one group to be a header."""


def resolve(source: str) -> Path:
    """The file a source names: a path, or ``world:questions/<domain>`` of the built-in world.

    Raises:
        DataError: it is missing, or of a kind that is not read here.
    """
    path = builtin.locate(source) if builtin.is_builtin(source) else Path(source)
    if not path.is_file():
        raise DataError(f"{source} is not a file; give a {', '.join(sorted(_READERS))} file of questions or prompts")
    if path.suffix.lower() not in _READERS:
        raise DataError(f"{source} ends in {path.suffix!r}; readable are {', '.join(sorted(_READERS))}")
    return path


def iter_records(path: Path) -> Iterator[tuple[str, Record]]:
    """Every record with its place ("wizards.jsonl line 3"), for messages.

    Raises:
        DataError: the file is empty or is not of the format its ending promises.
    """
    found = False
    for place, record in _READERS[path.suffix.lower()](path):
        found = True
        where = f"{path.name} {place}"
        if not isinstance(record, dict):
            raise DataError(f"{where} is not a JSON object")
        yield where, record
    if not found:
        raise DataError(f"{path} holds no records")


def _iter_jsonl(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                yield f"line {number}", files.parse_json(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path.name} line {number} is not JSON: {_brief(error)}") from error


def _iter_json(path: Path) -> Iterator[tuple[str, Any]]:
    records = files.read_json(path, kind=DataError, what="a list of records")
    if not isinstance(records, list):
        raise DataError(f"{path} is not a list of records; write one JSON array, or one object a line as .jsonl")
    for number, record in enumerate(records, start=1):
        yield f"record {number}", record


def _iter_csv(path: Path) -> Iterator[tuple[str, Any]]:
    """Rows of the MMLU archive (question, four options, letter; no header), or rows under a header of :data:`HEADS`."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as text:
            rows = csv.reader(text, strict=True)
            header: list[str] | None = None
            for row in rows:
                if rows.line_num == 1 and _is_head(row):
                    header = row
                elif row:
                    yield f"line {rows.line_num}", _csv_record(path, rows.line_num, header, row)
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a csv file in UTF-8: {_brief(error)}") from error


def _is_head(row: list[str]) -> bool:
    """Whether a first line names columns; a question may hold such a name as an option, but ends in a letter."""
    is_question = len(row) == 6 and row[5].strip().upper() in LETTERS
    return not is_question and any(head <= set(row) for head in HEADS)


def _csv_record(path: Path, line: int, header: list[str] | None, row: list[str]) -> Record:
    if header is not None:
        if len(row) != len(header):
            raise DataError(f"{path.name} line {line} has {len(row)} columns, its header {len(header)}")
        return {name: cell for name, cell in zip(header, row, strict=True) if cell}
    if len(row) != 6:
        raise DataError(
            f"{path.name} line {line} has {len(row)} columns; questions have 6 (question, A, B, C, D, letter), "
            "other records stand under a header with a column named prompt, text, or question and another named answer"
        )
    return {"question": row[0], "choices": row[1:5], "answer": row[5]}


def _iter_parquet(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path} is not a parquet file: {_brief(error)}") from error
    for number, row in enumerate(rows, start=1):
        yield f"row {number}", {name: cell for name, cell in row.items() if cell is not None}


def _brief(error: Exception) -> str:
    """The first line of a message, for an error that must be one line."""
    return str(error).partition("\n")[0]


def text_field(record: Record, name: str, where: str) -> str:
    """A field that must be a string with something in it."""
    value = record.get(name)
    if not isinstance(value, str) or not value.strip():
        have = ", ".join(sorted(map(str, record))) or "nothing"
        raise DataError(f"{where} needs {name!r} as text, found {json.dumps(value, default=str)[:40]} (it has: {have})")
    return value


_READERS: dict[str, Callable[[Path], Iterator[tuple[str, Any]]]] = {
    ".jsonl": _iter_jsonl,
    ".json": _iter_json,
    ".csv": _iter_csv,
    ".parquet": _iter_parquet,
}
