"""Rows of a report side by side: a control's seeds as one, the points of the trade-off."""

from collections.abc import Iterable
from dataclasses import dataclass

from sae_forge.results.report import Cell, Report, Row, Settings
from sae_forge.results.words import label, seeds
from sae_forge.statistics.estimate import Estimate


@dataclass(frozen=True)
class Pooled:
    """One method at one setting; a control's seeds are one."""

    rows: tuple[Row, ...]
    rough: tuple[str, ...] = ()
    """Settings of the report that say how rough a method was."""
    unsaid: tuple[str, ...] = ()
    """Settings of the report that tables leave out."""

    @property
    def name(self) -> str:
        """The method."""
        return self.rows[0].name

    @property
    def settings(self) -> Settings:
        """Its settings."""
        return self.rows[0].settings

    @property
    def is_control(self) -> bool:
        """Whether it is a random control."""
        return self.rows[0].is_control

    @property
    def label(self) -> str:
        """Name and settings in words, and the number of seeds: ``scale -3, 100 latents``."""
        return seeds(label(self.name, self.settings, self.unsaid), len(self.rows))

    @property
    def family(self) -> str:
        """Name and all settings but how rough it was, in words; of a control the name and its kind."""
        if self.is_control:
            return f"{self.name} {self.settings['kind']}"
        rest = {name: value for name, value in self.settings.items() if name != self._roughness}
        return label(self.name, rest, self.unsaid)

    @property
    def strength(self) -> float | None:
        """How rough it was, where a setting says so."""
        return None if self._roughness is None else self.settings[self._roughness]

    @property
    def _roughness(self) -> str | None:
        numbers = (name for name, value in self.settings.items() if isinstance(value, int | float))
        return next((name for name in numbers if name in self.rough), None)

    def domain(self, domain: str, measure: str) -> Estimate | None:
        """The estimate of one measure in one domain; None where it was not measured."""
        return pool(_estimate(row.domains.get(domain), measure) for row in self.rows)

    def role(self, role: str, measure: str) -> Estimate | None:
        """The estimate of one measure over the domains of a role."""
        return pool(_estimate(row.roles.get(role), measure) for row in self.rows)

    def group(self, group: str, key: str) -> Estimate | None:
        """The estimate under another heading of the report: ``loss``, ``generation``."""
        return pool(row.groups.get(group, {}).get(key) for row in self.rows)

    def edited_share(self, role: str) -> float | None:
        """Share of real tokens edited on text of a role, the mean over seeds; None under retrained weights."""
        if any(row.kind == "weights" for row in self.rows):
            return None
        shares = [row.edited_share[role] for row in self.rows if role in row.edited_share]
        return sum(shares) / len(shares) if shares else None


@dataclass(frozen=True)
class TradeOff:
    """What one method at one setting does to what is forgotten, and the worst it does elsewhere."""

    pooled: Pooled
    forget: Estimate
    """The estimate in the forget domain where it is highest."""
    utility: Estimate
    """The estimate in the neighbour or retain domain where it is lowest, with that domain's own interval."""


def pooled(report: Report) -> list[Pooled]:
    """Every method at every setting, in the report's order."""
    alike: dict[str, list[Row]] = {}
    for row in report.rows:
        # seeds are no setting, so rows that differ in the seed alone come together; a setting may be a list, which is
        # no key, but its text is
        alike.setdefault(repr((row.name, sorted(row.settings.items(), key=str))), []).append(row)
    return [Pooled(tuple(rows), report.rough, report.unsaid) for rows in alike.values()]


def methods(report: Report) -> list[Pooled]:
    """Those that are no random controls."""
    return [one for one in pooled(report) if not one.is_control]


def controls(report: Report) -> list[Pooled]:
    """Those that are."""
    return [one for one in pooled(report) if one.is_control]


def controls_of(report: Report, method: Pooled) -> list[Pooled]:
    """The random controls of one method at one setting."""
    # a control's settings are those of its row and its own kind, so more than these
    asked = {"of": method.name, **method.settings}.items()
    return [control for control in controls(report) if control.settings.items() >= asked]


def headline(report: Report) -> list[Pooled]:
    """Each method at the first setting it was measured at."""
    first: dict[str, Pooled] = {}
    for one in pooled(report):
        first.setdefault(one.name, one)
    return list(first.values())


def trade_offs(report: Report, measure: str) -> list[TradeOff]:
    """A point for each method at each setting; one without an estimate on both sides has none."""
    points = []
    for one in pooled(report):
        forget, others = [], []
        for name in report.domain_names:
            if estimate := one.domain(name, measure):
                (forget if report.domains[name].role == "forget" else others).append(estimate)
        if forget and others:
            # one domain that is still known, or one that is ruined, must not hide in a mean
            highest, lowest = max(forget, key=lambda one: one.value), min(others, key=lambda one: one.value)
            points.append(TradeOff(one, highest, lowest))
    return points


def pool(estimates: Iterable[Estimate | None]) -> Estimate | None:
    """Estimates of several seeds as one: the mean value, from the lowest low to the highest high."""
    known = [estimate for estimate in estimates if estimate is not None]
    if not known:
        return None
    # the widest, not their mean: seeds are few, and where they disagree the reader should see it
    return Estimate(
        sum(one.value for one in known) / len(known), min(one.low for one in known), max(one.high for one in known)
    )


def _estimate(cell: Cell | None, measure: str) -> Estimate | None:
    return None if cell is None else cell.estimates.get(measure)
