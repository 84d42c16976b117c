"""The verb ``eval``: the same scorers outside an edit and inside it, beside controls, as one report."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from sae_forge import ranks
from sae_forge.config.editing import EditingConfig
from sae_forge.config.evaluate import EvalConfig
from sae_forge.config.fields import described
from sae_forge.config.model import ModelConfig
from sae_forge.errors import ConfigError
from sae_forge.features.selection import Selection
from sae_forge.hookpoint import HookPoint
from sae_forge.interventions.edit import Edit, read_ahead
from sae_forge.methods.materials import Materials, Shards
from sae_forge.methods.method import Method, Wrapper
from sae_forge.methods.subjects import Edited, in_force
from sae_forge.methods.table import methods_of
from sae_forge.models.loading import LanguageModel
from sae_forge.models.tape import Tapes
from sae_forge.models.tokens import max_input
from sae_forge.progress import SILENT, Progress
from sae_forge.results.claims import claims, guessing
from sae_forge.results.report import FORMAT, ControlSummary, Report, Row
from sae_forge.results.verdict import unproven, unseen
from sae_forge.sae.dictionary import Dictionary
from sae_forge.statistics.bootstrap import Bootstrap
from sae_forge.store import files
from sae_forge.study.controls import CONTROL, control_summary
from sae_forge.study.estimates import (
    Headings,
    chance_of,
    change,
    describe,
    described_domains,
    described_tasks,
    headings_of,
    protocol_of,
)
from sae_forge.study.kept import Kept, discard
from sae_forge.study.measure import Measurement, load_asked, measure
from sae_forge.study.plan import Plan, plans_of
from sae_forge.study.rows import item_rows, publish_rows
from sae_forge.study.selections import compared, label_of
from sae_forge.study.settings import catalogue_of
from sae_forge.study.shares import Elsewhere, Share
from sae_forge.study.sweep import JOURNAL, sweep
from sae_forge.tasks.task import Asked
from sae_forge.training.verdict import Verdict

TOKENS = 4
"""That are written in about the time that a question takes to be asked."""
GLANCE = 500
"""Resamples behind the warning that is said as soon as the baseline was asked."""
REPORT_FILE, ITEMS_FILE = "eval.json", "items.parquet"


@dataclass(frozen=True)
class EvalReport:
    """What an edit did, beside what doing nothing and doing something random did."""

    report: Report
    items: list[dict[str, Any]] = field(repr=False)
    """One row per item and method, as the parquet file holds them."""
    edits: tuple[Edit, ...] = field(default=(), repr=False)
    """Every edit of latents that was measured, for export."""

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """JSON-ready; the same bytes for the same seed, software and machine."""
        return self.report.to_json()

    def to_json(self) -> dict[str, Any]:
        """The artefact part of the command's JSON."""
        return self.metrics

    def summary(self) -> str:
        """What these numbers allow one to claim, a sentence a line."""
        return "\n".join(self.report.claims)

    def save(self, folder: Path) -> dict[str, Path]:
        """Write the items, then the report, whose presence says that both are whole; the paths by name."""
        publish_rows(folder / ITEMS_FILE, self.items)
        files.publish_json(folder / REPORT_FILE, self.metrics)
        return {"report": folder / REPORT_FILE, "items": folder / ITEMS_FILE}


