"""Measured numbers as Markdown tables: estimates with their intervals, and text that cannot leave its cell."""

import re
from typing import Any

Json = dict[str, Any]


def block(title: str, report: Json, measured: Any) -> list[str]:
    """A titled table of one measure: a row for each method and a column for each thing it was measured on."""
    summaries = report.get("controls") or []
    rows = [row for row in report["methods"] if not (summaries and row["name"] == "random")]
    labelled = [(label(row), measured(row)) for row in rows]
    labelled += [(label({**row, "name": "random", "seed": None}), measured(row)) for row in summaries]
    columns = list(dict.fromkeys(key for _, found in labelled for key in found))
    columns = [key for key in columns if any(found.get(key) is not None for _, found in labelled)]
    if not columns:
        return []
    cells = [[label, *(number(found.get(key)) for key in columns)] for label, found in labelled]
    return [f"**{title}**", table(["method", *map(cell, columns)], cells)]


def label(method: Json) -> str:
    """A method with its settings, and its seed or the number of its seeds."""
    settings = {**method.get("settings", {}), **({} if method.get("seed") is None else {"seed": method["seed"]})}
    settings |= {"seeds": len(method["seeds"])} if "seeds" in method else {}
    shown = ", ".join(f"{key}={value}" for key, value in settings.items())
    return cell(f"{method['name']} ({shown})" if shown else method["name"])


def number(found: Any) -> str:
    """An estimate with its interval, a spread with its range, or a bare number."""
    if found is None:
        return "–"
    if isinstance(found, dict):
        value, low, high = (found.get(a, found.get(b)) for a, b in (("value", "mean"), ("low", "min"), ("high", "max")))
        return f"{value:.3f} [{low:.3f}, {high:.3f}]"
    return f"{found:.4g}"


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table of finished cells."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows))


def cell(text: object) -> str:
    """Text that cannot leave its cell or become markup."""
    return re.sub(r"[|`<>\[\]*]", lambda match: "\\" + match[0], " ".join(str(text).split()))
