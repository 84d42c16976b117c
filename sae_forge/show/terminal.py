"""Tables for a terminal: what is too wide for it is told in several tables under each other, of the same rows."""

from collections.abc import Iterator, Sequence

from rich.cells import cell_len
from rich.table import Table

from sae_forge.results.sheets import Sheet

NAMES = 0.4
"""Share of the width that the names of the rows may take; longer ones are folded."""
BORDER = 3
"""Columns that a cell takes beside its text; a table takes one more."""


def tables(sheet: Sheet, width: int) -> Iterator[Table]:
    """A sheet as rich prints it within ``width`` columns; what stands in brackets goes on a line of its own."""
    heads = [_broken(column, " (") for column in sheet.columns]
    rows = [[name, *(_broken(cell, " [") for cell in cells)] for name, *cells in sheet.rows]
    wide = [max(map(_width, column)) for column in zip(heads, *rows, strict=True)]
    names = min(wide[0], int(width * NAMES))
    for number, chosen in enumerate(_that_fit(wide[1:], width - names - BORDER - 1)):
        printed = Table(title=sheet.title if number == 0 else None, title_justify="left")
        for column in (0, *chosen):
            printed.add_column(heads[column], overflow="fold", max_width=names if column == 0 else None)
        for row in rows:
            printed.add_row(*(row[column] for column in (0, *chosen)))
        yield printed


def _broken(text: str, before: str) -> str:
    return text.replace(before, f"\n{before.strip()}")


def _width(text: str) -> int:
    return max(map(cell_len, text.splitlines()), default=0)


def _that_fit(wide: Sequence[int], room: int) -> Iterator[list[int]]:
    """The columns after the first, counted from 1, in runs that fit into the room; one too wide stands alone."""
    run: list[int] = []
    for column, each in enumerate(wide, 1):
        if run and sum(wide[one - 1] + BORDER for one in run) + each + BORDER > room:
            yield run
            run = []
        run.append(column)
    if run or not wide:
        yield run
