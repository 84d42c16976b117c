"""What the numbers of a report allow one to say, in sentences.

The words are tied to intervals: something fell, rose or differs only where the interval of the paired change
excludes zero. No setting is picked out of those measured on the same questions, because the best of many flatters
itself; what a sweep chose, it chose on other questions.

Questions, prompts, held-out and generated text have sentences of their own. Whatever else a task measures is said
by what its measures say of themselves.
"""

from collections.abc import Iterator, Mapping
from itertools import pairwise

from sae_forge.results.measure import Measure
from sae_forge.results.ratios import shift_ratios
from sae_forge.results.report import Cell, ControlSummary, Report, Row
from sae_forge.results.words import KINDS, capital, in_percent, interval, moved, over_seeds, share, went, with_unit
from sae_forge.statistics.bootstrap import Estimate

REVERSIBLE = "This is a hook on a running model: the weights are unchanged, and removing the hook restores everything."
RETRAINED = (
    "{names}: other weights, trained on a copy; the given model is unchanged, and what went may be learned again."
)
UNCONTROLLED = "Without a random-direction control these numbers do not show that the chosen latents matter."
POINTS = 100
BROKEN_NATS, BROKEN_POINTS = 0.5, 10
"""From how much more loss on retain text, or how many points fewer of its questions, a model no longer works."""
OWN_MEASURES = ("accuracy", "answer_logprob", "probability", "logprob")
"""What the sentence on forgetting is about."""
OWN_GROUPS = ("loss", "generation")
"""What the sentences on side effects and on generated text are about."""


def claims(report: Report) -> list[str]:
    """Sentences on what is broken, on what was chosen and what comes back, then on each method and its controls."""
    rows = report.rows[1:]
    edits = [row for row in rows if row.edits and not {"selection", "latent"} & set(row.settings)]
    trained = [row for row in rows if row.kind == "weights"]
    lines = [*_of_sae(report), *_of_broken(report)]
    lines += _of_sweep(report) if report.sweep else ()
    lines += _of_edit(report, edits[0]) if edits and not report.sweep else ()
    lines += _of_all(report, edits)
    lines += guessing(report.base.roles)
    lines += _of_weights(report)
    # without a sweep the first edit has been said above
    lines += [line for row in edits[0 if report.sweep else 1 :] for line in _of_edit(report, row)]
    lines += [line for row in trained for line in _of_method(report, row)]
    lines += [f"{row.title}: {_forgetting(report, row)}" for row in rows if row.at_rest]
    if len({row.name for row in edits}) < len(edits):
        lines.append(
            f"{len(edits)} settings were measured on the same items; choose among them with --sweep, which tunes on "
            "the dev half and reports on the test half."
        )
    return lines


def caveats(report: Report) -> list[str]:
    """What to bear in mind beside the verdict: what is broken, what was asked of guessing, how it was done."""
    edits = [row for row in report.rows[1:] if row.edits and not {"selection", "latent"} & set(row.settings)]
    lines = [*_of_sae(report), *_of_broken(report), *guessing(report.base.roles), *_of_all(report, edits)]
    if edits and not report.controls:
        lines.append(UNCONTROLLED)
    return [*lines, *_of_weights(report)]


def _of_broken(report: Report) -> list[str]:
    """Before all effects: under a model that lost what is to be kept nothing was unlearned, whatever it forgot."""
    edited = [row for row in report.rows[1:] if not row.is_control]
    broken = [f"{row.title}: {', '.join(lost)}" for row in edited if (lost := _lost(row))]
    return [f"The model is broken under {'; and under '.join(broken)}."] if broken else []


def _of_weights(report: Report) -> list[str]:
    """Which of what was done can be taken back."""
    trained = [row.name for row in report.rows if row.kind == "weights"]
    return [REVERSIBLE, *([RETRAINED.format(names=", ".join(trained))] if trained else [])]


def _of_sae(report: Report) -> list[str]:
    """What the SAE is good for, where that was measured."""
    verdict = report.protocol.get("sae_verdict")
    return [f"As an SAE it is {verdict}."] if verdict else []


