"""The sweep: every method tuned with the same budget on one half of the questions, to be reported on the other.

What a sweep picks on the questions it reports on flatters itself: the best of many is partly luck. So settings are
chosen on the DEV half, by the rule of ``pareto.choose``, and nothing of the TEST half is looked at for it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sae_forge import ranks
from sae_forge.config.evaluate import EvalConfig
from sae_forge.config.questions import Half
from sae_forge.errors import DataError
from sae_forge.methods.materials import Materials
from sae_forge.methods.method import Method, Settings, ends, grid, require_budget
from sae_forge.methods.subjects import AsItIs, Subject, in_force
from sae_forge.methods.table import methods_of
from sae_forge.models.loading import LanguageModel
from sae_forge.models.tape import Tapes
from sae_forge.progress import SILENT, Progress, Task
from sae_forge.results.report import Point, Sweep, TunedMethod
from sae_forge.statistics.answers import alignment
from sae_forge.statistics.bootstrap import Bootstrap
from sae_forge.statistics.estimate import Estimate
from sae_forge.store import files, records
from sae_forge.study import pareto
from sae_forge.study.estimates import by_role, described_domains, main_pool
from sae_forge.study.kept import FOLDER, Kept
from sae_forge.study.measure import Answers, Measurement, load_asked, measure
from sae_forge.study.settings import catalogue_of
from sae_forge.study.shares import ALL, Elsewhere, Share
from sae_forge.tasks.task import Asked

HALF: Half = "dev"
JOURNAL = "sweep.json"
POINTS = "tried"
"""Folder of the points of a sweep under way; older ones, without changes, lie in another and are measured anew."""


@dataclass(frozen=True)
class Journal:
    """The points measured so far, each on disk as it comes, by whichever process measured it."""

    folder: Path | None
    points: dict[str, Point]

    @classmethod
    def open(cls, folder: Path | None) -> "Journal":
        """What earlier, stopped sweeps or the other parts of this one have left in its folder.

        Raises:
            DataError: a file of it is no journal.
        """
        points: dict[str, Point] = {}
        whole = [] if folder is None else [folder / JOURNAL]  # all in one file: of a sweep that came to its end
        parts = [] if folder is None else sorted((folder / FOLDER / POINTS).glob("*.json"))
        for path in (*filter(Path.exists, whole), *parts):
            kept = files.read_json(path, kind=DataError, what="the points of a sweep")
            try:
                if not isinstance(kept, dict):
                    raise ValueError("it should be an object")
                points |= {key: records.decode(Point, point) for key, point in kept.items()}
            except ValueError as error:
                raise DataError(
                    f"{path} does not hold the points of a sweep: {error}; start over with --fresh"
                ) from error
        return cls(folder, points)

    def find(self, method: str, settings: Settings) -> Point | None:
        """The point of a method at these settings, if it was measured."""
        point = self.points.get(files.digest([method, settings]))
        return point if point is not None and point.changes else None

    def keep(self, method: str, point: Point) -> Point:
        """The point, written down."""
        # settings name the point: a sweep with other settings measures its own
        key = files.digest([method, point.settings])
        self.points[key] = point
        if self.folder is not None:
            files.publish_once(self.folder / FOLDER / POINTS / f"{key[:16]}.json", records.encode({key: point}))
        return point

    def align(self, base: Point, guessing: Mapping[str, float]) -> None:
        """Set all points against the model as it is, and write them into one file."""
        self.points.update({key: _aligned(point, base, guessing) for key, point in self.points.items()})
        if self.folder is not None and ranks.here().leads:
            files.publish_json(self.folder / JOURNAL, records.encode(self.points))


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


Piece = tuple[Method | None, Settings]
"""What a sweep measures at once: a method at some settings, or the model as it is."""


@dataclass
class _Sweeping:
    """A sweep under way."""

    materials: Materials
    asked: Sequence[Asked]
    kept: Kept
    """The answers of the model as it is, which every point is set against."""
    journal: Journal
    base: Measurement | None = None

    def __post_init__(self) -> None:
        self._tapes = Tapes(self.materials.lm, self.materials.point)
        self._units = sum(one.units for one in self.asked)
        self._bootstrap = Bootstrap(self.materials.config.bootstrap, self.materials.config.seed)

    def has(self, piece: Piece) -> bool:
        """Whether it is measured."""
        method, settings = piece
        if method is None:
            return self.kept.has_all(self.asked)
        return self.journal.find(method.name, settings) is not None

    def take(self, pieces: Sequence[Piece], progress: Progress) -> Measurement:
        """Measure what of these is not there yet, after the model as it is, whose answers these are."""
        points = [(method, settings) for method, settings in pieces if method is not None]
        with progress.task("sweep", self._units * (1 + len(points)), "items") as task:
            # first, whoever else measures it too: every point is set against it
            ranks.here().at = "the model as it is"
            base = self.base = self.base or self._measured(AsItIs(), task, "baseline", self.kept)
            for method, settings in points:
                ranks.here().at = f"a setting of {method.name}"
                if self.journal.find(method.name, settings) is None:
                    measured = self._measured(method.build(settings, self.materials), task, method.name)
                    changes = _changes(measured, base, self._bootstrap)
                    self.journal.keep(method.name, _located(settings, measured, changes))
                else:
                    task.advance(self._units, method=method.name)
        return base

    def _measured(self, subject: Subject, task: Task, name: str, kept: Kept | None = None) -> Measurement:
        """Layers below an edit run once for all settings; retrained weights need a full pass."""
        with in_force(self.materials.lm, subject) as (lm, log):
            tapes = self._tapes if lm is self.materials.lm else None
            size = self.materials.config.eval_batch_size
            return measure(lm, self.asked, log, task, batch_size=size, tapes=tapes, kept=kept, method=name)


def sweep(
    methods: Sequence[Method],
    materials: Materials,
    progress: Progress,
    folder: Path | None = None,
    share: Share = ALL,
) -> Sweep:
    """Measure every setting of every method on the DEV half, and choose one of each.

    Methods that cannot be measured with what there is are left out, and of wrapped ones the inner method is tuned.

    Args:
        folder: This sweep's own, where the points measured so far are kept, so that one that was stopped goes on.
        share: Which settings this process measures; whole ones, since a method may have to train for each.

    Raises:
        Elsewhere: this was a part, and other parts have points still to come.
    """
    alone = [method for method in methods if not method.parts and method.needs(materials) is None]
    grids = {method.name: grid(method, materials) for method in alone}
    asked = load_tuned(materials.lm, materials.config, progress)
    under_way = _Sweeping(materials, asked, Kept.named(folder, "baseline"), Journal.open(folder))
    pieces: list[Piece] = [(None, {}), *((method, settings) for method in alone for settings in grids[method.name])]
    if not share.whole:
        under_way.take([pieces[number] for number in share.dealt(len(pieces))], progress)
        ranks.here().meet()
        under_way.journal = Journal.open(folder)
        missing = [piece for piece in pieces if not under_way.has(piece)]
        if materials.config.part is not None and missing:
            raise Elsewhere(f"{len(pieces) - len(missing)} of {len(pieces)} points of the sweep are measured by now")
    before = under_way.take(pieces, progress)
    roles = by_role(before)
    pools = {role: pool for role in ("forget", "retain") if (pool := main_pool(roles[role])) is not None}
    guessing = {role: pool.chance or 0.0 for role, pool in pools.items()}
    # the model against itself: its alignment is 0 by definition, its accuracies are the base of all floors
    as_it_is = _located({}, before, {})
    base, tuned = _aligned(as_it_is, as_it_is, guessing), {}
    under_way.journal.align(base, guessing)
    for method in alone:
        tried = ((settings, under_way.journal.find(method.name, settings)) for settings in grids[method.name])
        # in the order in which the method says its settings, which JSON does not keep
        points = [replace(point, settings=settings) for settings, point in tried if point is not None]
        chosen, rule = pareto.choose(points, base.utility, guessing["forget"], materials.config.sweep_rule)
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


def _changes(measured: Measurement, base: Measurement, bootstrap: Bootstrap) -> dict[str, Estimate]:
    before, changes = by_role(base), {}
    for role, answers in by_role(measured).items():
        now, then = main_pool(answers), main_pool(before[role])
        if now is not None and then is not None and (series := now.difference(then)) is not None:
            changes[role] = series.estimate(bootstrap)
    return changes


def _located(settings: Settings, measured: Measurement, changes: Mapping[str, Estimate]) -> Point:
    """Where a measurement lies on the trade-off, its alignment yet to be set."""
    now = by_role(measured)
    return Point(
        settings=settings,
        forget=_accuracy(now["forget"]),
        utility=_accuracy(now["retain"]),
        neighbour=_accuracy(now["neighbour"]) if "neighbour" in now else None,
        alignment=0.0,
        changes=changes,
    )


def _aligned(point: Point, base: Point, guessing: Mapping[str, float]) -> Point:
    chance = {f"{role}_chance": guessing[role] for role in ("retain", "forget")}
    return replace(point, alignment=alignment(point.utility, base.utility, point.forget, base.forget, **chance))


def _accuracy(answers: Sequence[Answers]) -> float:
    pool = main_pool(answers)
    assert pool is not None and pool.series is not None
    return pool.series.mean
