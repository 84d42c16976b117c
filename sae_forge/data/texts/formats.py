"""Formats of text and records: what a file's suffix says of how it is read, and its records one after the other.

Every reader streams, holding a line, a paragraph or a batch of rows at a time; only JSON that is no lines is read
whole. A record is an object, a list or a plain string; what stands in the place of one and cannot be read is
:class:`Malformed`, and reading goes on behind it. Each comes with the place it stands at, for messages.
"""

import bz2
import csv
import gzip
import io
import itertools
import json
import lzma
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from string import ascii_uppercase
from typing import Any, Literal, Protocol, runtime_checkable

import pyarrow as pa

from sae_forge.errors import DataError

MAX_LINE = 64 * 2**20
"""Characters of a line."""
MAX_PARAGRAPH = 2**20
"""Characters of a ``.txt`` document; a longer one is cut at the end of a line."""
MAX_JSON = 2**31
"""Characters of a file of JSON that is no lines, which is held in memory."""
BATCH_ROWS = 1024
"""Rows of a table in memory at once."""
_BOMS = {b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_LONGEST_NAME, _MOST_WORDS = 80, 7
"""Characters and words of a column's name; what is longer is a sentence."""

Kind = Literal["text", "list", "turns", "other"]
"""What a column holds: texts, lists of texts, conversations, or none of these."""
Placed = Iterator[tuple[str, Any]]
"""Records, each with its place: ``line 3``."""


@dataclass(frozen=True)
class Malformed:
    """What stands where a record should, and cannot be read."""

    why: str


@runtime_checkable
class Choose(Protocol):
    """Names the columns that are wanted, so that no other need be read."""

    def __call__(self, kinds: Mapping[str, Kind], *, typed: bool = True) -> Sequence[str]:
        """Of all columns some; where they are not ``typed``, a kind is only what the first row looks like."""
        ...


def one_line(error: BaseException) -> str:
    """What an exception says, short and without line breaks."""
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else text[:199] + "…"


COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
"""Suffixes of files that are compressed as a whole."""


def suffix_of(path: PurePath) -> str:
    """What says how a file is read: its suffix in small letters, and the one before that where it is compressed."""
    last = path.suffix.lower()
    return PurePath(path.stem).suffix.lower() + last if last in COMPRESSED else last


# ---- bytes to lines -----------------------------------------------------------------------------


def _open_text(path: Path, newline: str | None) -> io.TextIOWrapper:
    """A file as text: decompressed, of the encoding its first bytes announce, else UTF-8.

    A byte that is no UTF-8 becomes half a surrogate pair, so that it is only what it stands in that cannot be read.
    """
    encoding, errors = "utf-8-sig", "surrogateescape"
    with _open_bytes(path) as file:
        start = file.read(4)
    for mark, name in _BOMS.items():
        if start.startswith(mark):
            encoding, errors = name, "strict"
            break
    return io.TextIOWrapper(_open_bytes(path), encoding=encoding, errors=errors, newline=newline)


def _open_bytes(path: Path) -> Any:
    match path.suffix.lower():
        case ".gz":
            return gzip.open(path)
        case ".bz2":
            return bz2.open(path)
        case ".xz":
            return lzma.open(path)
        case ".zst":
            return io.BufferedReader(pa.input_stream(str(path), compression="zstd"))  # pyright: ignore
    return path.open("rb")


def _lines(path: Path, newline: str | None = None) -> Iterator[tuple[int, str]]:
    """Each line with its number; where ``newline`` is None, CRLF and CR end one as LF does, and become LF."""
    with _open_text(path, newline) as file:
        for number in itertools.count(1):
            line = file.readline(MAX_LINE + 1)
            if not line:
                return
            if len(line) > MAX_LINE:
                raise DataError(f"{path} line {number} is longer than {MAX_LINE} characters; is it a text file?")
            if "\0" in line:
                raise DataError(
                    f"{path} line {number} holds a NUL byte; is it a text file, in UTF-16 without its mark?"
                )
            yield number, line


# ---- by suffix ----------------------------------------------------------------------------------


def _read_txt(path: Path, choose: Choose | None) -> Placed:
    """Documents are separated by blank lines."""
    del choose  # plain text has no columns
    held: list[str] = []
    size = first = 0
    for number, line in _lines(path):
        if line.strip():
            first = first if held else number
            held.append(line)
            size += len(line)
        if held and (size > MAX_PARAGRAPH or not line.strip()):
            yield f"line {first}", "".join(held).strip()
            held, size = [], 0
    if held:
        yield f"line {first}", "".join(held).strip()


def _read_json(path: Path, choose: Choose | None) -> Placed:
    """Values of JSON, a line each; or, where the first line is no value or the only one, whatever the whole is."""
    del choose
    lines = ((number, line) for number, line in _lines(path, "\n") if line.strip())
    first, second = next(lines, None), next(lines, None)
    if first is None:
        return
    number, line = first
    value = _parsed(line)
    opens = line.strip()[0] in "[{" and (".jsonl" not in suffix_of(path) or len(line.strip()) < 3)
    if isinstance(value, Malformed) and opens:
        yield from _read_whole(path)
    elif second is None and isinstance(value, list | dict) and (records := _records_of(value, path)) != [value]:
        yield from ((f"record {place}", record) for place, record in enumerate(records, 1))
    else:
        yield f"line {number}", value
        for number, line in itertools.chain([second] if second else [], lines):
            yield f"line {number}", _parsed(line)


def _read_whole(path: Path) -> Placed:
    """The records of one value, or of several that may go over many lines."""
    with _open_text(path, "\n") as file:
        text = file.read(MAX_JSON + 1)
    if len(text) > MAX_JSON:
        raise DataError(f"{path} is JSON of more than {MAX_JSON} characters and no lines; write it as .jsonl")
    values, place = [], re.compile(r"\s*").match(text).end()  # pyright: ignore[reportOptionalMemberAccess]
    blank = re.compile(r"[\s,]*")
    while place < len(text):
        try:
            value, place = _DECODER.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            line = text.count("\n", 0, getattr(error, "pos", place)) + 1
            raise DataError(f"{path} line {line} is not JSON: {one_line(error)}") from error
        values.append(value)
        place = blank.match(text, place).end()  # pyright: ignore[reportOptionalMemberAccess]
    records = _records_of(values[0], path) if len(values) == 1 else values
    for number, record in enumerate(records, 1):
        yield f"record {number}", record


def _records_of(value: Any, path: Path) -> Sequence[Any]:
    """The records of one value: a list's, those of the one list in an object or of a table by columns, or itself."""
    if not isinstance(value, dict):
        return value if isinstance(value, list) else [value]
    if any(isinstance(value.get(name), str) for name in ("text", "question", "prompt")):
        return [value]
    lists = {name: held for name, held in value.items() if isinstance(held, list) and held}
    objects = {name: held for name, held in lists.items() if isinstance(held[0], dict) and not is_turns(held)}
    if len(objects) > 1:
        names = " and ".join(map(repr, objects))
        raise DataError(
            f"{path} is one object with records under {names}; which is meant? Give a file with one of them"
        )
    if objects:
        return next(iter(objects.values()))
    columns = lists if lists.keys() == value.keys() else {}
    if value and all(
        isinstance(held, dict) for held in value.values()
    ):  # as pandas writes a table unless told otherwise
        columns = {name: list(held.values()) for name, held in value.items()}
    if columns and not any(map(is_turns, columns.values())) and len({len(held) for held in columns.values()}) == 1:
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return [value]


def _parsed(text: str) -> Any:
    text = text.strip()
    try:
        value, end = _DECODER.raw_decode(text)
        return value if end == len(text) else Malformed(f"is not JSON: extra data after its {end} characters")
    except (ValueError, RecursionError) as error:
        return Malformed(f"is not JSON: {one_line(error)}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} appears twice")
    return record


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)