def guessing(roles: Mapping[str, Cell]) -> Iterator[str]:
    """A warning for each role on whose questions the unedited model is not told apart from guessing."""
    for role, cell in roles.items():
        right, away = (cell.estimates.get(name) for name in ("accuracy", "chance_distance"))
        if right is not None and away is not None and away.low == 0:
            yield (
                f"Warning: as it is asked here, the unedited model is not told apart from guessing on the {role} "
                f"questions ({interval(right)}), so no change of them means anything; ask otherwise (--scoring, "
                "--shots, --question_template), or a model that knows more."
            )


def headlines(report: Report) -> tuple[list[str], list[str]]:
    """The claims that come first, and after a sweep those about each method by itself."""
    every = list(report.claims)
    if report.sweep is None:
        return every, []
    # ``claims`` ends what it says of all methods with this sentence, and one on other weights where there are any
    first = every.index(REVERSIBLE) + 1
    first += any(row.kind == "weights" for row in report.rows)
    return every[:first], every[first:]


def _lost(row: Row) -> list[str]:
    """Losses of what is kept that no forgetting makes up for."""
    loss, right = _group_change(row, "loss").get("retain"), _changed(row, "retain", "accuracy")
    lost = [f"loss on retain text {moved(loss)} nats"] if loss and loss.value > BROKEN_NATS else []
    few = right is not None and right.value * POINTS < -BROKEN_POINTS
    return [*lost, f"retain questions {moved(right, POINTS)} points"] if right and few else lost


# ---- all methods --------------------------------------------------------------------------------


def _of_sweep(report: Report) -> Iterator[str]:
    """What was tuned, and which methods forget while utility holds, on the half that nothing was chosen on."""
    assert report.sweep is not None
    tuned = {row.name: report.sweep.methods[row.name] for row in report.rows if row.name in report.sweep.methods}
    measure = report.sweep.measure
    asked = "questions" if measure == "accuracy" else _named(report, measure).words
    most = max(one.configurations for one in tuned.values())
    once = [name for name, one in tuned.items() if one.configurations == 1]
    many = f"{len(tuned)} methods, each" if len(tuned) > 1 else "1 method,"
    said = f"{many} tuned over {most} settings on the dev half and measured on the test half"
    yield f"{said} ({', '.join(once)}: nothing to tune, one setting)." if once else f"{said}."
    chance = _chance(report, report.base.roles["forget"], measure)
    at_chosen = [row for row in report.rows if row.name in tuned and row.settings == tuned[row.name].chosen.settings]
    # of what is kept the value, as few questions leave no interval within a point, and the sentence says so; of what
    # is forgotten the interval, or the best of many settings would always seem to forget
    kept = [row for row in at_chosen if not row.at_rest and _change(row, "retain", measure).value >= -1 / POINTS]
    kept = [row for row in kept if _change(row, "forget", measure).high < 0 and not _lost(row)]
    kept.sort(key=lambda row: _standing(row, measure, chance))
    ends = [row.roles["forget"].estimates[measure] for row in kept]
    overlapping = any(one.low <= other.high and other.low <= one.high for one, other in pairwise(ends))
    if not kept:
        yield f"None of them forgets measurably and keeps the retain {asked} within one point, by the values measured."
    else:
        yield (
            f"Forget {asked} under those that keep the retain {asked} within one point, by the values measured, "
            f"nearest to guessing ({chance:g}) first; the order itself was seen on the test half"
            + (", and where intervals overlap it may be chance:" if overlapping else ":")
        )
    for row in kept:
        after, before = row.roles["forget"].estimates[measure], report.base.roles["forget"].estimates[measure]
        turned = ", turned round" if after.high < chance else ""
        beside = _changed(row, "neighbour", measure)
        also = f"; neighbours {moved(beside, POINTS)} points" if beside else ""
        yield f"  {row.name}: {before.value:.2f} to {interval(after)}{turned}{also}"
    for end in ("roughest", "gentlest"):
        if names := [name for name, one in tuned.items() if one.end == end]:
            yield f"Chosen at the {end} strength that was tried, so there may be better beyond: {', '.join(names)}."


