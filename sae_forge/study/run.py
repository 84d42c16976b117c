"""The verb ``eval``: the same scorers outside an edit and inside it, beside controls, as one report."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from sae_forge.config.editing import EditingConfig
from sae_forge.config.evaluate import ControlKind, EvalConfig
from sae_forge.config.fields import described
from sae_forge.config.model import ModelConfig
from sae_forge.features.selection import Selection
from sae_forge.hookpoint import HookPoint
from sae_forge.interventions.clamping import SetTo
from sae_forge.interventions.controls import RandomDirections
from sae_forge.interventions.gates.none import Always
from sae_forge.interventions.steering import AddConstant, RemoveProjection, SetProjection
from sae_forge.methods.building import UNTUNED, build, controlled, impossible, require_possible
from sae_forge.methods.building import asked as methods_of
from sae_forge.methods.grids import from_flags
from sae_forge.methods.materials import Materials, Shards
from sae_forge.methods.subjects import AsItIs, Hook, Retrained, Subject, in_force
from sae_forge.models.loading import LanguageModel
from sae_forge.models.tape import Tape
from sae_forge.progress import SILENT, Progress
from sae_forge.results.claims import claims
from sae_forge.sae.dictionary import Dictionary
from sae_forge.sae.direction import Direction
from sae_forge.statistics.bootstrap import Bootstrap
from sae_forge.store import files
from sae_forge.study.controls import control_summary
from sae_forge.study.estimates import (
    chance_of,
    change,
    describe,
    described_domains,
    described_tasks,
    headings_of,
    protocol_of,
)
from sae_forge.study.measure import Measurement, load_asked, measure
from sae_forge.study.rows import item_rows, publish_rows
from sae_forge.study.selections import compared, label_of
from sae_forge.study.sweep import Swept, sweep
from sae_forge.tasks.task import Asked

SAMPLED_HOW = ("max_new_tokens", "temperature", "top_p", "seed")
"""Settings of generated text."""
REPORT_FILE, ITEMS_FILE = "eval.json", "items.parquet"


@dataclass(frozen=True)
class Plan:
    """One row of the report to be."""

    name: str
    settings: dict[str, Any]
    subject: Subject
    seed: int | None = None

    @property
    def kind(self) -> str:
        """What is done to the model: nothing, its activations edited, or its weights trained."""
        return {AsItIs: "baseline", Hook: "hook", Retrained: "weights"}[type(self.subject)]


@dataclass(frozen=True)
class EvalReport:
    """What an edit did, beside what doing nothing and doing something random did."""

    metrics: dict[str, Any]
    """JSON-ready; the same bytes for the same seed, software and machine."""
    items: list[dict[str, Any]] = field(repr=False)
    """One row per item and method, as the parquet file holds them."""
    edits: tuple[Hook, ...] = field(default=(), repr=False)
    """Every edit of latents that was measured, for export."""

    def to_json(self) -> dict[str, Any]:
        """The artefact part of the command's JSON."""
        return self.metrics

    def summary(self) -> str:
        """What these numbers allow one to claim, a sentence a line."""
        return "\n".join(self.metrics["claims"])

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
    also: Sequence[Hook] = (),
    rivals: Sequence[Selection] = (),
    folder: Path | None = None,
) -> EvalReport:
    """Measure the model as it is, then under every method and control that the config names.

    With ``config.sweep`` each method is tuned on the DEV half first, and measured at the settings that were chosen.

    Args:
        collected: Activations at ``point``, for what must be calibrated on them or trained.
        also: Edits to measure beside those that the config names.
        rivals: Other selections of the same SAE, to measure one and the same edit under.
        folder: The report's own, where a sweep keeps what it has measured in case it is stopped.

    Raises:
        DataError: the config names no items, a file of them is missing or malformed, or a method lacks what it needs.
        NumericalError: the model gave a number that is not finite.
    """
    materials = Materials(lm, sae, point, selection, config, collected)
    asked = load_asked(lm, config, progress)
    if truncated := sum(one.truncated for one in asked):
        progress.say(f"{truncated} questions or prompts are longer than the model takes; their beginnings are cut")
    left_out = _left_out(materials, progress)
    swept = sweep(methods_of(config.methods), materials, progress, folder) if config.sweep else None
    selections = _selections(selection, rivals, progress)
    plans = [*iter_plans(materials, swept, also, progress), *_of_selections(materials, selections)]
    bootstrap = Bootstrap(config.bootstrap, config.seed)
    found, headings = _measured(materials, asked, plans, progress), headings_of(asked)
    rows = [_row(headings, plan, measured, found[0], bootstrap) for plan, measured in zip(plans, found, strict=True)]
    metrics: dict[str, Any] = {
        "tasks": described_tasks(found[0]),
        "domains": described_domains(asked),
        "methods": rows,
        "controls": list(_controls(headings, plans, rows, found, bootstrap)),
        "protocol": _protocol(asked, found[0], selection, config, point),
        "left_out": left_out,
    }
    if selections:
        metrics["selections"] = compared(selections, rows)
    if swept is not None:
        metrics["sweep"] = swept.to_json()
    metrics["claims"] = claims(metrics)
    items = [
        row
        for plan, measured in zip(plans, found, strict=True)
        for row in item_rows(plan.name, plan.settings, plan.seed, measured)
    ]
    hooks = [plan.subject for plan in plans if isinstance(plan.subject, Hook) and plan.name != "random"]
    return EvalReport(metrics, items, tuple(hook for hook in hooks if hook.dictionary is sae))


