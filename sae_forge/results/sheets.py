"""The tables of a report: finished cells, the same on a terminal, on a page and on a card."""

import html
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from sae_forge.results.measure import Measure
from sae_forge.results.pooled import Pooled, controls, controls_of, methods, pool, pooled
from sae_forge.results.report import ROLES, Point, Report, SelectionComparison, Sweep
from sae_forge.results.words import capital, interval, label, lowered, number, share, spaced, with_unit

CONTROLS = "Random controls: "
FLOORS = {
    "utility_99": "lowest forget at 99% of retain",
    "utility_1pt": "lowest forget at one point lost",
    "neighbours_99": "lowest forget at 99% of retain and neighbours",
}
"""What a sweep's best points keep, as heads of columns."""
SCORES = {
    "saebench_score": "SAEBench score (dev)",
    "unlearning_score": "unlearning score (dev)",
    "hypervolume": "hypervolume",
    "best_alignment": "best alignment",
}
"""Single numbers of a sweep that papers quote, as heads of columns."""

Column = tuple[str, Callable[[Pooled], str]]
"""A head, and the cell under it of one method."""


@dataclass(frozen=True)
class Sheet:
    """A table for a person; cells are finished text."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def _repr_html_(self) -> str:
        """What a notebook shows; no cell can become mark-up."""
        heads = "".join(f"<th>{html.escape(column)}</th>" for column in self.columns)
        lines = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in self.rows
        )
        return f"<table><caption>{html.escape(self.title)}</caption><tr>{heads}</tr>{lines}</table>"


def overview(report: Report) -> Sheet:
    """A row a method: what matters most of every task, with intervals, and how much was edited.

    Roles come first, and the domains of a role that has several come last. Controls have rows of their own, seeds
    pooled; after a sweep, where they would be three rows of four, a column says what they did to what is forgotten.
    """
    measures = [one for one in report.measures if one.shown == "always"] or report.measures
    columns, domains, titles = [], [], []
    of_role = {role: [name for name in report.domain_names if report.domains[name].role == role] for role in ROLES}
    for measure in measures:
        several = f"{measure.words}: " if titles else ""
        for role, names in of_role.items():
            each = [(f"{several}{name} ({role})", _in_domain(name, measure)) for name in names]
            columns += each if len(each) < 2 else [(f"{several}{role} ({len(each)} domains)", _in_role(role, measure))]
            domains += each if len(each) > 1 else []
        titles.append(f"{with_unit(measure.words, measure.unit)} by role and domain")
    if report.sweep is not None:
        tuned_by = report.sweep.measure
        columns.append(("forget (under random controls)", lambda one: _controlled(report, one, tuned_by)))
    for group, task in report.groups.items():
        for key in _keys(report, group):
            measure = task.measure(key)
            if measure.shown == "always" and (measure.name == key or key in ROLES):
                head = measure.words if measure.name == key else f"{measure.words} ({key})"
                columns.append((head, _in_group(group, key, measure)))
        titles += [with_unit(lowered(task.title), task.measures[0].unit)] if task.measures[0].shown == "always" else []
    columns += [  # role=role binds it now: else every cell would be of the last one
        (f"edited ({role})", lambda one, role=role: share(one.edited_share(role), 1)) for role in ("forget", "retain")
    ]
    titles.append("share of tokens edited")
    if precision := report.protocol.get("precision"):
        titles.append(f"a model of {precision} weights")
    computed = report.protocol.get("computed_in", {})
    if computed and computed["model"] != computed["sae"]:
        titles.append(f"the model computes in {computed['model']}, the SAE in {computed['sae']}")
    return _sheet("; ".join(titles), [*columns, *domains], methods(report) if report.sweep else pooled(report))


def sheets(report: Report) -> Iterator[Sheet]:
    """Every table: measures by domain, then by heading, methods and their random controls apart; then the sweep."""
    for whose, several in (("", methods(report)), (CONTROLS, controls(report))):
        for title, columns in _columns(report):
            sheet = _sheet(capital(whose + (lowered(title) if whose else title)), columns, several)
            if len(sheet.columns) > 1:
                yield sheet
    if report.sweep is not None:
        yield _swept(report.sweep, report.unsaid)
    if report.selections is not None:
        yield _compared(report.selections)


def notes(report: Report) -> Iterator[str]:
    """What is to be said below the tables."""
    for effect, over in report.selections.correlation_against.items() if report.selections else ():
        rank = "undefined, as one of them does not vary" if over.spearman is None else number(over.spearman)
        yield (
            f"Over {over.selections} selections, the rank correlation of the latents' mean correlation with the size "
            f"of the change in {spaced(effect)} is {rank}."
        )
    yield from (f"Not measured: {reason}." for reason in report.left_out.values())
    if (opening := report.protocol.get("opening")) is not None:
        yield f"{capital(opening['words'])}."
    if precision := report.protocol.get("precision"):
        yield f"The model's weights are {precision}: what it knows and forgets is not that of the model in full."


# ---- tables of methods --------------------------------------------------------------------------


def _columns(report: Report) -> Iterator[tuple[str, list[Column]]]:
    """The title and the columns of each table that has a method to a row."""
    heads = {name: f"{name} ({one.role}, {one.items})" for name, one in report.domains.items()}
    for measure in report.measures:
        if measure.shown != "in the file":
            title = with_unit(measure.words, measure.unit)
            yield title, [(heads[name], _in_domain(name, measure)) for name in report.domain_names]
    for group, task in report.groups.items():
        shown = {key: task.measure(key) for key in _keys(report, group) if task.measure(key).shown != "in the file"}
        columns = [(one.words if one.name == key else key, _in_group(group, key, one)) for key, one in shown.items()]
        yield with_unit(task.title, task.measures[0].unit), columns
    roles = dict.fromkeys(role for row in report.rows for role in row.edited_share)
    edited = [(f"{role} tokens edited", lambda one, role=role: share(one.edited_share(role))) for role in roles]
    yield (
        "how much was edited, and alignment",
        [
            *edited,
            ("alignment", lambda one: interval(pool(row.change.alignment if row.change else None for row in one.rows))),
        ],
    )


def _keys(report: Report, group: str) -> Iterable[str]:
    """What was measured under a heading by any row: measures in their task's order, or places in the report's."""
    keys = dict.fromkeys(key for row in report.rows for key in row.groups.get(group, {}))
    order = [measure.name for measure in report.groups[group].measures]
    # a key that is no measure's is a place; sorting is stable, so places keep the order in which they were measured
    return sorted(keys, key=lambda key: order.index(key) if key in order else len(order))


def _in_role(role: str, measure: Measure) -> Callable[[Pooled], str]:
    return lambda one: interval(one.role(role, measure.name), measure.digits)


def _in_domain(name: str, measure: Measure) -> Callable[[Pooled], str]:
    return lambda one: interval(one.domain(name, measure.name), measure.digits)


def _in_group(group: str, key: str, measure: Measure) -> Callable[[Pooled], str]:
    return lambda one: interval(one.group(group, key), measure.digits)


def _controlled(report: Report, method: Pooled, measure: str) -> str:
    """The least and the most that any kind of random control left of what is forgotten."""
    values = [
        row.roles["forget"].estimates[measure].value
        for control in controls_of(report, method)
        for row in control.rows
        if "forget" in row.roles and measure in row.roles["forget"].estimates
    ]
    return f"{min(values):.2f} to {max(values):.2f}" if values else ""


def _sheet(title: str, columns: Sequence[Column], several: Sequence[Pooled]) -> Sheet:
    """A row a method; a column that would be empty is left out."""
    filled = [(head, cells) for head, cell in columns if any(cells := [cell(one) for one in several])]
    rows = zip((one.label for one in several), *(cells for _, cells in filled), strict=True)
    return Sheet(title, ("method", *(head for head, _ in filled)), tuple(rows))


# ---- tables of their own ------------------------------------------------------------------------


def _swept(sweep: Sweep, unsaid: Sequence[str]) -> Sheet:
    """What the sweep tried and chose, a row a method."""
    told = [score for score in SCORES if any(getattr(one, score) is not None for one in sweep.methods.values())]
    if "saebench_score" in told:  # the same number by its own name; a report of before has no other
        told = [score for score in told if score != "unlearning_score"]
    scores = [SCORES[score] for score in told]
    heads = ("method", "settings tried", "chosen", "by rule", "forget", "retain", *FLOORS.values(), *scores)
    rows = (
        (
            name,
            str(one.configurations),
            label("", one.chosen.settings, unsaid),
            spaced(one.rule) + (f" ({one.end})" if one.end else ""),
            number(one.chosen.forget),
            number(one.chosen.utility),
            *(_lowest(one.best_at, floor) for floor in FLOORS),
            *(number(getattr(one, score)) for score in told),
        )
        for name, one in sweep.methods.items()
    )
    return Sheet(f"The sweep, on the {sweep.half} half: what was tried and what was chosen", heads, tuple(rows))


def _lowest(best_at: Mapping[str, Point | None], floor: str) -> str:
    """``none`` where no point is above the floor; nothing where there is no such floor."""
    if floor not in best_at:
        return ""
    point = best_at[floor]
    return "none" if point is None else number(point.forget)


def _compared(selections: SelectionComparison) -> Sheet:
    """Every selection under the same edit: what its latents are like, and what editing them changed."""
    changes = list(dict.fromkeys(name for row in selections.rows for name in row.changes))
    heads = ("selection", "latents", "AUROC", "mean correlation", *map(spaced, changes))
    rows = (
        (
            row.selection,
            str(row.latents),
            *("" if one is None else number(one) for one in (row.auroc, row.mean_correlation)),
            *("" if (one := row.changes.get(name)) is None else number(one) for name in changes),
        )
        for row in selections.rows
    )
    return Sheet("Every selection under the same edit: changes against the model as it is", heads, tuple(rows))
