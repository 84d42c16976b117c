"""The verb ``train``: shards become one SAE or several. The step stands apart, in ``step.py``.

The loop owns what a step must not know: schedule, log, checkpoints, signals. A run stopped anywhere and started again
goes on to the same weights, to the bit on a CPU, because a batch is a function of its index. Several SAEs share one
read, and each comes out as if it had been trained alone.

Over several ranks every one of them runs this loop. The first alone writes, but for checkpoints of latents that are
spread over the ranks, of which each writes its own.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TextIO

import torch
from jaxtyping import Float
from torch import Tensor

from sae_forge import ranks
from sae_forge.config.train import SaeShape, TrainConfig
from sae_forge.data.stream import Part
from sae_forge.data.windows import Stream
from sae_forge.errors import ConfigError, NumericalError
from sae_forge.progress import SILENT, Progress, Task
from sae_forge.sae.jumprelu import JumpReLUSAE
from sae_forge.sae.store import Provenance, load_sae, save_sae
from sae_forge.sae.topk import TopKSAE
from sae_forge.store import files
from sae_forge.training.architectures.table import architecture_of
from sae_forge.training.begin import begin, first_rows
from sae_forge.training.feed import reading
from sae_forge.training.further import CHECKPOINTS, open_folder
from sae_forge.training.plan import Plan
from sae_forge.training.record import Record, falling, open_log
from sae_forge.training.replay import Stepper
from sae_forge.training.replicas import LOOK_EVERY, asked_to_stop, require_agreement, require_same_weights
from sae_forge.training.report import TrainReport, load_report, measure, measuring_window, save_report
from sae_forge.training.sharded import ShardedSAE
from sae_forge.training.signals import Pending, held_signals
from sae_forge.training.state import KEPT, LEVEL, TrainState, load_weights, save_checkpoint
from sae_forge.training.tracking import Tracker, require_tracker, tracked


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where one SAE goes."""

    folder: Path
    """The SAE's own folder; ``checkpoints/`` inside it goes when training is done, ``level/`` stays."""
    log: Path | None = None
    """File to append one JSON line a step to."""


def train_sae(
    stream: Stream,
    config: TrainConfig,
    folder: Path,
    provenance: Provenance,
    *,
    progress: Progress = SILENT,
    log: Path | None = None,
    held_out: Stream | None = None,
) -> TrainReport:
    """The report of the one SAE that ``config`` asks for; see :func:`train_saes`.

    Raises:
        ConfigError: the config asks for several.
    """
    shapes = config.saes(stream.d_in)
    if len(shapes) != 1:
        raise ConfigError(f"{len(shapes)} SAEs were asked for and one folder was given; give one k, d_sae and seed")
    places = {shapes[0]: Place(folder=folder, log=log)}
    return train_saes(stream, config, places, provenance, progress=progress, held_out=held_out)[shapes[0]]


def train_saes(
    stream: Stream,
    config: TrainConfig,
    places: Mapping[SaeShape, Place],
    provenance: Provenance,
    *,
    progress: Progress = SILENT,
    held_out: Stream | None = None,
    opened: Callable[[], object] = lambda: None,
) -> dict[SaeShape, TrainReport]:
    """The report of each SAE in its folder: trained now, trained on from a checkpoint, or finished before.

    Args:
        stream: Training batches, of ``config.batch_size`` tokens; trained on in one read for all.
        held_out: Where the reports are measured; None takes the training rows in an order not yet seen.
        opened: Called on every rank before the first step, once none of the folders was refused.

    Raises:
        CheckpointError: another SAE is there, made under other settings (names the first that differs).
        NumericalError: a loss or gradient is not finite; no weight was moved by it. Others from the same read are
            finished first.
        KeyboardInterrupt: on Ctrl-C, after a checkpoint from which the same call goes on.
        ConfigError: several ranks were given different settings, or several SAEs; or there is no such architecture.
        PeerError: the ranks no longer hold the same weights.
    """
    _ = architecture_of(config)
    require_tracker(config.track)
    team = ranks.here()
    if team.world > 1 and len(places) > 1:
        raise ConfigError(f"{len(places)} SAEs from one read are trained in one process; over ranks ask for one")
    reports: dict[SaeShape, TrainReport] = {}
    open_runs: dict[SaeShape, _Run] = {}
    plans = {shape: Plan.make(config, shape, stream) for shape in places}
    start_rows = cache(partial(first_rows, stream))
    with ExitStack() as held:
        held.enter_context(_current(next(iter(plans.values())).device))
        for shape, place in places.items():
            settings = plans[shape].settings(provenance)
            require_agreement(plans[shape], stream, settings)
            with team.led() as first:
                if first:
                    open_folder(place.folder, config, settings, held, progress)
            if (report := load_report(place.folder)) is not None:
                load_sae(place.folder)  # a damaged SAE is not a finished one
                progress.say(f"{place.folder} is trained already")
                with team.led() as first:
                    if first:  # a run killed at the very end leaves them
                        files.discard_folder(place.folder / CHECKPOINTS)
                reports[shape] = report
                continue
            team.connect(plans[shape].device)
            open_runs[shape] = _Run(plans[shape], place, begin(start_rows, plans[shape], place.folder, progress))
        opened()
        if open_runs:
            _train(stream, list(open_runs.values()), progress)
        for shape, run in open_runs.items():
            if run.failure is not None:
                continue
            reports[shape] = replace(_finish(run, held_out or stream, provenance, progress), tokens_per_second=run.rate)
    for run in open_runs.values():
        if run.failure is not None:
            raise NumericalError(f"{run.place.folder.name}, {run.failure}") from run.failure
    return {shape: reports[shape] for shape in places}


