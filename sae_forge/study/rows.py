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
    columns = {}
    for name in names:
        values = [row.get(name) for row in rows]
        given = [value for value in values if value is not None]
        listed = any(isinstance(value, tuple) for value in given)
        # said and not left to pyarrow: a column that is null throughout would get the type null, and so another
        # schema than the same column of another report
        if name in TEXTS:
            kind = pyarrow.string()
        elif name == "seed":
            kind = pyarrow.int64()
        else:  # truth values, integers or numbers, each alone or in lists
            kinds = {type(part) for value in given for part in (value if listed else (value,))}
            kind = pyarrow.bool_() if kinds == {bool} else pyarrow.int64() if kinds <= {int} else pyarrow.float64()
        columns[name] = pyarrow.array(values, pyarrow.list_(kind) if listed else kind)
    with files.publish(path) as part:
        pyarrow.parquet.write_table(pyarrow.table(columns), part, write_page_checksum=True)
