"""Sheets as Markdown tables, with text that cannot leave its cell."""

import re

from sae_forge.results.sheets import Sheet


def titled(sheet: Sheet) -> str:
    """The table below its title."""
    return f"**{cell(sheet.title)}**\n\n{table(sheet)}"


def table(sheet: Sheet) -> str:
    """The table alone; an empty cell is a dash."""
    lines = (sheet.columns, ["---"] * len(sheet.columns), *sheet.rows)
    return "\n".join(
        "| " + " | ".join(text if number == 1 else cell(text) or "–" for text in line) + " |"
        for number, line in enumerate(lines)
    )


def items(lines: list[str]) -> str:
    """Sentences as a list; one that is indented belongs to the one above it."""
    return "\n".join(f"{' ' * (len(line) - len(line.lstrip()))}- {cell(line)}" for line in lines)


def cell(text: object) -> str:
    """Text that cannot leave its cell or become markup; the brackets of an interval stay as they are."""
    # a | would end the cell, brackets and < would be links and tags
    escaped = re.sub(r"[|`<>\[\]*]", lambda match: "\\" + match[0], " ".join(str(text).split()))
    return re.sub(r"\\\[(-?[\d.]+, -?[\d.]+)\\\](?!\()", r"[\1]", escaped)