def _standing(row: Row, measure: str, chance: float) -> tuple[float, float]:
    """Nearest to chance first, then what the neighbours lose."""
    beside = _changed(row, "neighbour", measure)
    return abs(row.roles["forget"].estimates[measure].value - chance), -beside.value if beside else 0.0


def _of_all(report: Report, edits: list[Row]) -> Iterator[str]:
    """What holds for every edit and is not how the papers have it."""
    how = report.protocol
    if len({row.name for row in edits}) > 1 and "selection" in how:
        yield (
            f"All edits of latents use one selection, {how['selection']}; a paper's own is made with features --method "
            "and compared with --compare_selections."
        )
    elif edits and "selection" in how:
        yield f"The latents are those of the selection {how['selection']}, in its order."
    yield from (f"{capital(line)}." for line in how.get("forms", ()))
    if how.get("gate", "own") != "own":
        yield f"Every edit is in force only where the gate {how['gate']} is open ({how['gate_policy']})."
    if (touched := how.get("tokens", "real")) != "real":
        but = "" if touched == "attended" else " but a text's first"
        yield f"Edits touch special tokens as well{but} (--tokens {touched}), as released code does."
    if not how.get("keep_error", True):
        yield "The SAE's error is dropped (--no_keep_error): part of every change comes from that alone."


# ---- one method ---------------------------------------------------------------------------------


def _of_edit(report: Report, row: Row) -> Iterator[str]:
    yield from _of_method(report, row)
    beside = _controls_of(report, row)
    yield from (f"  {_control(report, control, row)}" for control in beside)
    if not beside:
        yield f"  {UNCONTROLLED}"


def _of_method(report: Report, row: Row) -> Iterator[str]:
    forget = row.roles.get("forget")
    yield f"{row.title}: {_forgetting(report, row)}"
    if row.kind == "hook" and forget is not None and forget.edited_share == 0:
        yield "  No token of the forget questions was edited."
    also = (_of_measure(report, row, measure) for measure in _others(report))
    groups = (_of_group(report, row, group) for group in report.groups if group not in OWN_GROUPS)
    texts = (shift_ratios(report, row), _utility(row), *also, *groups, _fluency(row, report.base))
    yield from (f"  {text}" for text in texts if text)


def _forgetting(report: Report, row: Row) -> str:
    role, before = row.roles.get("forget"), report.base.roles.get("forget")
    if role is None or before is None or not set(role.estimates) & set(OWN_MEASURES):
        if "forget" in row.groups.get("loss", {}):
            return f"loss on forget text {moved(_group_change(row, 'loss')['forget'])} nats per token."
        also = [
            f"{task.title}'s measures"
            for group, task in report.groups.items()
            if group not in OWN_GROUPS and row.groups.get(group)
        ]
        also += [measure.words for measure in _others(report) if role and measure.name in role.estimates]
        asked = f"nothing but {' and '.join(also)}" if also else "nothing"
        return f"{asked} was asked about what is to be forgotten."
    shift = f"log-prob of what should follow {moved(_change(row, 'forget', 'logprob'))} nats per token"
    if "accuracy" not in role.estimates:
        return f"forget prompts: {shift}."
    accuracy, change = role.estimates["accuracy"], _change(row, "forget", "accuracy")
    said = f"forget questions {went(before.estimates['accuracy'].value, accuracy, change)}"
    return f"{said}, {_against_chance(report, role, fell=change.high < 0)}; {shift}."


def _against_chance(report: Report, role: Cell, *, fell: bool) -> str:
    distance = role.estimates["chance_distance"]
    said = f"{distance.value:.2f} from chance"
    if distance.low == 0:  # the interval of the accuracy spans chance: see ``statistics.answers.chance_distance``
        return f"{said} and not told apart from guessing"
    if role.estimates["accuracy"].value < _chance(report, role, "accuracy") and fell:
        return f"{said} and below it, so knowledge is turned round rather than gone"
    return f"{said} and above it"


