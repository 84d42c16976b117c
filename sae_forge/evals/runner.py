"""The verb ``eval``: the same scorers outside an edit and inside it, beside controls, as one report."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from sae_forge import files
from sae_forge.config import EvalConfig
from sae_forge.evals.claims import claims
from sae_forge.evals.controls import control_summary
from sae_forge.evals.estimates import change, describe
from sae_forge.evals.measure import Measurement, Suite, load_suite, measure
from sae_forge.evals.metrics import CHANCE
from sae_forge.evals.rows import item_rows, publish_rows
from sae_forge.evals.statistics import Bootstrap
from sae_forge.features.selection import Selection
from sae_forge.hookpoint import HookPoint
from sae_forge.interventions.ablation import NegativeScaling, ZeroAblation
from sae_forge.interventions.apply import EditLog, Intervention, applied
from sae_forge.interventions.controls import RandomDirections
from sae_forge.models.loading import LanguageModel
from sae_forge.progress import SILENT, Progress
from sae_forge.sae.topk import TopKSAE

CONTROL_KINDS = ("isotropic", "latents")
REPORT_FILE, ITEMS_FILE = "eval.json", "items.parquet"


@dataclass(frozen=True)
class Plan:
    """One row of the report to be."""

    name: str
    settings: dict[str, Any]
    seed: int | None = None
    intervention: Intervention | None = None

    def apply(self, lm: LanguageModel, sae: TopKSAE, point: HookPoint) -> AbstractContextManager[EditLog | None]:
        """The edit in force while the block runs; nothing for the baseline."""
        return nullcontext() if self.intervention is None else applied(lm, sae, point, self.intervention)


@dataclass(frozen=True)
class EvalReport:
    """What an edit did, beside what doing nothing and doing something random did."""

    metrics: dict[str, Any]
    """JSON-ready; the same bytes for the same seed, software and machine."""
    items: list[dict[str, Any]] = field(repr=False)
    """One row per item and method, as the parquet file holds them."""

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
    sae: TopKSAE,
    selection: Selection,
    config: EvalConfig,
    point: HookPoint,
    progress: Progress = SILENT,
) -> EvalReport:
    """Measure the model as it is, then under every edit and control that the config names.

    Raises:
        DataError: the config names no items, or a file of them is missing or malformed.
        NumericalError: the model gave a number that is not finite.
    """
    suite = load_suite(lm, config)
    if suite.truncated:
        progress.say(
            f"{suite.truncated} questions or prompts are longer than the model takes; their beginnings are cut"
        )
    plans = list(iter_plans(selection, config, progress))
    bootstrap = Bootstrap(config.bootstrap, config.seed)
    found: list[Measurement] = []
    with progress.task("eval", suite.units * len(plans), "items") as task:
        for plan in plans:
            with plan.apply(lm, sae, point) as log:
                found.append(measure(lm, suite, log, task, method=plan.name))
    rows = [_row(suite, plan, measured, found[0], bootstrap) for plan, measured in zip(plans, found, strict=True)]
    metrics: dict[str, Any] = {
        "domains": {domain.name: domain.to_json() for domain in suite.domains},
        "methods": rows,
        "controls": list(_controls(suite, plans, rows, found, bootstrap)),
        "protocol": _protocol(suite, found[0], selection, config, point),
    }
    metrics["claims"] = claims(metrics)
    items = [
        row
        for plan, measured in zip(plans, found, strict=True)
        for row in item_rows(suite, plan.name, plan.settings, plan.seed, measured)
    ]
    return EvalReport(metrics, items)


def iter_plans(selection: Selection, config: EvalConfig, progress: Progress = SILENT) -> Iterator[Plan]:
    """The rows to measure: the baseline, then for each number of latents the edits and their controls.

    Where fewer latents were selected than asked for, those there are are taken and both numbers recorded.
    """
    yield Plan("baseline", {})
    have = len(selection.indices)
    for asked in config.num_features:
        if asked > have:
            progress.say(f"{asked} latents were asked for and {have} are selected; taking those")
    for count, asked in {min(asked, have): asked for asked in sorted(config.num_features)}.items():
        size = {"num_features": count} | ({"requested": asked} if asked > count else {})
        yield from _plans_of_size(selection.indices[:count], size, config)


def _plans_of_size(latents: tuple[int, ...], size: dict[str, Any], config: EvalConfig) -> Iterator[Plan]:
    edits = [({"scale": scale, **size}, NegativeScaling(scale)) for scale in config.ablation_scale]
    if "scale" in config.methods:
        for settings, edit in edits:
            yield Plan("scale", settings, None, Intervention("scale", latents, edit))
    if "zero" in config.methods:
        yield Plan("zero", size, None, Intervention("zero", latents, ZeroAblation()))
    if "random" in config.methods:
        seeds = range(config.seed, config.seed + config.random_seeds)
        for (settings, edit), kind, seed in product(edits, CONTROL_KINDS, seeds):
            control = RandomDirections(edit, seed, kind)
            yield Plan("random", {**settings, "kind": kind}, seed, Intervention("random", latents, control))


def _row(suite: Suite, plan: Plan, found: Measurement, base: Measurement, bootstrap: Bootstrap) -> dict[str, Any]:
    described = {"name": plan.name, "settings": plan.settings, "seed": plan.seed, **describe(suite, found, bootstrap)}
    return described if plan.intervention is None else described | {"change": change(suite, found, base, bootstrap)}


def _controls(
    suite: Suite, plans: list[Plan], rows: list[dict[str, Any]], found: list[Measurement], bootstrap: Bootstrap
) -> Iterator[dict[str, Any]]:
    """A summary over seeds for each setting and kind of random control."""
    groups: dict[str, list[int]] = {}
    for number, plan in enumerate(plans):
        if plan.name == "random":
            groups.setdefault(files.digest(plan.settings), []).append(number)
    for numbers in groups.values():
        settings = {name: value for name, value in plans[numbers[0]].settings.items() if name != "kind"}
        edited = [plan.name == "scale" and plan.settings == settings for plan in plans]
        edit = found[edited.index(True)] if any(edited) else None
        chosen = [rows[number] for number in numbers], [found[number] for number in numbers]
        yield control_summary(suite, *chosen, edit, bootstrap)


def _protocol(
    suite: Suite, base: Measurement, selection: Selection, config: EvalConfig, point: HookPoint
) -> dict[str, Any]:
    """How the numbers were made, so that another run can make them again."""
    return {
        "hook_point": str(point),
        "sae": selection.sae,
        "sae_weights": selection.weights,
        "selection": selection.method,
        "latents": list(selection.indices),
        "half": config.half,
        "scoring": config.scoring,
        "chance": CHANCE,
        "truncated": suite.truncated,
        "bootstrap": {"resamples": config.bootstrap, "seed": config.seed, "over": "facts", "level": 0.95},
        "generation": {**vars(suite.sampling), "prompts": len(suite.generation)},
        "loss_tokens": {key: sum(losses.tokens) for key, losses in base.losses.items()},
    }