@contextmanager
def _current(device: torch.device) -> Iterator[None]:
    """The device that graphs are recorded on, which need not be the first GPU; a kernel finds its own."""
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        yield


def _finish(run: "_Run", stream: Stream, provenance: Provenance, progress: Progress) -> TrainReport:
    """Publish the SAE and its report, which every rank returns."""
    team, plan, folder = run.plan.team, run.plan, run.place.folder
    report, last = None, stream.part(run.plan.steps - 1)  # asked for by every rank: it may have to be collected again
    with team.led() as first:
        if first:
            save_sae(folder, _whole_sae(run), replace(provenance, sink_norm=run.state.sink_norm or None))
    if first or plan.shards_latents:
        report = _measure(last, run, progress)
    with team.led():
        if first and report is not None:
            save_report(folder, report)
            files.discard_folder(folder / CHECKPOINTS)
    report = report or load_report(folder)
    assert report is not None
    return report


def _whole_sae(run: "_Run") -> TopKSAE | JumpReLUSAE:
    """The SAE as it is saved: of latents spread over ranks, put together on the CPU from the last checkpoint."""
    state, finish = run.state, architecture_of(run.plan.config).finish
    if not run.plan.shards_latents:
        return finish(state.sae, state.scale, state.own)
    sae = TopKSAE(run.plan.d_in, run.plan.d_sae, run.plan.k, seed=None)
    return finish(sae, load_weights(run.place.folder / CHECKPOINTS, sae), state.own)


# ---- loop ---------------------------------------------------------------------------------------


@dataclass
class _Run:
    """One SAE on its way."""

    plan: Plan
    place: Place
    state: TrainState
    rate: float | None = None
    """Tokens per second of this process, if any step was left to do."""
    failure: NumericalError | None = None
    """What ended it before its last step."""

    @property
    def unfinished(self) -> bool:
        return self.state.step < self.plan.steps and self.failure is None


class _Loop:
    """What a run keeps while steps are taken."""

    def __init__(self, run: _Run, task: Task, log: TextIO | None, tracker: Tracker, stream: Stream) -> None:
        self.run = run
        self.first_tokens = run.state.tokens
        self._step = Stepper(run.state, run.plan)
        clipped = run.plan.config.max_grad_norm is not None
        self._record = Record(task, log, tracker, clipped=clipped, tokens=run.state.tokens, stream=stream)

    def resume(self) -> None:
        """Steps begin, or go on after something else."""
        self._record.resume()

    def take(self, batch: Float[Tensor, "batch d_in"]) -> None:
        """One step, unless it was the run's last for its numbers are not finite."""
        try:
            self._take(batch)
        except NumericalError as error:
            self.run.failure = error

    def _take(self, batch: Float[Tensor, "batch d_in"]) -> None:
        """One step, and a checkpoint where one is due; the last is there in case the measuring is interrupted."""
        state, plan = self.run.state, self.run.plan
        plan.team.at = f"step {state.step + 1}"
        figures = self._step(batch)
        self._record.add(figures, step=state.step, tokens=state.tokens, lr=plan.lr_at(state.step - 1))
        if state.step % LOOK_EVERY == 0:
            require_same_weights(state, plan)
        if state.step == plan.level_until:
            self._save(LEVEL, kept=1)
        if state.step % plan.config.checkpoint_every == 0 or not self.run.unfinished:
            self._save()

    def save(self) -> None:
        """A checkpoint of where the run is, unless numbers of its last steps are not finite, which ends it."""
        try:
            self._save()
        except NumericalError as error:
            self.run.failure = error

    def _save(self, name: str = CHECKPOINTS, *, kept: int = KEPT) -> None:
        self._record.flush()  # refuses numbers that are not finite, which must not be saved
        folder, state, plan = self.run.place.folder / name, self.run.state, self.run.plan
        require_same_weights(state, plan)
        if plan.shards_latents:
            save_checkpoint(folder, state, plan.share, plan.team, kept=kept)
            return
        with plan.team.led() as first:
            if first:
                save_checkpoint(folder, state, kept=kept)


