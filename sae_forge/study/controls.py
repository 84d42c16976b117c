"""What random directions of the same norm did, over all their seeds, and how far the edit went beyond them."""

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from sae_forge.statistics.bootstrap import Bootstrap
from sae_forge.study.estimates import Series, by_role, loss_series, pooled
from sae_forge.study.measure import Measurement, Suite

SPREAD_OF = ("roles", "domains")


def control_summary(
    suite: Suite,
    rows: list[dict[str, Any]],
    found: list[Measurement],
    edit: Measurement,
    bootstrap: Bootstrap,
) -> dict[str, Any]:
    """One kind of control at one setting.

    Args:
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
        "loss": _spreads([row["loss"] for row in rows]),
        "generation": _spreads([row["generation"] for row in rows]),
        **({"muse": _spreads([row["muse"] for row in rows])} if "muse" in rows[0] else {}),
        "edited_share": {name: _spread(row["edited_share"][name] for row in rows) for name in rows[0]["edited_share"]},
    }
    summary["edit_minus_control"] = {
        role: _beyond(pooled(domains, edit), [pooled(domains, one) for one in found], bootstrap)
        for role, domains in by_role(suite).items()
    }
    summary["edit_minus_control"]["loss"] = _beyond(
        loss_series(suite, edit), [loss_series(suite, one) for one in found], bootstrap
    )
    return summary


def _spreads(measured: list[dict[str, Any]]) -> dict[str, Any]:
    """Spread over seeds of each estimate; what is no estimate is left out."""
    names = [name for name, estimate in measured[0].items() if isinstance(estimate, dict) and "value" in estimate]
    return {name: _spread(one[name]["value"] for one in measured) for name in names}


def _spread(values: Iterable[float]) -> dict[str, float]:
    found = list(values)
    return {"mean": math.fsum(found) / len(found), "min": min(found), "max": max(found)}


def _beyond(edit: dict[str, Series], controls: list[dict[str, Series]], bootstrap: Bootstrap) -> dict[str, Any]:
    return {
        name: series.minus(_mean([one[name] for one in controls])).estimate(bootstrap).to_json()
        for name, series in edit.items()
    }


def _mean(series: list[Series]) -> Series:
    return replace(series[0], sums=np.mean([one.sums for one in series], axis=0))
