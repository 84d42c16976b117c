"""What an evaluation would ask, of how many rows, and for how long: found out by asking a little of it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sae_forge.config.evaluate import EvalConfig
from sae_forge.features.selection import Selection
from sae_forge.hookpoint import HookPoint
from sae_forge.interventions.edit import Edit
from sae_forge.methods.materials import Materials, Shards
from sae_forge.methods.method import Method, Settings, Wrapper, grid
from sae_forge.methods.subjects import AsItIs, Subject, in_force
from sae_forge.methods.table import methods_of
from sae_forge.models.loading import LanguageModel
from sae_forge.models.tape import Tapes
from sae_forge.progress import SILENT, Progress
from sae_forge.sae.dictionary import Dictionary
from sae_forge.study.controls import CONTROL
from sae_forge.study.kept import Kept
from sae_forge.study.measure import load_asked, measure
from sae_forge.study.plan import plans_of
from sae_forge.study.run import told_apart, told_of_length, why_left_out
from sae_forge.study.settings import catalogue_of
from sae_forge.study.sweep import load_tuned
from sae_forge.tasks.task import Asked

FEW = 8
"""Items of each task that are asked to learn how long one takes."""


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """What an evaluation comes to."""

    items: int
    """Asked of each row; controls write no text, so of them it may be fewer."""
    rows: int
    controls: int
    """Those of the rows that are random controls."""
    answered: int
    """Those of the rows that an eval which was stopped has answered already."""
    points: int
    """Settings that a sweep tries beforehand."""
    retrained: tuple[str, ...]
    """Methods that train weights, for a time that is not in ``seconds``."""
    left_out: dict[str, str]
    seconds: float
    """All items of all rows, as long each as those that were tried."""


def rehearse(
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
) -> Rehearsal:
    """The rows and items of :func:`sae_forge.study.run.evaluate`, which takes the same, and a few of them asked.

    Nothing is written, so a filter that keeps the model's answers is left out.

    Raises:
        ConfigError, DataError: as the evaluation would before its first item.
    """
    if hasattr(config, "question_filter"):
        config = replace(config, question_filter="none")  # pyright: ignore[reportCallIssue]
    materials = Materials(lm, sae, point, selection, config, collected)
    asked = load_asked(lm, config, progress)
    for line in told_of_length(lm, asked):
        progress.say(line)
    methods = methods_of(config.methods, table or catalogue_of(config).methods)
    left_out = why_left_out(methods, materials, progress)
    chosen, points, tuned = _swept(methods, materials) if config.sweep else (None, 0, ())
    selections = told_apart(selection, rivals, progress)
    plans = plans_of(materials, methods, selections, chosen=chosen, also=also, progress=progress)
    is_control = [plan.name == CONTROL for plan in plans]
    asked_of = [[one for one in asked if not (control and one.written)] for control in is_control]
    known = [Kept.of(folder, number, plan).has_all(asked_of[number]) for number, plan in enumerate(plans)]
    edit = next((plan.subject for plan in plans if plan.kind == "hook"), None)
    plain, edited = _seconds_an_item(materials, config, edit, progress)
    seconds = points * sum(one.units * edited[one.task.name] for one in tuned)
    for plan, questions, is_known in zip(plans, asked_of, known, strict=True):
        rates = edited if plan.kind == "hook" else plain
        seconds += 0.0 if is_known else sum(one.units * rates[one.task.name] for one in questions)
    return Rehearsal(
        items=sum(one.units for one in asked),
        rows=len(plans),
        controls=sum(is_control),
        answered=sum(known),
        points=points,
        retrained=tuple(dict.fromkeys(plan.name for plan in plans if plan.kind == "weights")),
        left_out=left_out,
        seconds=seconds,
    )


def _swept(methods: Sequence[Method], materials: Materials) -> tuple[dict[str, Settings], int, tuple[Asked, ...]]:
    """One setting of each method to stand for that which a sweep would choose, how many it tries, and on what."""
    alone = [method for method in methods if not method.parts and method.needs(materials) is None]
    grids = {method.name: grid(method, materials) for method in alone}
    chosen = {name: tried[0] for name, tried in grids.items()}
    return chosen, sum(map(len, grids.values())), load_tuned(materials.lm, materials.config)


def _as_it_is(asked: Asked) -> Asked:
    return asked


def _seconds_an_item(
    materials: Materials, config: EvalConfig, edit: Subject | None, progress: Progress
) -> tuple[dict[str, float], dict[str, float]]:
    """Of each task, what an item takes the model as it is, and under an edit, where the layers below it are spared."""
    few: dict[str, Any] = {"loss_tokens": FEW * config.ctx_len} if hasattr(config, "loss_tokens") else {}
    every = reversed(load_asked(materials.lm, replace(config, **few), limit=FEW))
    by_task = {one.task.name: getattr(one.task, "rehearsed", _as_it_is)(one) for one in every}
    plain, edited = {}, {}
    with progress.task("try a few items", 2 * sum(one.units for one in by_task.values()), "items") as task:
        for name, one in by_task.items():
            tapes = Tapes(materials.lm, materials.point)
            for subject, rates in ((AsItIs(), plain), (edit or AsItIs(), edited)):
                started = time.perf_counter()
                with in_force(materials.lm, subject) as (lm, log):
                    measure(lm, [one], log, task, batch_size=config.eval_batch_size, tapes=tapes)
                rates[name] = (time.perf_counter() - started) / max(1, one.units)
    return plain, edited
