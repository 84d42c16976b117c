"""``--dry_run`` of ``collect``, ``train``, ``eval``, ``run``: what each would do, take and write; nothing is written.

It goes the way of the command itself as far as that only looks, so what the command would refuse is refused in the
same words. Times are reckoned from a little of the work, done here and now.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from textwrap import fill
from typing import Any

from sae_forge.collect_plan import Job
from sae_forge.collect_plan import looked_at as look_at_texts
from sae_forge.config.collect import CollectConfig
from sae_forge.config.evaluate import EvalConfig
from sae_forge.config.run import RunConfig
from sae_forge.config.train import SaeShape, TrainConfig
from sae_forge.data.shards import Manifest, ShardReader, row_bytes
from sae_forge.errors import DataError
from sae_forge.hookpoint import HookPoint
from sae_forge.outcome import Outcome
from sae_forge.pipeline import collected
from sae_forge.pipeline.bench import Bench
from sae_forge.pipeline.collect import corpora
from sae_forge.pipeline.evaluate import looked_at as look_at_eval
from sae_forge.pipeline.features import selected
from sae_forge.pipeline.reckoning import Pace, duration, pace_of, step_seconds
from sae_forge.pipeline.run import held_apart, require_files
from sae_forge.pipeline.streaming import training_stream
from sae_forge.pipeline.train import absent_points, provenance_of, readied, require_sizes, shards_of
from sae_forge.progress import Progress
from sae_forge.sae.patterns import named_by
from sae_forge.settings import presets
from sae_forge.study.measure import load_asked
from sae_forge.study.rehearsal import FEW, rehearse
from sae_forge.study.run import REPORT_FILE
from sae_forge.study.settings import catalogue_of
from sae_forge.study.sweep import require_possible
from sae_forge.training.architectures.table import architecture_of
from sae_forge.training.further import CHECKPOINTS, as_it_stands
from sae_forge.training.plan import Plan
from sae_forge.training.state import KEPT, checkpoints
from sae_forge.training.tracking import require_tracker

GB = 1e9
STATE = 3
"""Copies of the weights in a checkpoint: themselves and Adam's two moments."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Something that would be made, or is there."""

    verb: str
    path: str
    """The folder that would be written, or is used as it is."""
    is_there: bool = False
    tokens: int | None = None
    """None: nobody can know beforehand."""
    rows: int | None = None
    """Rows of activations, or of a report."""
    steps: int | None = None
    bytes: int = 0
    """To be written and kept."""
    seconds: float = 0.0
    basis: str = ""
    """What the seconds were reckoned from."""
    told: str = ""
    """What else is to be said of it."""
    seconds_known: bool = True

    def line(self) -> str:
        """In words."""
        if self.is_there:
            return f"{'there':<9}{self.path}"
        amounts = [
            "" if self.tokens is None else f"about {self.tokens:,} tokens",
            "" if self.steps is None else f"{self.steps:,} steps",
            "" if self.rows is None or self.verb == "collect" else f"{self.rows:,} rows",
            f"{self.bytes / GB:.3f} GB" if self.bytes else "",
            duration(self.seconds) if self.seconds_known else "a time that cannot be reckoned yet",
            self.told,
        ]
        told = fill(", ".join(filter(None, amounts)), 80, initial_indent=" " * 9, subsequent_indent=" " * 9)
        return f"{self.verb:<9}{self.path}\n{told}"


def of_collect(config: CollectConfig, bench: Bench) -> Outcome:
    """What ``collect`` would do."""
    config = bench.settle(config)
    return _outcome(bench, list(_texts(config, bench, corpora(config))))


def of_train(config: TrainConfig, bench: Bench) -> Outcome:
    """What ``train`` would do, with what it would collect first."""
    return _outcome(bench, list(_training(config, bench)))


def of_eval(config: EvalConfig, bench: Bench) -> Outcome:
    """What ``eval`` would do, on each SAE where several are named by one."""
    names = (None,) if config.sae is None else named_by(config.sae)
    return _outcome(bench, [_evaluation(replace(config, sae=name), bench) for name in names])


def of_run(configs: Sequence[RunConfig], progress: Progress, preset: str | None = None) -> Outcome:
    """What ``run`` would do for every model; of what hangs on latents not yet selected, what can be told."""
    pieces: list[Piece] = []
    for asked in configs:
        require_files(asked, preset, presets()[preset].get("needs", {}) if preset else {})
        config = held_apart(asked, progress)
        bench = Bench(config, progress)
        require_possible(bench.lm, config)
        for name in (None,) if config.sae is None else named_by(config.sae):
            pieces += _stages(replace(config, sae=name), bench)
    return _outcome(Bench(configs[-1], progress), pieces)