def _utility(row: Row) -> str:
    """What the edit costs where nothing should change."""
    parts = [
        f"{role} questions {moved(change, POINTS)} points"
        for role in ("retain", "neighbour")
        if (change := _changed(row, role, "accuracy"))
    ]
    if loss := _group_change(row, "loss").get("retain"):
        parts.append(f"loss on retain text {moved(loss)} nats")
    if row.kind == "hook" and "retain" in row.edited_share:
        parts.append(f"{row.edited_share['retain']:.2%} of retain tokens are edited")
    return f"Side effects: {'; '.join(parts)}." if parts else ""


def _fluency(row: Row, base: Row) -> str:
    now = row.groups.get("generation", {}).get("degenerate")
    if now is None:
        return ""
    before = base.groups["generation"]["degenerate"].value
    return f"Generated text: {share(before, 0)} degenerate without the edit, {in_percent(now)} with it."


def _of_measure(report: Report, row: Row, measure: Measure) -> str:
    """A measure of any task in every role, against chance and beside the random controls."""
    parts = []
    for role, cell in row.roles.items():
        if (after := cell.estimates.get(measure.name)) is None:
            continue
        before, change = report.base.roles[role].estimates[measure.name], _change(row, role, measure.name)
        said = f"{role} {went(before.value, after, change, measure.digits)}"
        chance = (cell.chance or {}).get(measure.name, measure.chance)
        if chance is not None:
            apart = (
                "not told apart from" if after.low <= chance <= after.high else f"{abs(after.value - chance):.2f} from"
            )
            said += f", {apart} guessing ({chance:g})"
        spreads = [
            one.roles[role][measure.name] for one in _controls_of(report, row) if measure.name in one.roles[role]
        ]
        if spreads:
            least, most = min(one.min for one in spreads), max(one.max for one in spreads)
            said += f", under random controls {least:.{measure.digits}f} to {most:.{measure.digits}f}"
        parts.append(said)
    note = f" ({measure.note})" if measure.note else ""
    return f"{capital(with_unit(measure.words, measure.unit))}{note}: {'; '.join(parts)}." if parts else ""


def _of_group(report: Report, row: Row, group: str) -> str:
    """The measures that stand under a heading of their own, before and after."""
    task, parts = report.groups[group], []
    for key, after in row.groups.get(group, {}).items():
        measure, change = task.measure(key), _group_change(row, group).get(key)
        before, now = report.base.groups[group][key].value, interval(after, measure.digits)
        name = measure.words if measure.name == key else f"{measure.words} of {key}"
        if change is not None:
            parts.append(f"{name} {went(before, after, change, measure.digits)}")
        else:
            note = f", where {measure.note}" if measure.note else ""
            parts.append(f"{name} is {now} and was {before:.{measure.digits}f}{note}")
    return f"{with_unit(task.title, task.measures[0].unit)}: {'; '.join(parts)}." if parts else ""


# ---- controls -----------------------------------------------------------------------------------


def _controls_of(report: Report, row: Row) -> list[ControlSummary]:
    # a control's settings are those of its row and its own kind, so more than these
    asked = {"of": row.name, **row.settings}.items()
    return [control for control in report.controls if control.settings.items() >= asked]


