"""The verb ``train``: shards become one SAE or several. The step stands apart, in ``step.py``.

The loop owns what a step must not know: schedule, log, checkpoints, signals. A run stopped anywhere and started again
goes on to the same weights, to the bit on a CPU, because a batch is a function of its index. Several SAEs share one
read, and each comes out as if it had been trained alone.
"""

import shutil
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

import torch
from jaxtyping import Float
from torch import Tensor

from sae_forge import files
from sae_forge.config import SaeShape, TrainConfig
from sae_forge.data.stream import ActivationStream
from sae_forge.errors import ConfigError
from sae_forge.progress import SILENT, Progress, Task
from sae_forge.rng import torch_seed
from sae_forge.sae.store import Provenance, load_sae, save_sae
from sae_forge.sae.topk import TopKSAE
from sae_forge.training.feed import feed
from sae_forge.training.initialisation import centre, input_scale, take_sample
from sae_forge.training.plan import CONFIG, Plan, require_same_settings
from sae_forge.training.record import Record
from sae_forge.training.replay import Stepper
from sae_forge.training.report import TrainReport, load_report, measure, measuring_window, save_report
from sae_forge.training.signals import held_signals
from sae_forge.training.state import TrainState, load_checkpoint, save_checkpoint

CHECKPOINTS = "checkpoints"


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where one SAE goes."""

    folder: Path
    """The SAE's own folder; ``checkpoints/`` inside it goes when training is done."""
    log: Path | None = None
    """File to append one JSON line a step to."""


def train_sae(
    stream: ActivationStream,
    config: TrainConfig,
    folder: Path,
    provenance: Provenance,
    *,
    progress: Progress = SILENT,
    log: Path | None = None,
    held_out: ActivationStream | None = None,
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
    stream: ActivationStream,
    config: TrainConfig,
    places: Mapping[SaeShape, Place],
    provenance: Provenance,
    *,
    progress: Progress = SILENT,
    held_out: ActivationStream | None = None,
) -> dict[SaeShape, TrainReport]:
    """The report of each SAE in its folder: trained now, trained on from a checkpoint, or finished before.

    Args:
        stream: Training batches, of ``config.batch_size`` tokens; read once for all.
        held_out: Where the reports are measured; None takes the training rows in an order not yet seen.

    Raises:
        CheckpointError: another SAE is there, made under other settings (names the first that differs).
        NumericalError: a loss or gradient is not finite; no weight was moved by it.
        KeyboardInterrupt: on Ctrl-C, after a checkpoint from which the same call goes on.
    """
    reports: dict[SaeShape, TrainReport] = {}
    open_runs: dict[SaeShape, _Run] = {}
    plans = {shape: Plan.make(config, shape, stream) for shape in places}
    with ExitStack() as held:
        for shape, place in places.items():
            if config.starts_over:
                shutil.rmtree(place.folder, ignore_errors=True)
            require_same_settings(place.folder, plans[shape].settings(provenance))
            if (report := load_report(place.folder)) is not None:
                load_sae(place.folder)  # a damaged SAE is not a finished one
                progress.say(f"{place.folder} is trained already")
                reports[shape] = report
                continue
            held.enter_context(files.locked(place.folder / CHECKPOINTS))
            files.publish_json(place.folder / CONFIG, plans[shape].settings(provenance))
            open_runs[shape] = _Run(plans[shape], place, _begin(stream, plans[shape], place, progress))
        if open_runs:
            _train(stream, list(open_runs.values()), progress)
        for shape, run in open_runs.items():
            folder = run.place.folder
            save_sae(folder, run.state.sae.folded(run.state.scale), provenance)
            report = _measure(held_out or stream, run, progress)
            save_report(folder, report)
            shutil.rmtree(folder / CHECKPOINTS)
            reports[shape] = replace(report, tokens_per_second=run.rate)
    return {shape: reports[shape] for shape in places}


# ---- loop ---------------------------------------------------------------------------------------


@dataclass
class _Run:
    """One SAE on its way."""

    plan: Plan
    place: Place
    state: TrainState
    rate: float | None = None
    """Tokens per second of this process, if any step was left to do."""

    @property
    def unfinished(self) -> bool:
        return self.state.step < self.plan.steps


