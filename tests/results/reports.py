"""Reports for tests, from as much of their JSON as a test is about."""

from typing import Any

from sae_forge.results.report import Report


def estimate(value: float, reach: float = 0.03) -> dict[str, float]:
    return {"value": value, "low": value - reach, "high": value + reach}


def filled(metrics: dict[str, Any]) -> Report:
    """The report of version 0.1 that holds these keys; all others are empty."""
    rows = [_row(row) for row in metrics["methods"]]
    if not rows or rows[0]["name"] != "baseline":
        rows.insert(0, _row({"name": "baseline", "kind": "baseline"}))
    empty = {"domains": {}, "roles": {}, "edited_share": {}, "edit_minus_control": {}}
    controls = [{**empty, **control} for control in metrics.get("controls", [])]
    return Report.from_json({"domains": {}, **metrics, "methods": rows, "controls": controls})


def _row(row: dict[str, Any]) -> dict[str, Any]:
    empty: dict[str, Any] = {"kind": "hook", "seed": None, "settings": {}, "edited_share": {}, "edit_norm": {}}
    change = {"change": {"domains": {}, "roles": {}, **row["change"]}} if "change" in row else {}
    return {**empty, "domains": {}, "roles": {}, **row, **change}
