"""What anybody asks of an unlearned model first, each question with a mark that the numbers of the report bear out.

A mark is ``yes`` only where intervals leave no other reading: never where a random control's interval overlaps the
edit's own. What was not asked is said to be not measured, and is no ``no``.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from sae_forge.results.claims import BROKEN_NATS, BROKEN_POINTS, POINTS
from sae_forge.results.measure import Measure
from sae_forge.results.pooled import Pooled, controls_of, methods
from sae_forge.results.report import Report, Row
from sae_forge.results.sheets import Sheet
from sae_forge.results.words import interval, moved
from sae_forge.statistics.estimate import Estimate

Mark = Literal["yes", "partly", "no", "unclear", "not measured"]
SIGNS: dict[Mark, str] = {"yes": "✓", "partly": "◐", "no": "✗", "unclear": "?", "not measured": "–"}
"""A sign for each, which stands beside the word and never alone."""
FURTHER = "Further than a random push?"
QUESTIONS = ("Forgotten?", "All else kept?", FURTHER, "Does it last?")
FEW = 2
"""Edits whose numbers stand in the first lines of a report; of more their names alone."""
RELEARNED = "relearned"
SMALL_POINTS = 1
"""Points of retained accuracy whose loss, where it is no more than chance, counts as none."""
SMALL_NATS = 0.02
"""The same for the loss on retain text, in nats per token."""


@dataclass(frozen=True)
class Answer:
    """One question about one method."""

    mark: Mark
    words: str
    """The numbers behind the mark."""

    def __str__(self) -> str:
        return f"{SIGNS[self.mark]} {self.mark}"


@dataclass(frozen=True)
class Verdict:
    """A method at one setting, and the answer to each of ``QUESTIONS``, in their order."""

    title: str
    answers: tuple[Answer, Answer, Answer, Answer]


def verdicts(report: Report) -> list[Verdict]:
    """Of every method at every setting, in the report's order; controls, and what lays latents to rest, have none."""
    return [
        Verdict(row.title, (_forgotten(report, one), _kept(row), _further(report, one), _lasting(report, row)))
        for one in methods(report)
        if not (row := one.rows[0]).at_rest and row.kind != "baseline" and "selection" not in row.settings
        if not row.name.endswith(f"+{RELEARNED}")
    ]


def verdict_sheet(report: Report) -> Sheet:
    """The marks alone, a row a method."""
    rows = ((one.title, *map(str, one.answers)) for one in verdicts(report))
    return Sheet("The verdict, as far as the intervals allow one", ("method", *QUESTIONS), tuple(rows))


def unproven(report: Report) -> list[str]:
    """What must be said before all else: which edits forget no more than a random push, or than zeroing latents.

    A sentence each, or one for many; none where every edit goes beyond its controls.
    """
    alone = {row.title for row in report.rows if "latent" in row.settings}  # of many latents most do nothing each
    answers = {one.title: one.answers[QUESTIONS.index(FURTHER)] for one in verdicts(report) if one.title not in alone}
    doubted = {title: answer for title, answer in answers.items() if answer.mark == "no"}
    lines = [
        f"{title}: forgetting is not shown to come from its latents ({answer.words})."
        for title, answer in doubted.items()
    ]
    if len(lines) > FEW:
        lines = [f"Forgetting is not shown to come from the latents, or the direction, of: {'; '.join(doubted)}."]
    told = {row.title: _forgetting(report, row) for row in report.rows[1:] if not row.is_control}
    for zeroed in (row.title for row in report.rows if row.at_rest):
        as_far = [
            row.title
            for row in report.rows
            if row.edits
            and not {"selection", "latent"} & set(row.settings)
            and (it := told[row.title]) is not None
            and (least := told[zeroed]) is not None
            and it.change.high < 0
            and least.after.value <= it.after.value
        ]
        if as_far:
            lines.append(f"{zeroed}, which only lays latents to rest, forgets as much as {'; '.join(as_far)}.")
    return lines


def unseen(report: Report) -> list[str]:
    """What the questions that settings were chosen on cannot rule out, where they were chosen for sparing what is kept:
    a sentence for all methods, or none.
    """
    told = []
    for name, one in report.sweep.methods.items() if report.sweep else ():
        if one.rule == "spared":
            kept = (
                f"{role} {moved(change, POINTS)}" for role, change in one.chosen.changes.items() if role != "forget"
            )
            told.append(f"{name} ({', '.join(kept)})")
    said = "Chosen because the questions tuned on show no loss of what is kept; one down to the lower ends of"
    return [f"{said} these changes they do not rule out, in points: {'; '.join(told)}."] if told else []


# ---- the questions ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Forgetting:
    """The measure that says what is forgotten, turned so that forgetting is a fall."""

    words: str
    before: Estimate
    after: Estimate
    change: Estimate
    """After less before; below zero is forgetting."""
    turn: int
    """1 where less of the measure is forgetting, -1 where more is."""
    role: Measure | None = None
    """None: the loss on held-out forget text, which rises."""
    chance: float | None = None


def _forgetting(report: Report, row: Row) -> _Forgetting | None:
    """By the accuracy on what is to be forgotten, else by what a sweep would tune by, else by the loss on its text."""
    cell, before = row.roles.get("forget"), report.base.roles.get("forget")
    changed = {} if row.change is None or "forget" not in row.change.roles else row.change.roles["forget"].estimates
    named = sorted(report.measures, key=lambda one: (one.name != "accuracy", one is not report.leading))
    for measure in named:
        if cell and before and measure.better != "neither" and measure.name in changed.keys() & cell.estimates.keys():
            turn = 1 if measure.better == "up" else -1
            return _Forgetting(
                measure.words,
                _times(before.estimates[measure.name], turn),
                _times(cell.estimates[measure.name], turn),
                _times(changed[measure.name], turn),
                turn,
                measure,
                None if turn < 0 else (cell.chance or {}).get(measure.name, measure.chance),
            )
    losses, change = row.groups.get("loss", {}), {} if row.change is None else row.change.groups.get("loss", {})
    if "forget" not in losses or "forget" not in change:
        return None
    before = report.base.groups["loss"]["forget"]
    return _Forgetting(
        "loss on forget text", _times(before, -1), _times(losses["forget"], -1), _times(change["forget"], -1), -1
    )