def _read_csv(path: Path, choose: Choose | None) -> Placed:
    """Rows under a header, or of the MMLU archive: question, options, the right one's letter, and no header.

    Quoted values may hold line breaks; an empty one is null.
    """
    csv.field_size_limit(MAX_LINE)
    delimiter = "\t" if ".tsv" in suffix_of(path) else ","
    reader = csv.reader((line for _, line in _lines(path)), strict=True, delimiter=delimiter)
    rows = filter(None, reader)
    header = next(rows, [])
    if _is_question(header):
        for row in itertools.chain([header], rows):
            where, question = f"line {reader.line_num}", {"question": row[0], "choices": row[1:-1], "answer": row[-1]}
            ends = Malformed("does not end in an option's letter, as line 1 does")
            yield where, question if _is_question(row) else ends
        return
    _require_names(path, header, delimiter)
    for row in rows:
        place = f"line {reader.line_num}"
        if len(row) != len(header):
            yield place, Malformed(f"has {len(row)} columns, its header {len(header)}")
            continue
        if choose is not None:
            kinds: dict[str, Kind] = {
                name: "other" if _is_number(cell) else "text" for name, cell in zip(header, row, strict=True)
            }
            _require_name(path, choose(kinds, typed=False))
            choose = None
        yield place, {name: cell or None for name, cell in zip(header, row, strict=True)}


