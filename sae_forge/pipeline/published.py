"""What a paper reported beside what was measured here, setting by setting."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sae_forge.outcome import Sheet
from sae_forge.results.estimates import Measurement, Record, label, measurements, pool

COLUMNS = ("method", "measure", "published", "measured here")
NOT_MEASURED = "not measured"

_GROUPS = {
    "accuracy": ("accuracy", False),
    "logprob_shift": ("logprob", True),
}
"""Measures of questions and prompts: what the report calls them, and whether they are a change from the baseline."""


def published_beside(preset: Mapping[str, Any], metrics: Record) -> Sheet:
    """A row for each number the preset's paper reported; empty where the preset reports none.

    A published setting is beside the measurement whose settings contain it. Numbers of one that was not measured, and
    of measures there are none of here, are shown all the same.

    Args:
        metrics: An eval report.
    """
    published = preset.get("published", {})
    found = measurements(metrics)
    rows = tuple(row for entry in published.get("rows", ()) for row in _rows(entry, found))
    return Sheet(f"published beside measured: {published.get('source', 'no source')}", COLUMNS, rows)


def _rows(entry: Record, found: Sequence[Measurement]) -> Iterator[tuple[str, ...]]:
    settings = entry.get("settings", {})
    twin = next((one for one in found if one.name == entry["method"] and _holds(one.settings, settings)), None)
    name = label(entry["method"], settings)
    for measure, numbers in entry.items():
        if measure in ("method", "settings"):
            continue
        for place, number in numbers.items() if isinstance(numbers, Mapping) else [("", numbers)]:
            estimate = None if twin is None else _measured(twin, measure, place)
            words = f"{measure.replace('_', ' ')} {place.replace('_', ' ')}".strip()
            yield name, words, f"{number:.3f}", _shown(estimate)


def _holds(settings: Record, wanted: Record) -> bool:
    """Whether a measurement was made at all the settings that are wanted; others it has do not matter."""
    return all(name in settings and _same(settings[name], value) for name, value in wanted.items())


def _same(value: Any, wanted: Any) -> bool:
    numbers = isinstance(value, int | float) and isinstance(wanted, int | float)
    return math.isclose(value, wanted, rel_tol=1e-6) if numbers else value == wanted


def _measured(twin: Measurement, measure: str, place: str) -> Record | None:
    """The measurement's estimate of one published measure; None where there is none.

    ``place`` is a role (forget, neighbour, retain), all its domains pooled, or the name of one domain.
    """
    if measure in _GROUPS:
        name, is_change = _GROUPS[measure]
        return pool([_asked(entry.get("change", {}) if is_change else entry, place, name) for entry in twin.entries])
    changes = [entry.get("change", {}) for entry in twin.entries]
    match measure:
        case "loss_added":
            return pool([change.get("loss", {}).get(place) for change in changes])
        case "alignment":
            return pool([change.get("alignment") for change in changes])
        case "degenerate":
            return pool([entry.get("generation", {}).get("degenerate") for entry in twin.entries])
        case "verbmem" | "knowmem":
            return twin.group("muse", f"{measure}_{place}")
        case "privleak":
            return twin.group("muse", measure)
        case _:
            return None


def _asked(entry: Record, place: str, name: str) -> Record | None:
    for group in ("roles", "domains"):
        if found := entry.get(group, {}).get(place, {}).get(name):
            return found
    return None


def _shown(estimate: Record | None) -> str:
    return NOT_MEASURED if estimate is None else "{value:.3f} [{low:.3f}, {high:.3f}]".format(**estimate)