def _control(report: Report, control: ControlSummary, row: Row) -> str:
    """One kind of random control: what it did to what is forgotten, and whether the edit did more."""
    kind = control.settings["kind"]
    name = f"{KINDS[kind]} ({kind}, {len(control.seeds)} seeds)"
    forget = control.roles.get("forget", {})
    measures = ("accuracy", "logprob", *(measure.name for measure in _others(report)))
    measure = next((measure for measure in measures if measure in forget), None)
    if measure is None and "forget" in control.groups.get("loss", {}):
        return f"{name}: {_control_loss(report, control, row)}"
    if measure is None:
        parts = [
            f"{report.groups[group].measure(key).words} from {report.base.groups[group][key].value:.1f} "
            f"to {over_seeds(spread, 1)}"
            for group in control.groups
            if group not in OWN_GROUPS
            for key, spread in control.groups[group].items()
        ]
        return f"{name}: {'; '.join(parts)}." if parts else f"{name} were measured on nothing that is to be forgotten."
    spread, before = forget[measure], report.base.roles["forget"].estimates[measure].value
    unit = {"accuracy": "questions", "logprob": "log-prob"}.get(measure) or _named(report, measure).words
    said = f"{name}: forget {unit} from {before:.2f} to {over_seeds(spread)}"
    if retain := control.roles.get("retain", {}).get(measure):
        said += f", retain to {over_seeds(retain)}"
    beyond = control.edit_minus_control.get("forget", {}).get(measure)
    as_far = spread.min <= row.roles["forget"].estimates[measure].value
    return f"{said}. {_verdict(beyond, as_far)}" if beyond else f"{said}."


def _control_loss(report: Report, control: ControlSummary, row: Row) -> str:
    """The same of a run without questions: what the control did to the loss, and its share of the edit's effect."""
    spread, before = control.groups["loss"]["forget"], report.base.groups["loss"]["forget"].value
    said = f"loss on forget text from {before:.2f} to {over_seeds(spread)} nats"
    if retain := control.groups["loss"].get("retain"):
        said += f", on retain text to {over_seeds(retain)}"
    effect = _group_change(row, "loss")["forget"]
    if effect.low > 0:
        least, most = ((loss - before) / effect.value for loss in (spread.min, spread.max))
        said += f"; {least:.0%} to {most:.0%} of the edit's rise"
    if (beyond := control.edit_minus_control.get("loss", {}).get("forget")) is None:
        return f"{said}."
    # a loss rises where an accuracy falls: turned round, the ends of the interval change places
    as_far = spread.max >= row.groups["loss"]["forget"].value
    return f"{said}. {_verdict(Estimate(-beyond.value, -beyond.high, -beyond.low), as_far)}"


def _verdict(beyond: Estimate, as_far: bool) -> str:
    """Whether the edit did more than its control, by the paired difference to the mean over seeds and by every seed.

    Args:
        as_far: One of the seeds goes as far as the edit.
    """
    # edit minus control, of something that falls as one forgets: below zero the edit forgets more
    further = f"further by {-beyond.value:.2f} [{-beyond.high:.2f}, {-beyond.low:.2f}]"
    if beyond.high < 0 and as_far:
        return f"The edit goes {further} than their mean, but not than every seed, so it is not told apart from chance."
    if beyond.high < 0:
        return f"The edit goes {further}."
    if beyond.low > 0:
        return "The control goes further than the edit, so forgetting is not shown to come from the chosen latents."
    return "The edit is not told apart from it, so forgetting is not shown to come from the chosen latents."


# ---- what a report holds ------------------------------------------------------------------------


def _others(report: Report) -> list[Measure]:
    """Measures by domain and role that have no sentence of their own."""
    return [one for one in report.measures if one.name not in OWN_MEASURES and one.shown != "in the file"]


def _named(report: Report, measure: str) -> Measure:
    return next(one for one in report.measures if one.name == measure)


def _chance(report: Report, cell: Cell, measure: str) -> float:
    """Where guessing lies; 0 for a measure that says none."""
    return (cell.chance or {}).get(measure, _named(report, measure).chance or 0.0)


def _changed(row: Row, role: str, measure: str) -> Estimate | None:
    """The paired change of a role; None where it was not measured."""
    cell = None if row.change is None else row.change.roles.get(role)
    return None if cell is None else cell.estimates.get(measure)


def _change(row: Row, role: str, measure: str) -> Estimate:
    assert row.change is not None
    return row.change.roles[role].estimates[measure]


def _group_change(row: Row, group: str) -> dict[str, Estimate]:
    return {} if row.change is None else dict(row.change.groups.get(group, {}))
