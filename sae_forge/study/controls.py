"""What random directions of the same norm did, over all their seeds, and how far the edit went beyond them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from sae_forge.statistics.bootstrap import Bootstrap
from sae_forge.study.estimates import DERIVED, Pool, Series, by_role, pooled, under_headings
from sae_forge.study.measure import Measurement

SPREAD_OF = ("roles", "domains")


def control_summary(
    headings: Sequence[str],
    rows: list[dict[str, Any]],
    found: list[Measurement],
    edit: Measurement,
    bootstrap: Bootstrap,
) -> dict[str, Any]:
    """One kind of control at one setting.

    Args:
        headings: Of the rows, beside domains and roles.
        rows: The report's rows of its seeds; ``found`` are their measurements.
        edit: The edit they are the control of.

    Returns:
        ``mean``, ``min`` and ``max`` over seeds of every estimate's value, and ``edit_minus_control``: the paired
        difference of the edit to the mean over seeds, by role, with its interval over facts.
    """
    summary: dict[str, Any] = {
        "settings": rows[0]["settings"],
        "seeds": [row["seed"] for row in rows],
        **{
            group: {place: _spreads([row[group][place] for row in rows]) for place in rows[0][group]}
            for group in SPREAD_OF
        },
        **{
            heading: _spreads([row[heading] for row in rows])
            for heading in headings
            if heading not in DERIVED and heading in rows[0]
        },
        "edited_share": {name: _spread(row["edited_share"][name] for row in rows) for name in rows[0]["edited_share"]},
    }
    now, controls = under_headings(edit), [under_headings(one) for one in found]
    summary["edit_minus_control"] = {
        **{
            role: _beyond(pooled(answers), [pooled(by_role(one)[role]) for one in found], bootstrap)
            for role, answers in by_role(edit).items()
        },
        **{
            heading: _beyond(now.get(heading, {}), [one.get(heading, {}) for one in controls], bootstrap)
            for heading in headings
            if heading not in DERIVED
        },
    }
    return summary


def _spreads(measured: list[dict[str, Any]]) -> dict[str, Any]:
    """Spread over seeds of each estimate; what is no estimate is left out."""
    names = [name for name, estimate in measured[0].items() if isinstance(estimate, dict) and "value" in estimate]
    return {name: _spread(one[name]["value"] for one in measured) for name in names}


def _spread(values: Iterable[float]) -> dict[str, float]:
    found = list(values)
    return {"mean": math.fsum(found) / len(found), "min": min(found), "max": max(found)}


def _beyond(
    edit: Mapping[str, Pool], controls: Sequence[Mapping[str, Pool]], bootstrap: Bootstrap
) -> dict[str, dict[str, float]]:
    """What the edit's measures are beyond the mean over controls, where they are means and controls were asked."""
    beyond = {}
    for name, pool in edit.items():
        others = [other.series for one in controls if (other := one.get(name)) is not None]
        if (series := pool.series) is not None and others:
            beyond[name] = series.minus(_mean(others)).estimate(bootstrap).to_json()
    return beyond


def _mean(series: Sequence[Series | None]) -> Series:
    known = [one for one in series if one is not None]
    return replace(known[0], sums=np.mean([one.sums for one in known], axis=0))
