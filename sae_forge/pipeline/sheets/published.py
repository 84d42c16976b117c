"""What a paper reported beside what was measured here, setting by setting."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sae_forge.config.model import ModelConfig, plain, shown
from sae_forge.results.pooled import Pooled, pool, pooled
from sae_forge.results.report import SHIFT_RATIO, Report
from sae_forge.results.sheets import Sheet
from sae_forge.results.words import interval, label, spaced
from sae_forge.settings import Preset, settings_for
from sae_forge.statistics.estimate import Estimate

COLUMNS = ("method", "measure", "published", "measured here")
NOT_MEASURED = "not measured"

CHANGES = ("_shift", "_added")
"""How a paper's number ends that is a change from the baseline."""


def published_beside(preset: Mapping[str, Any], report: Report) -> Sheet:
    """A row for each number the preset's paper reported; empty where the preset reports none.

    A published setting is beside the measurement whose settings contain it. Numbers of one that was not measured, and
    of measures there are none of here, are shown all the same.
    """
    published = preset.get("published", {})
    measured = pooled(report)
    rows = tuple(row for entry in published.get("rows", ()) for row in _rows(entry, measured))
    return Sheet(f"published beside measured: {published.get('source', 'no source')}", COLUMNS, rows)


def as_published(name: str, preset: Preset, config: ModelConfig) -> Sheet:
    """What a run under a preset does as the paper's released code, and what it does otherwise.

    A setting that the user changed is among the latter, and so are the preset's own admissions.
    """
    says: Mapping[str, str] = preset.get("as_published", {})
    set_by = settings_for(preset, config.model)
    kept = {setting: plain(getattr(config, setting)) == value for setting, value in set_by.items()}
    rows = [(f"--{setting} {shown(getattr(config, setting))}", says[setting]) for setting in says if kept[setting]]
    changed = [setting for setting in set_by if not kept[setting] and setting in config.spelled]
    rows = [("as published", f"{flag}: {why}") for flag, why in rows]
    rows += [
        ("differs", f"--{name} {shown(getattr(config, name))}, where the preset has {_brief(set_by[name])}")
        for name in changed
    ]
    rows += [("differs", words) for words in preset.get("differs", ())]
    return Sheet(f"{name}: what is done as published, and what differs", ("", "what"), tuple(rows))


def _brief(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _rows(entry: Mapping[str, Any], measured: Sequence[Pooled]) -> Iterator[tuple[str, ...]]:
    settings = entry.get("settings", {})
    twin = next((one for one in measured if one.name == entry["method"] and _holds(one.settings, settings)), None)
    name = label(entry["method"], settings)
    for measure, numbers in entry.items():
        if measure in ("method", "settings"):
            continue
        for place, number in numbers.items() if isinstance(numbers, Mapping) else [("", numbers)]:
            estimate = None if twin is None else _measured(twin, measure, place)
            words = spaced(f"{measure} {place}".strip())
            yield name, words, f"{number:.3f}", interval(estimate, 3) or NOT_MEASURED


def _holds(settings: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether a measurement was made at all the settings that are wanted; others it has do not matter."""
    for name, value in wanted.items():
        given = settings.get(name)
        if isinstance(given, int | float) and isinstance(value, int | float):
            same = math.isclose(given, value, rel_tol=1e-6)
        else:
            same = name in settings and given == value
        if not same:
            return False
    return True


def _measured(twin: Pooled, measure: str, place: str) -> Estimate | None:
    """The estimate of one published measure, over the seeds of its rows; None where there is none.

    ``place`` is a role (forget, neighbour, retain), all its domains pooled, or the name of one domain.
    """
    if measure == "alignment":
        return pool(row.change.alignment for row in twin.rows if row.change is not None)
    ending = next((one for one in CHANGES if measure.endswith(one)), "")
    measure, estimates = measure.removesuffix(ending), []
    for row in twin.rows:
        if (said := row.change if ending or measure == SHIFT_RATIO else row) is None:
            continue
        cells = (said.roles.get(place), said.domains.get(place))
        placed = [(cell.estimates, measure) for cell in cells if cell is not None]
        # what stands under a heading goes by the place alone where it is called as its heading, else by both
        under = [(said.groups.get(measure, {}), place)]
        under += [(group, f"{measure}_{place}" if place else measure) for group in said.groups.values()]
        estimates.append(next((of[key] for of, key in (*placed, *under) if key in of), None))
    return pool(estimates)