def _stages(config: RunConfig, bench: Bench) -> list[Piece]:
    """What a run on one SAE, its own or one that is named, would do."""
    at = config
    if config.sae is None:
        own = list(_training(config, bench))
    else:
        named = bench.sae(config.sae, keeps=False)
        bench.require_same_model(named)
        at = replace(config, layer=(named.point.layer,), site=named.point.site)
        own = list(_texts(at, bench, corpora(config)))
    if all(piece.is_there for piece in own):
        sae = config.sae or next(piece.path for piece in own if piece.verb == "train")
        if (selection := selected(on_sae := replace(at, sae=sae), bench)) is not None:
            return [*own, _evaluation(replace(on_sae, selection=selection), bench)]
    items = sum(one.units for one in load_asked(bench.lm, replace(config, question_filter="none")))
    told = f"{items:,} items a row; the rows hang on the latents that are selected"
    own.append(Piece(verb="features", path=str(bench.run.folder / "features"), seconds_known=False))
    return [*own, Piece(verb="eval", path=str(bench.run.folder / "eval"), told=told, seconds_known=False)]


def _outcome(bench: Bench, pieces: Sequence[Piece]) -> Outcome:
    seconds, size = sum(piece.seconds for piece in pieces), sum(piece.bytes for piece in pieces)
    todo = [piece for piece in pieces if not piece.is_there]
    more = "" if all(piece.seconds_known for piece in todo) else " and what cannot be reckoned yet"
    total = f"in all about {duration(seconds)}{more}, {size / GB:.3f} GB kept" if todo else "all of it is there"
    bases = dict.fromkeys(piece.basis for piece in todo if piece.basis)
    lines = [piece.line() for piece in pieces]
    lines += [fill(f"Times: {'; '.join(bases)}.", 80)] if bases else []
    lines += [fill(f"{total}. Nothing was written; leave --dry_run out to do it.", 80)]
    metrics: dict[str, Any] = {"dry_run": True, "seconds": seconds, "bytes": size}
    return Outcome(
        run=bench.run,
        outputs={},
        metrics=metrics | {"pieces": [asdict(piece) for piece in pieces]},
        summary="\n".join(lines),
        noted=False,
    )


def _texts(config: CollectConfig, bench: Bench, named: Sequence[tuple[str, str]]) -> Iterator[Piece]:
    """Every corpus, at the hook points that lack it."""
    config, jobs = look_at_texts(config, bench.lm, named, bench.progress)
    pending = [job for job in jobs if job.pending]
    pace = pace_of(config, bench.lm, pending[0].pending) if pending else None
    for job in jobs:
        for point, folder in job.folders.items():
            if point not in job.pending:
                yield Piece(verb="collect", path=str(folder), is_there=True, tokens=Manifest.read(folder).rows)
        if pace is not None and job.pending:
            yield _collected(job, pace)


def _collected(job: Job, pace: Pace) -> Piece:
    whole = sum((job.expected or 0) * row_bytes(job.fingerprints[point]) for point in job.pending)
    left = job.bytes_to_write / whole if whole else 0.0
    folders = ", ".join(str(job.folders[point]) for point in job.pending)
    return Piece(
        verb="collect",
        path=folders,
        tokens=job.expected,
        rows=None if job.expected is None else job.expected * len(job.pending),
        bytes=job.bytes_to_write,
        seconds=left * (job.expected or 0) / pace.up_to(job.pending),
        basis=pace.said,
        told=f"{1 - left:.0%} of it is there, so that is the rest" if 0 < left < 1 else "",
        seconds_known=job.expected is not None,
    )


def _training(config: TrainConfig, bench: Bench) -> Iterator[Piece]:
    """What is to be collected first, then every SAE."""
    _ = architecture_of(config)
    require_tracker(config.track)
    config = bench.settle(config)
    require_sizes(config, bench)
    absent = absent_points(config, bench) if config.max_disk_gb is None else []
    deepest = max((point.layer for point in bench.points if str(point) in absent), default=0)
    for point in bench.points:
        shards = [] if config.max_disk_gb is not None or str(point) in absent else shards_of(bench.run, point)
        here = replace(config, layer=(point.layer,), site=point.site)
        if not shards:
            texts = list(_texts(here, bench, corpora(here)))
        elif named := collected.missing(config, shards):
            require_sizes(config, bench, shards)
            texts = list(_texts(collected.further(point, config, shards), bench, named))
        else:
            texts = []
        if config.max_disk_gb is not None:
            most = f"{config.max_disk_gb:g} GB at a time, deleted when they have been trained on"
            texts = [replace(piece, bytes=0, told=most) for piece in texts]
        elif str(point) in absent and point.layer < deepest:
            shared = f"in the pass that reads up to layer {deepest}"
            texts = [replace(piece, seconds=0.0, basis="", told=shared) for piece in texts]
        yield from texts
        if all(piece.is_there for piece in texts):
            for reader in shards:
                yield Piece(verb="collect", path=str(reader.folder), is_there=True)
            yield from _on_shards(shards, point, config, bench)
        else:
            counts = [reader.rows for reader in shards] + [piece.tokens for piece in texts]
            yield from _on_texts(None if None in counts else sum(filter(None, counts)), point, config, bench)


