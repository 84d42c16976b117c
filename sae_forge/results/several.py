"""What one command measured on several SAEs: a row for each, with its own report, or with why it has none."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_forge.errors import DataError
from sae_forge.results.pooled import Pooled, controls_of, methods
from sae_forge.results.report import Report
from sae_forge.results.sheets import Sheet
from sae_forge.results.words import interval
from sae_forge.statistics.estimate import Estimate
from sae_forge.store import files, records

FOLDER = "several"
COLUMNS = (
    "SAE", "reads", "latents", "L0 (forget text)", "selected", "setting", "forget", "change", "under random controls",
    "neighbours", "retain",
    "loss on retain text", "why not",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One method on one SAE, at the setting that was chosen; controls pooled."""

    setting: str
    """Method and settings in words."""
    roles: Mapping[str, Estimate]
    """The first measure that a sweep is tuned on, by role: question accuracy."""
    change: Estimate | None = None
    """Of it in the forget role, against the model as it is."""
    controlled: tuple[float, float] | None = None
    """The least and the most that any random control left of it in the forget role."""
    retain_loss: Estimate | None = None
    """What it adds, nats per token."""


@dataclass(frozen=True, kw_only=True)
class OneSAE:
    """A row of the table."""

    sae: str
    """As ``--sae`` names it alone."""
    reads: str = ""
    """Its hook point."""
    d_sae: int | None = None
    l0: float | None = None
    """Latents that fire on a token of the forget text, on average."""
    selected: str = ""
    """How many latents by which method."""
    report: str | None = None
    """Folder of its report, from the run's."""
    measured: tuple[Measured, ...] = ()
    failed: str | None = None
    """Why it was not measured."""


@dataclass(frozen=True, kw_only=True)
class Several:
    """Every SAE that a pattern stands for, in the order of their names."""

    pattern: str
    rows: tuple[OneSAE, ...]

    def sheet(self) -> Sheet:
        """A row an SAE, or one for each method measured on it; columns that would be empty are left out."""
        rows = [cells for one in self.rows for cells in _cells(one)]
        kept = [place for place, _ in enumerate(COLUMNS) if any(row[place] for row in rows)]
        return Sheet(
            f"{len(self.rows)} SAEs of {self.pattern}",
            tuple(COLUMNS[place] for place in kept),
            tuple(tuple(row[place] for place in kept) for row in rows),
        )

    def save(self, run: Path) -> Path:
        """Write it into a run, under a name of the pattern's own."""
        path = run / FOLDER / f"{files.short_hash([self.pattern])}.json"
        files.publish_json(path, records.encode(self))
        return path


def load_several(path: Path) -> Several:
    """What :meth:`Several.save` wrote.

    Raises:
        DataError: it is missing or malformed.
    """
    return records.read(Several, path, error=DataError, what="a table of several SAEs", hint="run the command again")


def measured_of(report: Report) -> tuple[Measured, ...]:
    """What a report says of every method that edits latents at its first, or its chosen, setting."""
    first: dict[str, Pooled] = {}
    for one in methods(report):
        if one.name != "baseline" and not one.rows[0].at_rest and "latent" not in one.settings:
            first.setdefault(one.name, one)
    return tuple(_measured(report, one) for one in first.values())


def _measured(report: Report, one: Pooled) -> Measured:
    measure = next((measure.name for measure in report.measures), "")
    roles = {role: estimate for role in ("forget", "neighbour", "retain") if (estimate := one.role(role, measure))}
    row = one.rows[0]
    change = row.change.roles.get("forget") if row.change else None
    under = [
        control.rows[place].roles["forget"].estimates[measure].value
        for control in controls_of(report, one)
        for place, its in enumerate(control.rows)
        if "forget" in its.roles and measure in its.roles["forget"].estimates
    ]
    return Measured(
        setting=one.label,
        roles=roles,
        change=change.estimates.get(measure) if change else None,
        controlled=(min(under), max(under)) if under else None,
        retain_loss=row.change.groups.get("loss", {}).get("retain") if row.change else None,
    )


def _cells(one: OneSAE) -> Sequence[tuple[str, ...]]:
    about = (
        one.sae, one.reads, "" if one.d_sae is None else f"{one.d_sae:,}", "" if one.l0 is None else f"{one.l0:.1f}",
        one.selected,
    )  # fmt: skip
    return [(*about, *_numbers(measured), "") for measured in one.measured] or [
        (*about, *([""] * (len(COLUMNS) - len(about) - 1)), one.failed or "")
    ]


def _numbers(one: Measured) -> tuple[Any, ...]:
    under = "" if one.controlled is None else f"{one.controlled[0]:.2f} to {one.controlled[1]:.2f}"
    of_role = {role: interval(one.roles.get(role)) for role in ("forget", "neighbour", "retain")}
    return (
        one.setting, of_role["forget"], interval(one.change), under, of_role["neighbour"], of_role["retain"],
        interval(one.retain_loss, 3),
    )  # fmt: skip
