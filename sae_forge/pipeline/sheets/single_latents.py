"""Each latent by itself, as in arXiv 2410.19278: what editing it alone does, beside other latents, and its text."""

from sae_forge.features.selection import Selection
from sae_forge.results.report import ControlSummary, Report, Row
from sae_forge.results.sheets import Sheet
from sae_forge.results.words import interval, share

COLUMNS = (
    "latent", "forget accuracy", "change", "under other latents of the same norm", "retain change", "edited (forget)",
    "fires most on",
)  # fmt: skip


def single_latents(report: Report, selection: Selection) -> tuple[Sheet, ...]:
    """A row a latent that was edited alone, in the order of the selection; nothing where none was."""
    rows = {row.settings["latent"]: row for row in report.rows if row.edits and "latent" in row.settings}
    if not rows:
        return ()
    controls = {one.settings["latent"]: one for one in report.controls if "latent" in one.settings}
    texts = {latent.index: latent.snippets[0].text if latent.snippets else "" for latent in selection.latents}
    told = tuple(
        (str(latent), *_cells(row, controls.get(latent)), texts.get(latent, "")) for latent, row in rows.items()
    )
    return (Sheet("Each latent alone", COLUMNS, told),)


def _cells(row: Row, control: ControlSummary | None) -> tuple[str, ...]:
    change = row.change.roles if row.change else {}
    forget, retain = (
        change[role].estimates.get("accuracy") if role in change else None for role in ("forget", "retain")
    )
    accuracy = row.roles["forget"].estimates.get("accuracy") if "forget" in row.roles else None
    spread = control.roles.get("forget", {}).get("accuracy") if control else None
    beside = "" if spread is None else f"{spread.mean:.2f} ({spread.min:.2f} to {spread.max:.2f})"
    touched = row.roles["forget"].edited_share if "forget" in row.roles else None
    return interval(accuracy), interval(forget), beside, interval(retain), share(touched, 2)