def evaluate(
    lm: LanguageModel,
    sae: Dictionary,
    selection: Selection,
    config: EvalConfig,
    point: HookPoint,
    progress: Progress = SILENT,
    *,
    collected: Shards | None = None,
    also: Sequence[Edit] = (),
    rivals: Sequence[Selection] = (),
    folder: Path | None = None,
    table: Sequence[Method | Wrapper] | None = None,
    verdict: Verdict | None = None,
) -> EvalReport:
    """Measure the model as it is, then under every method and control that the config names.

    With ``config.sweep`` each method is tuned on the DEV half first, and measured at the settings that were chosen.
    Over ranks each measures its share; what came of them is put together in ``folder``.

    Args:
        collected: Activations at ``point``, for what must be calibrated on them or trained.
        also: Edits to measure beside those that the config names.
        rivals: Other selections of the same SAE, to measure one and the same edit under.
        folder: The report's own, where it keeps what it has measured in case it is stopped.
        table: The methods that the config's names are those of. None: those it was composed of.
        verdict: Whether the SAE is fit to be used, where that was measured.

    Raises:
        Elsewhere: on a rank that does not lead, and for ``config.part``.
        DataError: the config names no items, a file of them is missing or malformed, or a method lacks what it needs.
        NumericalError: the model gave a number that is not finite.
    """
    share = Share.here(config)
    if folder is None and not share.whole:
        raise ConfigError("ranks and parts of an evaluation meet in its folder; name one")
    with ranks.here().led() as first:
        if first and folder is not None and config.starts_over:
            discard(folder)
            (folder / JOURNAL).unlink(missing_ok=True)
    materials = Materials(lm, sae, point, selection, config, collected)
    asked, tasks = load_asked(lm, config, progress), catalogue_of(config).tasks
    for line in told_of_length(lm, asked):
        progress.say(line)
    methods = methods_of(config.methods, table or catalogue_of(config).methods)
    left_out = why_left_out(methods, materials, progress)
    swept = sweep(methods, materials, progress, folder, share) if config.sweep else None
    selections = told_apart(selection, rivals, progress)
    chosen = None if swept is None else {name: dict(one.chosen.settings) for name, one in swept.methods.items()}
    plans = plans_of(materials, methods, selections, chosen=chosen, also=also, progress=progress)
    read_ahead(sae, [edit for plan in plans for edit in plan.subject.edits])
    bootstrap = Bootstrap(config.bootstrap, config.seed)
    measurements, headings = _measured(materials, asked, plans, progress, folder, share), headings_of(asked, tasks)
    told = list(zip(plans, measurements, strict=True))
    base = measurements[0]
    rows = [
        Row(
            name=plan.name,
            kind=plan.kind,
            title=plan.title,
            at_rest=plan.at_rest,
            settings=plan.settings,
            seed=plan.seed,
            change=None if plan.kind == "baseline" else change(measured, base, headings, bootstrap),
            **describe(measured, headings, bootstrap),
        )
        for plan, measured in told
    ]
    report = Report(
        format=FORMAT,
        tasks=described_tasks(base),
        domains=described_domains(asked, tasks),
        rows=tuple(rows),
        controls=tuple(_controls(headings, plans, rows, measurements, bootstrap)),
        protocol=_protocol(asked, base, selection, config, point) | _precisions(lm, sae) | _fitness(verdict),
        left_out=left_out,
        rough=tuple(dict.fromkeys(name for method in methods for name in method.rough)),
        unsaid=tuple(dict.fromkeys(name for method in methods for name in method.unsaid)),
        selections=compared(selections, rows, tasks) if selections else None,
        sweep=swept,
    )
    report = replace(report, claims=(*unproven(report), *unseen(report), *claims(report)))
    items = [row for plan, measured in told for row in item_rows(plan.name, plan.settings, plan.seed, measured)]
    # a steering file says one edit at one place of this SAE
    alone = [plan.subject.edits for plan in plans if isinstance(plan.subject, Edited) and plan.name != CONTROL]
    edits = [edit for edit, *others in alone if not others and edit.dictionary is sae]
    return EvalReport(report, items, tuple(edits))


def told_of_length(lm: LanguageModel, asked: Sequence[Asked]) -> Iterator[str]:
    """What does not fit into the model: said before the work, and counted in the report's protocol."""
    takes = f"the {max_input(lm)} tokens that {lm.name} takes"
    for one in asked:
        what = one.domain or one.kind or one.task.name
        if one.truncated:
            yield f"{what}: {one.truncated} of {one.units} are longer than {takes}; beginning or end is left out"
        if one.shortened:
            yield f"{what}: {one.shortened} of {one.units} leave too few of {takes}; what is written ends early"


def why_left_out(methods: Sequence[Method], materials: Materials, progress: Progress) -> dict[str, str]:
    """Methods that ``all`` stands for and that cannot be measured here, and why; a named one must be possible."""
    reasons: dict[str, str] = {}
    for method in methods:
        if (error := method.needs(materials)) is None:
            continue
        if "all" not in materials.config.methods:
            raise error
        progress.say(f"left out: {error}")
        reasons[method.name] = str(error)
    return reasons


