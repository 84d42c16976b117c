"""Selections side by side: what each knows of its latents before any edit, and what the same edit of them then does.

Latents that fire together push a token several times over, so a selection whose latents are correlated may cost more
elsewhere; the rank correlation over selections says whether it did here.
"""

from collections.abc import Mapping, Sequence

from sae_forge.features.selection import Selection
from sae_forge.results.report import ROLES, ComparedSelection, RankCorrelation, Row, SelectionComparison
from sae_forge.statistics.ranking import spearman
from sae_forge.tasks.task import Task

FEWEST = 4
"""Selections below which a rank correlation says nothing."""


def label_of(selection: Selection, others: Sequence[Selection]) -> str:
    """A selection's method, numbered where several are of one method."""
    alike = [other for other in others if other.method == selection.method]
    return selection.method if len(alike) == 1 else f"{selection.method} {alike.index(selection) + 1}"


def compared(selections: Mapping[str, Selection], rows: Sequence[Row], tasks: Sequence[Task]) -> SelectionComparison:
    """The report's ``selections``.

    Args:
        selections: By the name that ``settings["selection"]`` of a row gives.
        rows: The report's rows, with one for each selection under the same edit.
        tasks: Of the first measure of those that a sweep tunes on, what changed in every role; of what is called as its
            heading, what changed of text to keep.
    """
    tuned = [task.measures[0].name for task in tasks if task.tuned_on]
    headings = [measure.name for task in tasks for measure in task.measures if measure.name == task.group]
    measured = {row.settings["selection"]: row for row in rows if "selection" in row.settings}
    entries = []
    for name, selection in selections.items():
        if (row := measured.get(name)) is None:
            continue
        assert row.change is not None
        analysis, roles = selection.analysis, row.change.roles
        separation = None if analysis is None else analysis.separation
        of_roles = {
            f"{role}_{name}": roles[role].estimates.get(name) if role in roles else None
            for name in tuned
            for role in ROLES
        }
        of_text = {f"retain_{name}": row.change.groups.get(name, {}).get("retain") for name in headings}
        entries.append(
            ComparedSelection(
                selection=name,
                latents=row.settings["num_features"],
                auroc=None if separation is None else separation.auroc,
                mean_correlation=None if separation is None else separation.mean_correlation,
                overlap={} if analysis is None else analysis.overlap,
                changes=of_roles | of_text,
            )
        )
    against = {}  # Spearman's, of the latents' mean correlation with the size of each side effect
    for effect in dict.fromkeys(name for entry in entries for name in entry.changes):
        # what is to go is no side effect
        if effect.startswith("forget_"):
            continue
        pairs = [
            (entry.mean_correlation, abs(changed.value))
            for entry in entries
            if entry.mean_correlation is not None and (changed := entry.changes[effect]) is not None
        ]
        if len(pairs) >= FEWEST:
            against[effect] = RankCorrelation(spearman=spearman(*zip(*pairs, strict=True)), selections=len(pairs))
    return SelectionComparison(rows=tuple(entries), correlation_against=against)