def _require_names(path: Path, header: Sequence[str], delimiter: str) -> None:
    """Refuse a first line that is none of names, or one of another delimiter.

    Raises:
        DataError: says what it looks like.
    """
    if len(header) == 1 and (other := next((mark for mark in ",;\t|" if mark != delimiter and mark in header[0]), "")):
        raise DataError(
            f"{path} has one column, called {header[0][:60]!r}: another delimiter, {other!r}? Write it with "
            f"{'tabs' if delimiter == chr(9) else 'commas'} between columns, or as jsonl"
        )
    if len(header) == 1:
        _require_name(path, header)
    if doubled := next((name for name in header if header.count(name) > 1), None):
        raise DataError(
            f"{path} names the column {doubled[:60]!r} twice in its first line; no header? Give each its name"
        )


def _require_name(path: Path, columns: Sequence[str]) -> None:
    for name in columns:
        if (
            len(name) > _LONGEST_NAME
            or len(name.split()) > _MOST_WORDS
            or (" " in name and name.rstrip()[-1:] in ".!?")
        ):
            raise DataError(
                f"{path} begins with {name[:60]!r}, which reads like text and not like the name of a column: "
                "no header? Put a line such as 'text' on top"
            )


def _is_question(row: list[str]) -> bool:
    """Whether a row ends in the letter of one of the options before it, and is no header with the letters last."""
    ends = len(row) >= 4 and row[-1].strip() in tuple(ascii_uppercase[: len(row) - 2])
    named = {cell.strip().lower() for cell in row} & {"question", "answer", "prompt"}
    return ends and not (named and re.fullmatch(r"[\w.-]*", row[0].strip()))


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _read_parquet(path: Path, choose: Choose | None) -> Placed:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as table:
        columns = None if choose is None else list(choose(column_kinds(table.schema_arrow)))
        numbers = itertools.count(1)
        for batch in table.iter_batches(BATCH_ROWS, columns=columns):
            yield from ((f"row {next(numbers)}", record) for record in batch.to_pylist())


# ---- what columns hold --------------------------------------------------------------------------

TURN_KEYS = (("role", "content"), ("from", "value"))
"""How the turns of conversations name who speaks and what is said."""


def is_turns(value: object) -> bool:
    """Whether a value is a conversation: a list of objects that say who speaks and what."""
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(turn, dict) and any(set(keys) <= turn.keys() for keys in TURN_KEYS) for turn in value)


def kind_of(value: object) -> Kind:
    """What a value is, for the choice of a column."""
    if isinstance(value, str):
        return "text"
    if is_turns(value):
        return "turns"
    return "list" if isinstance(value, list) and value and all(isinstance(one, str) for one in value) else "other"


def column_kinds(schema: pa.Schema) -> dict[str, Kind]:
    """What the columns of a table hold, by their types."""

    def kind(of: pa.DataType) -> Kind:
        if pa.types.is_dictionary(of):
            of = of.value_type
        if pa.types.is_string(of) or pa.types.is_large_string(of) or pa.types.is_string_view(of):
            return "text"
        if pa.types.is_list(of) or pa.types.is_large_list(of):
            inner = of.value_type
            if pa.types.is_struct(inner) and any({*keys} <= {field.name for field in inner} for keys in TURN_KEYS):
                return "turns"
            return "list" if kind(inner) == "text" else "other"
        return "other"

    return {field.name: kind(field.type) for field in schema}


PLAIN: dict[str, Callable[[Path, Choose | None], Placed]] = {
    ".jsonl": _read_json,
    ".json": _read_json,
    ".txt": _read_txt,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
}
"""Which reader a file's suffix calls for."""
READERS = PLAIN | {
    suffix + packed: reader for suffix, reader in PLAIN.items() if suffix != ".parquet" for packed in COMPRESSED
}
"""The same, with those of files that are compressed as a whole."""