def _measured(
    materials: Materials,
    asked: Sequence[Asked],
    plans: Sequence[Plan],
    progress: Progress,
    folder: Path | None,
    share: Share,
) -> list[Measurement]:
    """What the scorers saw under each plan; controls write no text but for what is judged of it."""
    unwritten = [one for one in asked if not one.written or one.of_controls]
    rows = [_Measuring(plan, unwritten if plan.name == CONTROL else asked, Kept.of(folder, number, plan))
            for number, plan in enumerate(plans)]  # fmt: skip
    tapes, size = Tapes(materials.lm, materials.point), materials.config.eval_batch_size
    everything: dict[int, Collection[int]] = {number: range(len(row.asked)) for number, row in enumerate(rows)}
    team, measurements = ranks.here(), []
    # a share first; then whoever makes the report finds what all have measured, or makes up for what is lost
    writing = max(1, materials.config.max_new_tokens // TOKENS)
    for mine in (everything,) if share.whole else (_cut(rows, share, writing), everything):
        if mine is everything and not share.whole and (materials.config.part is not None or not team.leads):
            raise Elsewhere("its share of all rows is measured")
        units = sum(rows[number].asked[one].units for number, some in mine.items() for one in some)
        with progress.task("eval", units, "items") as task:
            for number, some in mine.items():
                row = rows[number]
                team.at = f"the row {row.plan.title}"
                there = all(row.kept.has(one, row.asked[one]) for one in some)
                # without making the subject, which may have to be trained
                with (
                    nullcontext((materials.lm, None))
                    if there
                    else in_force(materials.lm, row.plan.subject, progress) as (lm, log)
                ):
                    how: dict[str, Any] = {"batch_size": size, "tapes": tapes if lm is materials.lm else None}
                    answers = measure(lm, row.asked, log, task, **how, kept=row.kept, only=some, method=row.plan.name)
                if mine is everything:
                    measurements.append(answers)
                    if row.plan.kind == "baseline":  # said now: what follows may take hours
                        for line in guessing(describe(answers, {}, Bootstrap(GLANCE, 0))["roles"]):
                            progress.say(line)
        if mine is not everything:
            team.meet()
    return measurements


@dataclass(frozen=True)
class _Measuring:
    """A row of the report to be, what is asked of it, and where its answers are kept."""

    plan: Plan
    asked: Sequence[Asked]
    kept: Kept


def _cut(rows: Sequence[_Measuring], share: Share, writing: int) -> dict[int, Collection[int]]:
    """For each row that has some, the numbers of what falls to this share.

    Weights are trained by one process for all that is asked of them. Of edits whatever is asked goes, as far as may be,
    to one process for all of them, which so needs one tape of it.

    Args:
        writing: How many questions take as long as one text that is written.
    """
    trained = [number for number, row in enumerate(rows) if row.plan.kind == "weights"]
    pieces = [(number, tuple(range(len(rows[number].asked)))) for number in trained]
    most = max(len(row.asked) for row in rows)
    pieces += [
        (number, (one,))
        for one in range(most)
        for number, row in enumerate(rows)
        if row.plan.kind != "weights" and one < len(row.asked)
    ]
    costs = [
        sum(rows[number].asked[one].units * (writing if rows[number].asked[one].written else 1) for one in some)
        * (2 if number in trained else 1)
        for number, some in pieces
    ]
    mine: dict[int, Collection[int]] = {}
    for piece in share.cut(costs):
        number, some = pieces[piece]
        mine[number] = {*mine.get(number, ()), *some}
    return dict(sorted(mine.items()))


def told_apart(own: Selection, rivals: Sequence[Selection], progress: Progress) -> dict[str, Selection]:
    """Every selection by its name in the report; none where there is nothing to compare."""
    every = [own, *(rival for rival in rivals if rival.indices != own.indices)]
    if len(every) == 1 and rivals:
        progress.say("there is only one selection to compare; make others with: sae-forge features --method all")
    return {label_of(one, every): one for one in every} if len(every) > 1 else {}


def _controls(
    headings: Headings,
    plans: list[Plan],
    rows: list[Row],
    measurements: list[Measurement],
    bootstrap: Bootstrap,
) -> Iterator[ControlSummary]:
    """A summary over seeds for each edit and kind of random control."""
    groups: dict[str, list[int]] = {}
    for number, plan in enumerate(plans):
        if plan.name == CONTROL:
            # seeds of one control have the same settings, and differ in the seed alone
            groups.setdefault(files.digest(plan.settings), []).append(number)
    for numbers in groups.values():
        settings = {name: value for name, value in plans[numbers[0]].settings.items() if name not in ("kind", "of")}
        method = plans[numbers[0]].settings["of"]
        edit = measurements[[(plan.name, plan.settings) for plan in plans].index((method, settings))]
        chosen = [rows[number] for number in numbers], [measurements[number] for number in numbers]
        yield control_summary(headings, *chosen, edit, bootstrap)


def _fitness(verdict: Verdict | None) -> dict[str, Any]:
    """What is known of the SAE itself."""
    return {} if verdict is None else {"sae_fit": verdict.fit, "sae_verdict": verdict.said}


def _precisions(lm: LanguageModel, sae: Dictionary) -> dict[str, Any]:
    """What the numbers owe to how the model and the SAE were read."""
    computed = {"model": lm.model.dtype, "sae": sae.b_dec.dtype}
    return {
        "opening": lm.opening.told(),
        "precision": lm.precision,
        "computed_in": {whose: str(dtype).removeprefix("torch.") for whose, dtype in computed.items()},
    }


def _protocol(
    asked: Sequence[Asked], base: Measurement, selection: Selection, config: EvalConfig, point: HookPoint
) -> dict[str, Any]:
    """How the numbers were made, so that another run can make them again."""
    # the settings that hold for every edit, those of gates among them
    parts = (EditingConfig, *(kind.settings for kind in catalogue_of(config).gates if kind.settings))
    editing = {name for part in parts for name in described(part)} - set(described(ModelConfig))
    return {
        "hook_point": str(point),
        "sae": selection.sae,
        "sae_weights": selection.weights,
        "selection": selection.method,
        "latents": list(selection.indices),
        "forms": [] if selection.forms is None else selection.forms.lines(),
        "sinks_spared": selection.sink_norm is not None and not config.keep_sinks,
        "half": config.half,
        **{name: getattr(config, name) for name in editing},
        "chance": chance_of(base),
        "truncated": sum(one.truncated for one in asked),
        "shortened": sum(one.shortened for one in asked),
        "bootstrap": {"resamples": config.bootstrap, "seed": config.seed, "over": "facts", "level": 0.95},
        **protocol_of(asked, catalogue_of(config).tasks, config),
    }
