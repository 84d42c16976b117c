"""The sweep: every method tuned with the same budget on one half of the questions, to be reported on the other.

What a sweep picks on the questions it reports on flatters itself: the best of many is partly luck. So settings are
chosen on the DEV half, by the rule of ``pareto.choose``, and nothing of the TEST half is looked at for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sae_forge.config.evaluate import EvalConfig
from sae_forge.config.questions import Half
from sae_forge.errors import DataError
from sae_forge.methods.materials import Materials
from sae_forge.methods.method import Method, Settings, ends, grid, require_budget
from sae_forge.methods.subjects import AsItIs, Subject, in_force
from sae_forge.methods.table import methods_of
from sae_forge.models.loading import LanguageModel
from sae_forge.models.tape import Tape
from sae_forge.progress import SILENT, Progress, Task
from sae_forge.results.report import Point, Sweep, TunedMethod
from sae_forge.statistics.answers import alignment
from sae_forge.store import files, records
from sae_forge.study import pareto
from sae_forge.study.estimates import by_role, described_domains, main_pool
from sae_forge.study.measure import Answers, Measurement, load_asked, measure
from sae_forge.study.settings import catalogue_of
from sae_forge.tasks.task import Asked

HALF: Half = "dev"
JOURNAL = "sweep.json"


@dataclass(frozen=True)
class Journal:
    """The points measured so far, on disk after each of them."""

    path: Path | None
    points: dict[str, Point]

    @classmethod
    def open(cls, folder: Path | None, *, fresh: bool) -> "Journal":
        """What an earlier, stopped sweep left in its folder; nothing where it is to start over.

        Raises:
            DataError: the file is no journal.
        """
        path = None if folder is None else folder / JOURNAL
        if path is None or fresh or not path.exists():
            return cls(path, {})
        kept = files.read_json(path, kind=DataError, what="the points of a sweep")
        try:
            if not isinstance(kept, dict):
                raise ValueError("it should be an object")
            return cls(path, {key: records.decode(Point, point) for key, point in kept.items()})
        except ValueError as error:
            raise DataError(f"{path} does not hold the points of a sweep: {error}; start over with --fresh") from error

    def find(self, method: str, settings: Settings) -> Point | None:
        """The point of a method at these settings, if it was measured."""
        return self.points.get(files.digest([method, settings]))

    def keep(self, method: str, point: Point) -> Point:
        """The point, written down."""
        # settings name the point: a sweep with other settings measures its own
        self.points[files.digest([method, point.settings])] = point
        if self.path is not None:
            files.publish_json(self.path, records.encode(self.points))
        return point


def require_possible(lm: LanguageModel, config: EvalConfig) -> None:
    """Refuse before hours of collecting and training what an evaluation or a sweep would refuse after them.

    Raises:
        ConfigError: a method would have fewer settings tried than it needs.
        DataError: what is to be asked is missing or malformed, or there is nothing to choose settings by.
    """
    known = catalogue_of(config)
    unfiltered = replace(config, question_filter="none")  # pyright: ignore[reportCallIssue] (a filter asks the model)
    methods = methods_of(config.methods, known.methods)
    if config.sweep:
        for method in methods:
            for part in method.parts or (method,):
                require_budget(part, config.configurations)
        load_tuned(lm, unfiltered)
    load_asked(lm, unfiltered)


def load_tuned(lm: LanguageModel, config: EvalConfig, progress: Progress = SILENT) -> tuple[Asked, ...]:
    """The DEV half of what settings are chosen on: held-out text and prompts to continue are left for the report.

    Raises:
        DataError: there is nothing of it on what is forgotten, or none on what is kept.
    """
    limit = config.sweep_limit or config.limit
    asked = load_asked(lm, config, progress, tuned=True, half=HALF, limit=limit)
    if missing := {"forget", "retain"} - {one.role for one in asked}:
        raise DataError(
            f"--sweep chooses by questions and has none in the role {sorted(missing)[0]}; "
            "give --forget_questions and --retain_questions"
        )
    return asked


def sweep(methods: Sequence[Method], materials: Materials, progress: Progress, folder: Path | None = None) -> Sweep:
    """Measure every setting of every method on the DEV half, and choose one of each.

    Methods that cannot be measured with what there is are left out, and of wrapped ones the inner method is tuned.

    Args:
        folder: This sweep's own, where the points measured so far are kept, so that one that was stopped goes on.
    """
    alone = [method for method in methods if not method.parts and method.needs(materials) is None]
    grids = {method.name: grid(method, materials) for method in alone}
    asked, tape = load_tuned(materials.lm, materials.config, progress), Tape(materials.lm, materials.point)
    units = sum(one.units for one in asked)
    journal = Journal.open(folder, fresh=materials.config.starts_over)
    with progress.task("sweep", units * (1 + sum(map(len, grids.values()))), "items") as task:
        before = _measured(AsItIs(), materials, asked, tape, task, "baseline")
        # the model against itself: its alignment is 0 by definition, its accuracies are the base of all floors
        base, tuned = _located({}, before, before), {}
        roles = by_role(before)
        pools = {role: pool for role in ("forget", "retain") if (pool := main_pool(roles[role])) is not None}
        guessing = {role: pool.chance or 0.0 for role, pool in pools.items()}
        for method in alone:
            points = []
            for one in grids[method.name]:
                if (known := journal.find(method.name, one)) is None:
                    now = _measured(method.build(one, materials), materials, asked, tape, task, method.name)
                    known = journal.keep(method.name, _located(one, now, before))
                else:
                    task.advance(units, method=method.name)
                points.append(known)
            chosen, rule = pareto.choose(points, base.utility, guessing["forget"])
            end = ends(method, materials)[points.index(chosen)]
            filtered = getattr(materials.config, "question_filter", "none") != "none"
            tuned[method.name] = _tuned(points, base, chosen, rule, end, guessing["retain"], filtered=filtered)
    return Sweep(
        half=HALF,
        measure=pools["forget"].measure.name,
        domains=described_domains(asked, catalogue_of(materials.config).tasks),
        base=base,
        floors=pareto.floors(base.utility),
        methods=tuned,
    )


def _tuned(
    points: Sequence[Point], base: Point, chosen: Point, rule: str, end: str | None, chance: float, *, filtered: bool
) -> TunedMethod:
    """One method's part of the report, with the single numbers that papers quote."""
    best = {name: pareto.best_at(points, floor) for name, floor in pareto.floors(base.utility).items()}
    at_99 = best["utility_99"]
    score = 0.0 if at_99 is None else 1 - at_99.forget
    if base.neighbour is not None:
        both = (pareto.UTILITY_SHARE * base.utility, pareto.UTILITY_SHARE * base.neighbour)
        best["neighbours_99"] = pareto.best_at(points, *both)
    return TunedMethod(
        configurations=len(points),
        points=tuple(points),
        front=tuple(pareto.front(points)),
        best_at=best,
        saebench_score=score if filtered else None,
        hypervolume=pareto.hypervolume(points, base.forget, chance),
        best_alignment=max(one.alignment for one in points),
        chosen=chosen,
        rule=rule,
        end=end,
        unlearning_score=score,
    )


