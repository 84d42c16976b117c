"""Tables of documents: which column holds the text, and the readers of parquet, csv and records."""

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from sae_forge.errors import DataError

BATCH_ROWS = 1024
"""Rows of a table in memory at once."""
_CSV_BLOCK = 16 * 2**20
"""Bytes of csv parsed at once; a row must fit."""


def choose_field(where: str, columns: Collection[str], text_columns: Collection[str], asked: str | None) -> str:
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


def text_columns(schema: pa.Schema) -> list[str]:
    """The columns whose values are strings."""

    def holds_text(kind: pa.DataType) -> bool:
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)

    return [field.name for field in schema if holds_text(field.type)]


def documents(values: Iterable[str | None]) -> Iterator[str]:
    """The values of a text column that are there."""
    return (value for value in values if value is not None)


def read_parquet(path: Path, text_field: str | None) -> Iterator[str]:
    """The text column of a parquet file."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as table:
        schema = table.schema_arrow
        field = choose_field(str(path), schema.names, text_columns(schema), text_field)
        for batch in table.iter_batches(BATCH_ROWS, columns=[field]):
            yield from documents(batch.column(0).to_pylist())


def read_csv(path: Path, text_field: str | None) -> Iterator[str]:
    """The text column of a csv or tsv file with a header; quoted values may hold line breaks."""
    from pyarrow import csv

    def opened(convert: csv.ConvertOptions) -> csv.CSVStreamingReader:
        delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
        return csv.open_csv(
            path,
            read_options=csv.ReadOptions(block_size=_CSV_BLOCK),
            parse_options=csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=convert,
        )

    with opened(csv.ConvertOptions()) as table:
        guessed: pa.Schema = table.schema
    # What looks like numbers, or like bytes, in the first block is still text if it was meant as text.
    meant = {column.name for column in guessed if pa.types.is_binary(column.type)} | {"text", text_field}
    texts = [name for name in guessed.names if name in meant or name in text_columns(guessed)]
    field = choose_field(str(path), guessed.names, texts, text_field)
    with opened(csv.ConvertOptions(include_columns=[field], column_types={field: pa.string()})) as table:
        for batch in table:
            yield from documents(batch.column(0).to_pylist())


def read_records(records: Iterable[tuple[int, Any]], where: str, text_field: str | None) -> Iterator[str]:
    """The text of each record, a plain string or an object; null texts are skipped."""
    field = None
    for number, record in records:
        if isinstance(record, str):
            yield record
            continue
        if not isinstance(record, Mapping):
            raise DataError(f"{where}, record {number}, is neither an object nor a string")
        if field is None:
            meant = (text_field, "text")
            texts = [
                str(name)
                for name, value in record.items()
                if isinstance(value, str) or (value is None and name in meant)
            ]
            field = choose_field(where, record, texts, text_field)
        text = record.get(field)
        if text is not None and not isinstance(text, str):
            raise DataError(f"{where}, record {number}: {field!r} holds {type(text).__name__}, not text")
        if field not in record:
            raise DataError(
                f"{where}, record {number}, has no {field!r}; it has {', '.join(map(str, record)) or 'none'}"
            )
        if text is not None:
            yield text


def one_line(error: BaseException) -> str:
    """What an exception says, short and without line breaks."""
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else text[:199] + "…"