def _train(stream: Stream, runs: list[_Run], progress: Progress) -> None:
    """Every run to its last step, from one part of the stream after the other."""
    seconds = 0.0
    with ExitStack() as stack:
        task = stack.enter_context(progress.task("train", sum(run.plan.steps for run in runs), "step"))
        task.advance(sum(run.state.step for run in runs))
        logs = [open_log(run.place.log if run.plan.team.leads else None, stack) for run in runs]
        sent = [tracked(run.plan, log, run.state.step, stack, progress) for run, log in zip(runs, logs, strict=True)]
        loops = [_Loop(run, task, log, to, stream) for run, log, to in zip(runs, logs, sent, strict=True)]
        while behind := [run.state.step for run in runs if run.unfinished]:
            part = stream.part(min(behind))
            started = time.perf_counter()
            for loop in loops:
                loop.resume()
            with held_signals() as pending:
                step, stopped = _train_on(part, min(behind), loops, pending)
                unfinished = any(run.unfinished for run in runs)
                for loop in loops if unfinished else ():
                    if loop.run.failure is None:
                        loop.save()
                if stopped and unfinished:
                    last = max(run.plan.steps for run in runs)
                    progress.say(f"stopped after step {step} of {last}; the same command goes on from there")
            if stopped and unfinished:
                raise KeyboardInterrupt  # whatever the signal's own handler did, these SAEs are not finished
            seconds += time.perf_counter() - started
            if unfinished:
                stream.leave(part)
    for loop in loops:
        if done := loop.run.state.tokens - loop.first_tokens:
            loop.run.rate = done / seconds


def _train_on(part: Part, index: int, loops: list[_Loop], pending: Pending) -> tuple[int, bool]:
    """Every step from ``index`` on whose batch comes from this part; the next one, and whether to stop before it."""
    plan, state = loops[0].run.plan, loops[0].run.state
    last = max(loop.run.plan.steps for loop in loops)
    end = last if part.end is None else min(last, part.end)
    with reading(part.stream, index - part.first, plan.device, plan.own_rows) as batches:
        while not (stopped := asked_to_stop(pending.signum is not None, state, plan)) and index < end:
            if all(loop.run.failure is not None for loop in loops):
                break
            batch = next(batches)
            for loop in loops:
                if loop.run.state.step == index and loop.run.unfinished:
                    loop.take(batch)
            index += 1
    return index, stopped


def _measure(part: Part, run: _Run, progress: Progress) -> TrainReport:
    """The report of the SAE as it was saved, over rows that come once each, in the next order of the last part."""
    plan = run.plan
    if plan.shards_latents:
        sae = ShardedSAE(run.state, plan)
    else:
        sae, _ = load_sae(run.place.folder, device=plan.device)
        assert isinstance(sae, TopKSAE | JumpReLUSAE)
        sae.backend = plan.config.backend
    epoch = part.stream.batches_per_epoch
    window = measuring_window(epoch * part.stream.batch_size, plan.config.dead_after)
    seen = -(-(plan.steps - part.first) // epoch) * epoch
    with reading(part.stream, seen, plan.device) as batches:
        measured = measure(sae, batches, window, progress, run.state.sink_norm, k=plan.k)
    return replace(
        measured, steps=run.state.step, tokens=run.state.tokens, falling=falling(run.place.log, plan.level_until)
    )
