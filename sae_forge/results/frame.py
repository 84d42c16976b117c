"""A report as a pandas table for notebooks: an estimate to a line, beside the change it makes to the baseline."""

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from sae_forge.results.report import Change, Report, Row
from sae_forge.statistics.estimate import Estimate

COLUMNS = (
    "method", "title", "kind", "control", "seed", "where", "name", "measure", "value", "low", "high", "change",
    "change_low", "change_high",
)  # fmt: skip
"""``where`` says what ``name`` is the name of: a domain, a role, or the heading of a task that asks by no domain.
``control`` says which kind of random control a row is."""


def frame(report: Report) -> pd.DataFrame:
    """Every estimate of every row, random controls among them, in the order of the report.

    ``value`` lies in its 95 % interval ``low`` to ``high``; ``change`` is the paired difference to the baseline, empty
    in the baseline's own lines and where nothing was paired.
    """
    return pd.DataFrame.from_records([line for row in report.rows for line in _lines(row)], columns=pd.Index(COLUMNS))


def _lines(row: Row) -> Iterator[tuple[Any, ...]]:
    said = (row.name, row.title, row.kind, row.settings.get("kind", row.name) if row.is_control else None, row.seed)
    changes = {} if row.change is None else _estimates(row.change)
    for (where, name, measure), estimate in _estimates(row).items():
        change = changes.get((where, name, measure))
        paired = (None, None, None) if change is None else (change.value, change.low, change.high)
        yield (*said, where, name, measure, estimate.value, estimate.low, estimate.high, *paired)


def _estimates(of: Row | Change) -> Mapping[tuple[str, str, str], Estimate]:
    """By where, name and measure."""
    cells = [("domain", of.domains), ("role", of.roles)]
    return {
        **{
            (where, name, measure): estimate
            for where, by_name in cells
            for name, cell in by_name.items()
            for measure, estimate in cell.estimates.items()
        },
        **{
            ("heading", name, key): estimate for name, of_name in of.groups.items() for key, estimate in of_name.items()
        },
    }
