"""One row per item and method: the evidence behind a report, as a parquet table."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from sae_forge.store import files
from sae_forge.study.measure import Measurement

Row = dict[str, Any]

FRONT = ("method", "settings", "seed", "task", "kind", "domain", "role", "id", "fact")
"""Columns of every table; one a value of the items follows, one a weight, and ``text``."""
TEXTS = (*(name for name in FRONT if name != "seed"), "text")


def item_rows(method: str, settings: Row, seed: int | None, measured: Measurement) -> Iterator[Row]:
    """Every item of one measurement; a weight that is no count of tokens is called ``<value>_weight``."""
    said = {"method": method, "settings": json.dumps(settings, sort_keys=True), "seed": seed}
    for one in measured:
        for item in one.items:
            place = {"task": item.task, "kind": one.asked.kind or item.task, "id": item.id, "fact": item.fact}
            where = {"domain": item.domain or None, "role": item.role or None}
            weights = {name if name == "tokens" else f"{name}_weight": w for name, w in item.weights.items()}
            yield {**said, **place, **where, **item.values, **weights, "text": item.text}


def publish_rows(path: Path, rows: list[Row]) -> None:
    """Write the rows as one parquet file, whole or not at all; what says nothing about an item is null in its row."""
    # text last, because it is long
    names = list(dict.fromkeys((*FRONT, *(name for row in rows for name in row if name != "text"), "text")))
    columns = {name: [row.get(name) for row in rows] for name in names}
    table = pyarrow.table({name: _column(name, values) for name, values in columns.items()})
    with files.publish(path) as part:
        pyarrow.parquet.write_table(table, part, write_page_checksum=True)


def _column(name: str, values: list[Any]) -> pyarrow.Array:
    """Truth values, integers or numbers, each alone or in lists, as the values are."""
    if name in TEXTS:
        return pyarrow.array(values, pyarrow.string())
    if name == "seed":
        return pyarrow.array(values, pyarrow.int64())
    given = [value for value in values if value is not None]
    listed = any(isinstance(value, tuple) for value in given)
    kinds = {type(part) for value in given for part in (value if listed else (value,))}
    kind = pyarrow.bool_() if kinds == {bool} else pyarrow.int64() if kinds <= {int} else pyarrow.float64()
    return pyarrow.array(values, pyarrow.list_(kind) if listed else kind)
