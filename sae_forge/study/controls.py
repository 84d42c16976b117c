"""Random controls: the same push with its directions or its places made random, and how far an edit goes beyond it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product

import numpy as np

from sae_forge.config.evaluate import ControlKind
from sae_forge.interventions.clamping import SetTo
from sae_forge.interventions.controls import RandomDirections
from sae_forge.interventions.gates.none import Always
from sae_forge.interventions.steering import AddConstant, RemoveProjection, SetProjection
from sae_forge.methods.materials import Materials
from sae_forge.methods.subjects import Edited
from sae_forge.results.report import RANDOM as CONTROL
from sae_forge.results.report import ControlSummary, Row, Spread
from sae_forge.statistics.bootstrap import Bootstrap
from sae_forge.statistics.estimate import Estimate
from sae_forge.study.estimates import Headings, Pool, by_role, pooled, under_headings
from sae_forge.study.measure import Measurement

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
    # a single direction has no latents to draw from beside those that are edited
    others = all(edit.dictionary.d_sae > len(edit.latents) for edit in subject.edits)
    for kind, seed in product(config.controls, range(config.seed, config.seed + config.random_seeds)):
        if (kind == "places" and everywhere) or (kind == "latents" and not others):
            continue
        controls = []
        for edit in subject.edits:
            # a direction that no SAE has knows of no latents that fire
            alive = materials.selection.alive if edit.dictionary is materials.sae else None
            assert not isinstance(edit.intervention.edit, RandomDirections)
            control = RandomDirections(edit.intervention.edit, seed, kind, alive)
            # behind the edit's own gate, so that the push is as often and as hard as the edit's
            controls.append(replace(edit, intervention=replace(edit.intervention, name=CONTROL, edit=control)))
        yield kind, seed, Edited(tuple(controls))


def edits_every_token(subject: Edited) -> bool:
    """Whether its edits change every token, as far as their kind says."""
    interventions = [edit.intervention for edit in subject.edits]
    return all(isinstance(one.gate, Always) and isinstance(one.edit, DENSE) for one in interventions)


def control_summary(
    headings: Headings, rows: Sequence[Row], seeds: Sequence[Measurement], edit: Measurement, bootstrap: Bootstrap
) -> ControlSummary:
    """One kind of control at one setting: the spread of every estimate over seeds, and how far the edit goes beyond.

    Args:
        headings: Of the rows, beside domains and roles.
        rows: The report's rows of its ``seeds``, which are their measurements.
        edit: The edit they are the control of.
    """
    first, told = rows[0], [name for name, heading in headings.items() if not heading.derived]
    now, controls = under_headings(edit), [under_headings(one) for one in seeds]
    beyond_by_role = {
        role: _beyond(pooled(answers), [pooled(by_role(one)[role]) for one in seeds], bootstrap)
        for role, answers in by_role(edit).items()
    }
    return ControlSummary(
        settings=first.settings,
        seeds=tuple(row.seed for row in rows if row.seed is not None),
        domains={name: _spreads([row.domains[name].estimates for row in rows]) for name in first.domains},
        roles={role: _spreads([row.roles[role].estimates for row in rows]) for role in first.roles},
        groups={name: _spreads([row.groups[name] for row in rows]) for name in told if name in first.groups},
        edited_share={name: _spread([row.edited_share[name] for row in rows]) for name in first.edited_share},
        edit_minus_control=beyond_by_role
        | {name: _beyond(now.get(name, {}), [one.get(name, {}) for one in controls], bootstrap) for name in told},
    )


def _spreads(measured: Sequence[Mapping[str, Estimate]]) -> dict[str, Spread]:
    """Spread over seeds of each estimate that all of them have."""
    shared = [name for name in measured[0] if all(name in one for one in measured)]
    return {name: _spread([one[name].value for one in measured]) for name in shared}


def _spread(values: Sequence[float]) -> Spread:
    return Spread(mean=math.fsum(values) / len(values), min=min(values), max=max(values))


def _beyond(
    edit: Mapping[str, Pool], controls: Sequence[Mapping[str, Pool]], bootstrap: Bootstrap
) -> dict[str, Estimate]:
    """What the edit's measures are beyond the mean over controls, where they are means and controls were asked."""
    beyond = {}
    for name, pool in edit.items():
        others = [one[name] for one in controls if name in one]
        # items that have a value everywhere, and their mean over seeds one by one, so that the difference is paired
        together = zip(pool.items, *(one.items for one in others), strict=True)
        whole = [at for at, items in enumerate(together) if all(pool.measure.of(item) is not None for item in items)]
        told = [replace(one, items=tuple(one.items[at] for at in whole)).series for one in (pool, *others)]
        known = [one for one in told[1:] if one is not None]
        if (series := told[0]) is not None and known and whole:
            mean = replace(known[0], sums=np.mean([other.sums for other in known], axis=0))
            beyond[name] = series.minus(mean).estimate(bootstrap)
    return beyond