def _left_out(materials: Materials, progress: Progress) -> dict[str, str]:
    """Methods that ``all`` stands for and that cannot be measured here, and why; a named one must be possible."""
    config, reasons = materials.config, {}
    for method in methods_of(config.methods):
        if "all" not in config.methods:
            require_possible(method, materials)
        elif error := impossible(method, materials):
            progress.say(f"left out: {error}")
            reasons[method] = str(error)
    return reasons


def _measured(materials: Materials, asked: Sequence[Asked], plans: list[Plan], progress: Progress) -> list[Measurement]:
    """What the scorers saw under each plan; controls write no text, since only numbers are compared with them."""
    tape = Tape(materials.lm, materials.point)
    unwritten = [one for one in asked if not one.written]
    asked_of = [unwritten if plan.name == "random" else asked for plan in plans]
    size = materials.config.eval_batch_size
    found = []
    with progress.task("eval", sum(one.units for every in asked_of for one in every), "items") as task:
        for plan, questions in zip(plans, asked_of, strict=True):
            with in_force(materials.lm, materials.point, plan.subject, progress) as (lm, log):
                played = None if plan.kind == "weights" else tape
                found.append(measure(lm, questions, log, task, batch_size=size, tape=played, method=plan.name))
    return found


# ---- plans --------------------------------------------------------------------------------------


def iter_plans(
    materials: Materials, swept: Swept | None = None, also: Sequence[Hook] = (), progress: Progress = SILENT
) -> Iterator[Plan]:
    """The rows to measure: the baseline, then every method at its settings, each edit with its controls.

    Where fewer latents were selected than asked for, those there are are taken and both numbers recorded.
    """
    config = materials.config
    yield Plan("baseline", {}, AsItIs())
    chosen = list(_from_flags(materials, progress)) if swept is None else _from_sweep(materials, swept)
    given = [Plan(hook.intervention.name, {"given": len(hook.intervention.written)}, hook) for hook in also]
    edits = [*chosen, *given]
    yield from edits
    if controlled(config.methods):
        for plan in edits:
            if plan.name not in UNTUNED:  # putting latents to rest is a control itself
                yield from _controls_of(plan, materials)


def _from_sweep(materials: Materials, swept: Swept) -> list[Plan]:
    return [
        Plan(one.method, one.chosen.settings, build(one.method, one.chosen.settings, materials)) for one in swept.tuned
    ]


def _from_flags(materials: Materials, progress: Progress) -> Iterator[Plan]:
    config, have = materials.config, len(materials.selection.indices)
    for wanted in config.num_features:
        if wanted > have:
            progress.say(f"{wanted} latents were asked for and {have} are selected; taking those")
    sizes = {min(wanted, have): wanted for wanted in sorted(config.num_features)}
    for method in methods_of(config.methods):
        if impossible(method, materials):
            continue
        seen: list[dict[str, Any]] = []
        for size, wanted in sizes.items():
            for settings in from_flags(method, size, materials):
                if settings in seen:  # a method that takes no latents is the same for every number of them
                    continue
                seen.append(settings)
                subject = build(method, settings, materials)
                cut = wanted > size and "num_features" in settings
                yield Plan(method, settings | ({"requested": wanted} if cut else {}), subject)


def _selections(own: Selection, rivals: Sequence[Selection], progress: Progress) -> dict[str, Selection]:
    """Every selection by its name in the report; none where there is nothing to compare."""
    every = [own, *(rival for rival in rivals if rival.indices != own.indices)]
    if len(every) == 1 and rivals:
        progress.say("there is only one selection to compare; make others with: sae-forge features --method all")
    return {label_of(one, every): one for one in every} if len(every) > 1 else {}


