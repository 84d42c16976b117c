"""Tables for a terminal, which folds what would be too wide."""

from rich.table import Table

from sae_forge.results.sheets import Sheet


def table(sheet: Sheet) -> Table:
    """A sheet as rich prints it: what stands in brackets, an interval or a role, goes on a line of its own."""
    printed = Table(title=sheet.title, title_justify="left")
    for column in sheet.columns:
        printed.add_column(column.replace(" (", "\n("), overflow="fold")
    for name, *cells in sheet.rows:
        printed.add_row(name, *(cell.replace(" [", "\n[") for cell in cells))
    return printed
