"""The sweep: every method tuned with the same budget on one half of the questions, to be reported on the other.

What a sweep picks on the questions it reports on flatters itself: the best of many is partly luck. So settings are
chosen on the DEV half, by the rule of ``pareto.choose``, and nothing of the TEST half is looked at for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_forge.config.questions import Half
from sae_forge.errors import DataError
from sae_forge.methods.materials import Materials
from sae_forge.methods.method import Method, Settings, ends, grid
from sae_forge.methods.subjects import AsItIs, Subject, in_force
from sae_forge.models.tape import Tape
from sae_forge.progress import Progress, Task
from sae_forge.statistics.answers import alignment
from sae_forge.store import files, records
from sae_forge.study import pareto
from sae_forge.study.estimates import by_role, described_domains, main_pool
from sae_forge.study.measure import Answers, Measurement, load_asked, measure
from sae_forge.study.pareto import Point
from sae_forge.tasks.task import Asked

HALF: Half = "dev"
JOURNAL = "sweep.json"


@dataclass(frozen=True)
class Tuned:
    """One method, all its settings measured on the DEV half."""

    method: str
    points: tuple[Point, ...]
    chosen: Point
    rule: str
    """Which rule of :func:`pareto.choose` chose it."""
    end: str | None = None
    """``gentlest`` or ``roughest`` where the chosen strength is the end of those tried: there may be better beyond."""

    def to_json(self, base: Point) -> dict[str, Any]:
        """The method's part of the report's ``sweep``."""
        best = {name: pareto.best_at(self.points, floor) for name, floor in pareto.floors(base.utility).items()}
        at_99 = best["utility_99"]
        if base.neighbour is not None:
            both = (pareto.UTILITY_SHARE * base.utility, pareto.UTILITY_SHARE * base.neighbour)
            best["neighbours_99"] = pareto.best_at(self.points, *both)
        return {
            "configurations": len(self.points),
            "points": [_point(one) for one in self.points],
            "front": [_point(one) for one in pareto.front(self.points)],
            "best_at": {name: None if one is None else _point(one) for name, one in best.items()},
            "saebench_score": 0.0 if at_99 is None else 1 - at_99.forget,
            "hypervolume": pareto.hypervolume(self.points, base.forget),
            "best_alignment": max(one.alignment for one in self.points),
            "chosen": _point(self.chosen),
            "rule": self.rule,
            "end": self.end,
        }


@dataclass(frozen=True)
class Swept:
    """What a sweep found."""

    base: Point
    tuned: tuple[Tuned, ...]
    items: dict[str, dict[str, Any]]
    """Domains of the DEV half with the ids that were asked."""

    def to_json(self) -> dict[str, Any]:
        """The report's ``sweep``."""
        return {
            "half": HALF,
            "domains": self.items,
            "base": _point(self.base),
            "floors": pareto.floors(self.base.utility),
            "methods": {one.method: one.to_json(self.base) for one in self.tuned},
        }


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
        self.points[files.digest([method, point.settings])] = point
        if self.path is not None:
            files.publish_json(self.path, {key: _point(one) for key, one in self.points.items()})
        return point


def load_tuned(materials: Materials, progress: Progress) -> tuple[Asked, ...]:
    """The DEV half of what settings are chosen on: held-out text and prompts to continue are left for the report.

    Raises:
        DataError: there is nothing of it on what is forgotten, or none on what is kept.
    """
    config = materials.config
    limit = config.sweep_limit or config.limit
    asked = load_asked(materials.lm, config, progress, tuned=True, half=HALF, limit=limit)
    if missing := {"forget", "retain"} - {one.role for one in asked}:
        raise DataError(
            f"--sweep chooses by questions and has none in the role {sorted(missing)[0]}; "
            "give --forget_questions and --retain_questions"
        )
    return asked


def sweep(methods: Sequence[Method], materials: Materials, progress: Progress, folder: Path | None = None) -> Swept:
    """Measure every setting of every method on the DEV half, and choose one of each.

    Methods that cannot be measured with what there is are left out, and of wrapped ones the inner method is tuned.

    Args:
        folder: This sweep's own, where the points measured so far are kept, so that one that was stopped goes on.
    """
    alone = [method for method in methods if not method.parts and method.needs(materials) is None]
    grids = {method.name: grid(method, materials) for method in alone}
    asked, tape = load_tuned(materials, progress), Tape(materials.lm, materials.point)
    units = sum(one.units for one in asked)
    journal = Journal.open(folder, fresh=materials.config.starts_over)
    with progress.task("sweep", units * (1 + sum(map(len, grids.values()))), "items") as task:
        before = _measured(AsItIs(), materials, asked, tape, task, "baseline")
        base, tuned = _located({}, before, before), []
        for method in alone:
            points = []
            for one in grids[method.name]:
                if (known := journal.find(method.name, one)) is None:
                    now = _measured(method.build(one, materials), materials, asked, tape, task, method.name)
                    known = journal.keep(method.name, _located(one, now, before))
                else:
                    task.advance(units, method=method.name)
                points.append(known)
            chosen, rule = pareto.choose(points, base.utility)
            end = ends(method, materials)[points.index(chosen)]
            tuned.append(Tuned(method.name, tuple(points), chosen, rule, end))
    return Swept(base, tuple(tuned), described_domains(asked))


def _located(settings: Settings, found: Measurement, base: Measurement) -> Point:
    """Where a measurement lies on the trade-off."""
    now, before = by_role(found), by_role(base)
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


def _point(one: Point) -> dict[str, Any]:
    return dict(vars(one))