def _located(settings: Settings, measured: Measurement, base: Measurement) -> Point:
    """Where a measurement lies on the trade-off."""
    now, before = by_role(measured), by_role(base)
    kept, gone = main_pool(now["retain"]), main_pool(now["forget"])
    assert kept is not None and gone is not None
    forget, retain = _accuracy(now["forget"]), _accuracy(now["retain"])
    chance = {"retain_chance": kept.chance or 0.0, "forget_chance": gone.chance or 0.0}
    return Point(
        settings=settings,
        forget=forget,
        utility=retain,
        neighbour=_accuracy(now["neighbour"]) if "neighbour" in now else None,
        alignment=alignment(retain, _accuracy(before["retain"]), forget, _accuracy(before["forget"]), **chance),
    )


def _accuracy(answers: Sequence[Answers]) -> float:
    pool = main_pool(answers)
    assert pool is not None and pool.series is not None
    return pool.series.mean


def _measured(
    subject: Subject, materials: Materials, asked: Sequence[Asked], tape: Tape, task: Task, name: str
) -> Measurement:
    """Layers below an edit run once for all settings; retrained weights need a full pass."""
    with in_force(materials.lm, subject) as (lm, log):
        played = tape if lm is materials.lm else None
        return measure(lm, asked, log, task, batch_size=materials.config.eval_batch_size, tape=played, method=name)
