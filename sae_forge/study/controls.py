"""Random controls: the same push with its directions or its places made random, and how far an edit goes beyond it."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np

from sae_forge.config.evaluate import ControlKind
from sae_forge.interventions.clamping import SetTo
from sae_forge.interventions.controls import RandomDirections
from sae_forge.interventions.edit import Edit
from sae_forge.interventions.gates.none import Always
from sae_forge.interventions.steering import AddConstant, RemoveProjection, SetProjection
from sae_forge.methods.materials import Materials
from sae_forge.methods.subjects import Edited
from sae_forge.statistics.bootstrap import Bootstrap
from sae_forge.study.estimates import DERIVED, Pool, Series, by_role, pooled, under_headings
from sae_forge.study.measure import Measurement

CONTROL = "random"
"""What a control is called in a report, whatever it is a control of."""
SPREAD_OF = ("roles", "domains")
DENSE = (AddConstant, RemoveProjection, SetProjection, SetTo)
"""Edits that move every token their gate opens."""


def controls_of(
    subject: Edited, materials: Materials, *, everywhere: bool
) -> Iterator[tuple[ControlKind, int, Edited]]:
    """The same push in directions, or on tokens, that mean nothing: kind, seed and subject.

    Args:
        everywhere: Every token is edited, so that there are no other tokens to put it on.
    """
    config = materials.config
    for kind, seed in product(config.controls, range(config.seed, config.seed + config.random_seeds)):
        if (kind == "places" and everywhere) or (kind == "latents" and not all(map(_has_others, subject.edits))):
            continue
        yield kind, seed, Edited(tuple(_random(edit, kind, seed, materials) for edit in subject.edits))


def edits_every_token(subject: Edited) -> bool:
    """Whether its edits change every token, as far as their kind says."""
    interventions = [edit.intervention for edit in subject.edits]
    return all(isinstance(one.gate, Always) and isinstance(one.edit, DENSE) for one in interventions)


def _has_others(edit: Edit) -> bool:
    """Whether there are latents to draw from beside those that are edited: a single direction has none."""
    return edit.dictionary.d_sae > len(edit.latents)


def _random(edit: Edit, kind: ControlKind, seed: int, materials: Materials) -> Edit:
    alive = materials.selection.alive if edit.dictionary is materials.sae else None
    assert not isinstance(edit.intervention.edit, RandomDirections)
    control = RandomDirections(edit.intervention.edit, seed, kind, alive)
    return replace(edit, intervention=replace(edit.intervention, name=CONTROL, edit=control))


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