class _Loop:
    """What a run keeps while steps are taken."""

    def __init__(self, run: _Run, task: Task, log: TextIO | None, progress: Progress) -> None:
        self.run = run
        self.first_tokens = run.state.tokens
        self._step = Stepper(run.state, run.plan, progress)
        clipped = run.plan.config.max_grad_norm is not None
        self._record = Record(task, log, clipped=clipped, tokens=run.state.tokens)

    def take(self, batch: Float[Tensor, "batch d_in"]) -> None:
        """One step, and a checkpoint where one is due; the last is there in case the measuring is interrupted."""
        state, plan = self.run.state, self.run.plan
        figures = self._step(batch)
        self._record.add(figures, step=state.step, tokens=state.tokens, lr=plan.lr_at(state.step - 1))
        if state.step % plan.config.checkpoint_every == 0 or not self.run.unfinished:
            self.save()

    def save(self) -> None:
        """A checkpoint of where the run is."""
        self._record.flush()  # refuses numbers that are not finite, which must not be saved
        save_checkpoint(self.run.place.folder / CHECKPOINTS, self.run.state)


def _train(stream: ActivationStream, runs: list[_Run], progress: Progress) -> None:
    """Every run to its last step."""
    started = time.perf_counter()
    with ExitStack() as stack:
        pending = stack.enter_context(held_signals())
        task = stack.enter_context(progress.task("train", sum(run.plan.steps for run in runs), "step"))
        task.advance(sum(run.state.step for run in runs))
        loops = [_Loop(run, task, _open_log(run.place.log, stack), progress) for run in runs]
        last = max(run.plan.steps for run in runs)
        index = min((run.state.step for run in runs if run.unfinished), default=last)
        batches = stack.enter_context(_reading(stream, index, runs[0].plan.device))
        while index < last and pending.signum is None:
            batch = next(batches)
            for loop in loops:
                if loop.run.state.step == index and loop.run.unfinished:
                    loop.take(batch)
            index += 1
        if pending.signum is not None:
            for loop in loops:
                loop.save()
            progress.say(f"stopped after step {index} of {last}; the same command goes on from there")
    if any(run.unfinished for run in runs):
        raise KeyboardInterrupt  # whatever the signal's own handler did, these SAEs are not finished
    seconds = time.perf_counter() - started
    for loop in loops:
        if done := loop.run.state.tokens - loop.first_tokens:
            loop.run.rate = done / seconds


def _begin(stream: ActivationStream, plan: Plan, place: Place, progress: Progress) -> TrainState:
    """The newest checkpoint, or the state before the first step."""
    config = plan.config
    product_dtype = torch.bfloat16 if config.sae_dtype == "bf16" else None
    seed = torch_seed(plan.seed, "sae weights")
    sae = TopKSAE(plan.d_in, plan.d_sae, plan.k, seed=seed, backend=config.backend, product_dtype=product_dtype)
    state = load_checkpoint(place.folder / CHECKPOINTS, sae.to(plan.device), progress)
    if state is not None:
        progress.say(f"going on from step {state.step} of {plan.steps}")
        return state
    with _reading(stream, 0, torch.device("cpu")) as batches:
        sample = take_sample(batches, plan.d_in).to(plan.device)
    middle = centre(sample, config.b_dec_init)
    scale = input_scale(sample, middle)
    with torch.no_grad():
        sae.b_dec.copy_(middle * scale)
    return TrainState.start(sae, scale)


def _measure(stream: ActivationStream, run: _Run, progress: Progress) -> TrainReport:
    """The report of the SAE as it was saved, over rows that come once each, in the epoch after the last."""
    plan = run.plan
    sae, _ = load_sae(run.place.folder, device=plan.device)
    sae.backend = plan.config.backend
    window = measuring_window(stream.batches_per_epoch * stream.batch_size, plan.config.dead_after)
    epochs = -(-plan.steps // stream.batches_per_epoch)
    with _reading(stream, epochs * stream.batches_per_epoch, plan.device) as batches:
        meter, dead_share = measure(sae, batches, window, progress)
    return TrainReport(steps=run.state.step, tokens=run.state.tokens, fvu=meter.fvu, l0=meter.l0, dead_share=dead_share)


@contextmanager
def _reading(
    stream: ActivationStream, start: int, device: torch.device
) -> Iterator[Iterator[Float[Tensor, "batch d_in"]]]:
    """Batches from ``start`` on, on the device; the thread that reads ahead ends with the block."""
    batches = stream.batches(start)
    try:
        yield feed(batches, device)
    finally:
        if isinstance(batches, Generator):
            batches.close()


def _open_log(log: Path | None, stack: ExitStack) -> TextIO | None:
    if log is None:
        return None
    log.parent.mkdir(parents=True, exist_ok=True)
    return stack.enter_context(log.open("a", encoding="utf-8"))