def _times(estimate: Estimate, turn: int) -> Estimate:
    return estimate if turn > 0 else Estimate(-estimate.value, -estimate.high, -estimate.low)


def _forgotten(report: Report, one: Pooled) -> Answer:
    told = _forgetting(report, one.rows[0])
    if told is None:
        return Answer("not measured", "nothing was asked about what is to be forgotten")
    said = f"{told.words} {moved(told.change)}"
    if told.change.high >= 0:
        return Answer("no", f"{said}: no fall is shown")
    if told.role is not None:
        said = f"{told.words} from {told.before.value:.2f} to {interval(told.after)}"
    if any(_overlaps(control, told) for control in controls_of(report, one)):
        return Answer("unclear", f"{said}, and a random control's interval reaches that far")
    if told.chance is None:
        return Answer("partly", f"{said}; no guessing to hold it against")
    if told.after.low <= told.chance <= told.after.high:
        return Answer("yes", f"{said}, not told apart from guessing ({told.chance:g})")
    where = "below guessing, so turned round rather than gone" if told.after.high < told.chance else "above guessing"
    return Answer("partly", f"{said}, {where} ({told.chance:g})")


def _kept(row: Row) -> Answer:
    """What is kept, and what lies close to what is forgotten: questions in points, the loss in nats."""
    told = list(_side_effects(row))
    if not told:
        return Answer("not measured", "nothing was asked about what should stay")
    words = "; ".join(said for _, said in told)
    worst_first: tuple[Mark, ...] = ("no", "partly", "unclear", "yes")
    marks = [mark for mark, _ in told]
    return Answer(next(mark for mark in worst_first if mark in marks), words)


def _side_effects(row: Row) -> Iterator[tuple[Mark, str]]:
    change = row.change
    for role in ("retain", "neighbour"):
        if change and role in change.roles and (points := change.roles[role].estimates.get("accuracy")):
            yield _cost(points, POINTS, SMALL_POINTS, BROKEN_POINTS), f"{role} questions {moved(points, POINTS)} points"
    if change and (loss := change.groups.get("loss", {}).get("retain")):
        yield _cost(_times(loss, -1), 1, SMALL_NATS, BROKEN_NATS), f"loss on retain text {moved(loss)} nats"


def _cost(change: Estimate, times: int, small: float, broken: float) -> Mark:
    """What a change, of which a fall is a cost, allows one to say."""
    value, low, high = change.value * times, change.low * times, change.high * times
    if value < -broken:
        return "no"
    if low >= -small:  # measured or not, it is too little to count
        return "yes"
    if high < 0 or value < -small:
        return "partly"
    return "unclear" if low < -broken else "yes"


def _further(report: Report, one: Pooled) -> Answer:
    told = _forgetting(report, one.rows[0])
    beside = controls_of(report, one)
    if told is None or not beside:
        return Answer("not measured", "no random control was measured beside it")
    apart = [control for control in beside if not _overlaps(control, told)]
    kinds = ", ".join(str(control.settings["kind"]) for control in beside if control not in apart)
    if told.change.high >= 0:
        return Answer("no", "it does not forget measurably itself")
    if not kinds:
        return Answer("yes", "no interval of a random control of the same size reaches as far")
    beyond = _beyond(report, one, told)
    if beyond and all(paired.high < 0 for paired in beyond):
        return Answer("partly", f"further than their mean, and their intervals overlap: {kinds}")
    return Answer("no", f"not told apart from a random push: {kinds}")


def _overlaps(control: Pooled, told: _Forgetting) -> bool:
    """Whether the widest interval over the control's seeds reaches the edit's; one without numbers does not."""
    reached = control.group("loss", "forget") if told.role is None else control.role("forget", told.role.name)
    return reached is not None and _times(reached, told.turn).low <= told.after.high


def _beyond(report: Report, one: Pooled, told: _Forgetting) -> list[Estimate]:
    """The paired difference of the edit to the mean of each control, turned so that below zero is further."""
    asked = {"of": one.name, **one.settings}.items()
    differences = []
    for control in report.controls:
        if control.settings.items() >= asked:
            where, key = ("loss", "forget") if told.role is None else ("forget", told.role.name)
            if paired := control.edit_minus_control.get(where, {}).get(key):
                differences.append(_times(paired, told.turn))
    return differences


def _lasting(report: Report, row: Row) -> Answer:
    """Whether what was forgotten stays so when the model is trained on a little of it again."""
    relearned = (one for one in report.rows if one.name == f"{row.name}+{RELEARNED}")
    # of several settings of a method each was relearned from, so the other's says nothing of this one
    again = next((one for one in relearned if one.settings.items() >= row.settings.items()), None)
    told = None if again is None else _forgetting(report, again)
    if again is None or told is None:
        return Answer("not measured", f"name {RELEARNED} beside it in --methods")
    said = f"{again.title}: {told.words} {moved(told.change)}"
    if told.change.high >= 0:
        return Answer("no", f"{said}, so it comes back")
    before = _forgetting(report, row)
    if before is not None and told.change.low > before.change.high:
        return Answer("partly", f"{said}, where it was {moved(before.change)}: part of it comes back")
    return Answer("yes", f"{said}, not told apart from before")