def _of_selections(materials: Materials, selections: Mapping[str, Selection]) -> Iterator[Plan]:
    """Negative scaling by the first scale under every selection, for as many latents as the smallest has."""
    size = min((len(one.indices) for one in selections.values()), default=0)
    size = min(size, max(materials.config.num_features))
    for name, selection in selections.items():
        settings = {"selection": name, "num_features": size, "scale": materials.config.ablation_scale[0]}
        yield Plan("scale", settings, build("scale", settings, replace(materials, selection=selection)))


def _controls_of(plan: Plan, materials: Materials) -> Iterator[Plan]:
    """The same push in directions, or on tokens, that mean nothing; once for each seed."""
    config, hook = materials.config, plan.subject
    if not isinstance(hook, Hook):
        return
    for kind, seed in product(config.controls, range(config.seed, config.seed + config.random_seeds)):
        if (kind == "latents" and not _has_others(hook, materials)) or (kind == "places" and _everywhere(hook)):
            continue
        control = replace(hook.intervention, name="random", edit=_random(hook, kind, seed, materials))
        settings = {"of": plan.name, **plan.settings, "kind": kind}
        yield Plan("random", settings, Hook(hook.dictionary, control), seed)


def _has_others(hook: Hook, materials: Materials) -> bool:
    """Whether there are latents to draw from beside those that are edited: a single direction has none."""
    return hook.dictionary is materials.sae


def _everywhere(hook: Hook) -> bool:
    """Whether the edit changes every token, so that there are no other tokens to put it on."""
    always = isinstance(hook.intervention.gate, Always)
    if isinstance(hook.dictionary, Direction):
        return always and hook.dictionary.threshold == -math.inf
    return always and isinstance(hook.intervention.edit, AddConstant | RemoveProjection | SetProjection | SetTo)


def _random(hook: Hook, kind: ControlKind, seed: int, materials: Materials) -> RandomDirections:
    edit = hook.intervention.edit
    assert not isinstance(edit, RandomDirections)
    alive = materials.selection.alive if hook.dictionary is materials.sae else None
    return RandomDirections(edit, seed, kind, alive)


# ---- the report ---------------------------------------------------------------------------------


def _row(
    headings: Sequence[str], plan: Plan, found: Measurement, base: Measurement, bootstrap: Bootstrap
) -> dict[str, Any]:
    named = {"name": plan.name, "kind": plan.kind, "settings": plan.settings, "seed": plan.seed}
    row = {**named, **describe(found, headings, bootstrap)}
    return row if plan.kind == "baseline" else row | {"change": change(found, base, headings, bootstrap)}


def _controls(
    headings: Sequence[str],
    plans: list[Plan],
    rows: list[dict[str, Any]],
    found: list[Measurement],
    bootstrap: Bootstrap,
) -> Iterator[dict[str, Any]]:
    """A summary over seeds for each edit and kind of random control."""
    groups: dict[str, list[int]] = {}
    for number, plan in enumerate(plans):
        if plan.name == "random":
            groups.setdefault(files.digest(plan.settings), []).append(number)
    for numbers in groups.values():
        settings = {name: value for name, value in plans[numbers[0]].settings.items() if name not in ("kind", "of")}
        method = plans[numbers[0]].settings["of"]
        edit = found[[(plan.name, plan.settings) for plan in plans].index((method, settings))]
        chosen = [rows[number] for number in numbers], [found[number] for number in numbers]
        yield control_summary(headings, *chosen, edit, bootstrap)


def _protocol(
    asked: Sequence[Asked], base: Measurement, selection: Selection, config: EvalConfig, point: HookPoint
) -> dict[str, Any]:
    """How the numbers were made, so that another run can make them again."""
    return {
        "hook_point": str(point),
        "sae": selection.sae,
        "sae_weights": selection.weights,
        "selection": selection.method,
        "latents": list(selection.indices),
        "half": config.half,
        "question_filter": config.question_filter,
        "scoring": config.scoring,
        **{name: getattr(config, name) for name in described(EditingConfig) if name not in described(ModelConfig)},
        "chance": chance_of(base),
        "truncated": sum(one.truncated for one in asked),
        "bootstrap": {"resamples": config.bootstrap, "seed": config.seed, "over": "facts", "level": 0.95},
        "generation": {**{name: getattr(config, name) for name in SAMPLED_HOW}, "prompts": 0},
        "loss_tokens": {},
        **protocol_of(asked),
    }