def _on_shards(shards: Sequence[ShardReader], point: HookPoint, config: TrainConfig, bench: Bench) -> Iterator[Piece]:
    """SAEs on activations that are there: refused, found or gone on with as training itself would."""
    config, readers, unseen = readied(shards, point, config, bench)
    stream, known = training_stream(config, readers), provenance_of(readers, unseen, bench)
    for shape in config.saes(stream.d_in):
        folder = bench.run.sae(point, **shape._asdict(), architecture=config.other_architecture)
        plan = Plan.make(config, shape, stream)
        done = 0
        if not config.starts_over:
            stored, is_longer, finished = as_it_stands(folder, config, plan.settings(known))
            if finished and not is_longer:
                yield Piece(verb="train", path=str(folder), is_there=True)
                continue
            kept = checkpoints(folder / CHECKPOINTS) if stored and not is_longer else ()
            done = max((step for step, _ in kept), default=0) or (stored["steps"] if stored and is_longer else 0)
        yield _trained(str(folder), shape, plan.steps, done, stream.d_in, config)


def _on_texts(tokens: int | None, point: HookPoint, config: TrainConfig, bench: Bench) -> Iterator[Piece]:
    """SAEs on activations that are yet to be collected: as many tokens as there will be, about.

    Args:
        tokens: None where nobody can know.
    """
    width, config = bench.lm.width(point), config if tokens is None else config.fitted(tokens)
    if tokens is not None and tokens < config.batch_size:
        raise DataError(
            f"about {tokens:,} tokens are less than one batch of {config.batch_size:,}; lower --batch_size or name "
            "more text"
        )
    steps = config.max_steps or (0 if tokens is None else config.epochs * (tokens // config.batch_size))
    for shape in config.saes(width):
        folder = str(bench.run.sae(point, **shape._asdict(), architecture=config.other_architecture))
        piece = _trained(folder, shape, steps, 0, width, config)
        unknown = {"tokens": None, "steps": None, "seconds": 0.0, "seconds_known": False}
        yield piece if steps else replace(piece, **unknown)


def _trained(path: str, shape: SaeShape, steps: int, done: int, d_in: int, config: TrainConfig) -> Piece:
    weights = 4 * (2 * d_in * shape.d_sae + d_in + shape.d_sae)
    more = f"going on after about {done:,} steps, " if done else ""
    return Piece(
        verb="train",
        path=path,
        tokens=steps * config.batch_size,
        steps=steps,
        bytes=weights * (1 + STATE),  # the SAE, and the state to train it further from
        seconds=(steps - done) * step_seconds(config, d_in, shape.d_sae),
        basis="a step from the matrix product that it is mostly made of, tried here just now",
        told=f"{more}{shape.d_sae:,} latents, {config.batch_size:,} tokens a step, and while it trains "
        f"{KEPT * STATE * weights / GB:.3f} GB of checkpoints",
    )


def _evaluation(config: EvalConfig, bench: Bench) -> Piece:
    """A report, or the one that is there."""
    asked = look_at_eval(config, bench, keeps=False)
    if (asked.folder / REPORT_FILE).exists() and not asked.config.starts_over:
        return Piece(verb="eval", path=str(asked.folder), is_there=True)
    bench.require_same_model(asked.named)
    told = rehearse(
        bench.lm, asked.named.sae, asked.selection, asked.config, asked.named.point, bench.progress,
        collected=collected.shards_of(asked.selection, bench.run, asked.named.point), also=asked.also,
        rivals=asked.rivals, folder=asked.folder, table=catalogue_of(config).methods,
    )  # fmt: skip
    more = [
        f"{told.controls} of them random controls",
        f"{told.items:,} items a row",
        f"{told.points:,} settings tried beforehand" if told.points else "",
        f"{told.answered} rows are answered already" if told.answered else "",
        f"not in the time: to retrain the weights for {', '.join(told.retrained)}" if told.retrained else "",
        "not in the time: what judges take, which are not asked" if getattr(config, "judge", ()) else "",
        "not in the time: the question filter" if getattr(config, "question_filter", "none") != "none" else "",
    ]
    return Piece(
        verb="eval",
        path=str(asked.folder),
        rows=told.rows,
        seconds=told.seconds,
        basis=f"of each task {FEW} items were asked here just now",
        told=", ".join(filter(None, more)),
    )
