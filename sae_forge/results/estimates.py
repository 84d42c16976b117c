"""Reading an eval report's ``metrics``: seeds pooled, settings in words, the points of the trade-off."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Record = Mapping[str, Any]

ROLES = ("forget", "neighbour", "retain")


@dataclass(frozen=True)
class Measurement:
    """One method at one setting; a control's seeds are one measurement."""

    name: str
    settings: Record
    seeds: int
    """How many records it pools."""
    entries: tuple[Record, ...]

    @property
    def label(self) -> str:
        """Name and settings in words: ``scale -3, 100 latents``."""
        return label(self.name, self.settings) + (f" ({self.seeds} seeds)" if self.seeds > 1 else "")

    def domain(self, domain: str, measure: str) -> Record | None:
        """The estimate of one measure in one domain; None where it was not measured."""
        return pool([entry.get("domains", {}).get(domain, {}).get(measure) for entry in self.entries])

    def group(self, group: str, measure: str) -> Record | None:
        """The estimate under another heading of the report: ``loss``, ``generation``."""
        return pool([entry.get(group, {}).get(measure) for entry in self.entries])

    def edited_share(self, role: str) -> float | None:
        """Share of real tokens edited on text of a role, the mean over seeds; None under retrained weights."""
        if any(entry.get("kind") == "weights" for entry in self.entries):
            return None
        shares = [entry.get("edited_share", {}).get(role) for entry in self.entries]
        known = [share for share in shares if share is not None]
        return sum(known) / len(known) if known else None


@dataclass(frozen=True)
class TradeOff:
    """What one measurement does to what is forgotten, and the worst it does elsewhere."""

    measurement: Measurement
    forget: Record
    """The estimate in the forget domain where it is highest."""
    utility: Record
    """The estimate in the neighbour or retain domain where it is lowest, with that domain's own interval."""


def measurements(metrics: Record) -> list[Measurement]:
    """Every method at every setting, in the report's order."""
    groups: dict[str, list[Record]] = {}
    for method in metrics["methods"]:
        groups.setdefault(repr((method["name"], sorted(method["settings"].items(), key=str))), []).append(method)
    return [Measurement(group[0]["name"], group[0]["settings"], len(group), tuple(group)) for group in groups.values()]


def methods(metrics: Record) -> list[Measurement]:
    """The measurements that are no random controls."""
    return [measurement for measurement in measurements(metrics) if measurement.name != "random"]


def controls_of(metrics: Record, found: Measurement) -> list[Measurement]:
    """The random controls of one measurement."""
    asked = {"of": found.name, **found.settings}.items()
    every = measurements(metrics)
    return [control for control in every if control.name == "random" and control.settings.items() >= asked]


def headline(metrics: Record) -> list[Measurement]:
    """Each method at the first setting it was measured at."""
    found: dict[str, Measurement] = {}
    for measurement in measurements(metrics):
        found.setdefault(measurement.name, measurement)
    return list(found.values())


def trade_offs(metrics: Record, measure: str) -> list[TradeOff]:
    """A point for each measurement; one without an estimate on both sides has none."""
    points = []
    for measurement in measurements(metrics):
        by_role = {
            role: [
                estimate
                for domain, entry in metrics["domains"].items()
                if entry["role"] == role and (estimate := measurement.domain(domain, measure))
            ]
            for role in ROLES
        }
        others = by_role["neighbour"] + by_role["retain"]
        if by_role["forget"] and others:
            highest = max(by_role["forget"], key=lambda estimate: estimate["value"])
            lowest = min(others, key=lambda estimate: estimate["value"])
            points.append(TradeOff(measurement, highest, lowest))
    return points


def domains(metrics: Record) -> list[str]:
    """Domain names: what is forgotten, then its neighbours, then what is kept."""
    return sorted(metrics["domains"], key=lambda name: ROLES.index(metrics["domains"][name]["role"]))


def pool(estimates: Sequence[Record | None]) -> Record | None:
    """Estimates of several seeds as one: the mean value, from the lowest low to the highest high."""
    known = [estimate for estimate in estimates if estimate is not None]
    if not known:
        return None
    return {
        "value": sum(estimate["value"] for estimate in known) / len(known),
        "low": min(estimate["low"] for estimate in known),
        "high": max(estimate["high"] for estimate in known),
    }


def label(name: str, settings: Record) -> str:
    """A method and its settings in words; a control first of all says what it is the control of."""
    if name == "random":
        rest = {key: value for key, value in settings.items() if key not in ("of", "kind")}
        return f"random {settings['kind']} for {label(settings['of'], rest)}"
    words = []
    for key, value in settings.items():
        text = f"{value:g}" if isinstance(value, float) else str(value)
        match key:
            case "scale" if name == "scale":
                words.insert(0, text)
            case "steps" | "batch_size" | "refusal_latent":
                pass  # the same in every row; the report's JSON has them
            case "num_features":
                words.append(f"{text} latents")
            case _:
                words.append(f"{key.replace('_', ' ')} {text}")
    return " ".join([name, ", ".join(words)]).strip()
