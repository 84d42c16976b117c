"""The verb ``train``: shards become an SAE. One step stands apart from the loop that calls it.

The loop owns what a step must not know: schedule, log, checkpoints, signals. A run stopped anywhere and started again
goes on to the same weights, to the bit on a CPU, because a batch is a function of its index.
"""

import shutil
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TextIO

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, get_total_norm

from sae_forge import files
from sae_forge.config import TrainConfig
from sae_forge.data.stream import ActivationStream
from sae_forge.progress import SILENT, Progress
from sae_forge.rng import torch_seed
from sae_forge.sae.losses import auxk_loss, fvu
from sae_forge.sae.store import Provenance, load_sae, save_sae
from sae_forge.sae.topk import TopKSAE
from sae_forge.training.initialisation import centre, input_scale, take_sample
from sae_forge.training.optimizer import named_weights, normalise_rows_, remove_parallel_gradient_
from sae_forge.training.plan import CONFIG, Plan, require_same_settings
from sae_forge.training.record import Record
from sae_forge.training.report import TrainReport, load_report, measure, measuring_window, save_report
from sae_forge.training.signals import held_signals
from sae_forge.training.state import TrainState, load_checkpoint, save_checkpoint

CHECKPOINTS = "checkpoints"


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
    """The report of the SAE in ``folder``: trained now, trained on from a checkpoint, or finished before.

    Args:
        stream: Training batches, of ``config.batch_size`` tokens.
        folder: The SAE's own folder; ``checkpoints/`` inside it goes when training is done.
        log: File to append one JSON line a step to.
        held_out: Where the report is measured; None takes the training rows in an order not yet seen.

    Raises:
        CheckpointError: another SAE is there, made under other settings (names the first that differs).
        NumericalError: a loss or gradient is not finite; no weight was moved by it.
        KeyboardInterrupt: on Ctrl-C, after a checkpoint from which the same call goes on.
    """
    plan = Plan.make(config, stream)
    if config.starts_over:
        shutil.rmtree(folder, ignore_errors=True)
    require_same_settings(folder, plan.settings(provenance))
    if (report := load_report(folder)) is not None:
        load_sae(folder)  # a damaged SAE is not a finished one
        progress.say(f"{folder} is trained already")
        return report
    with files.locked(folder / CHECKPOINTS):
        files.publish_json(folder / CONFIG, plan.settings(provenance))
        state, rate = _train(stream, plan, folder / CHECKPOINTS, progress, log)
        save_sae(folder, state.sae.folded(state.scale), provenance)
        report = _measure(held_out or stream, plan, folder, state, progress)
        save_report(folder, report)
        shutil.rmtree(folder / CHECKPOINTS)
    return replace(report, tokens_per_second=rate)


# ---- step ---------------------------------------------------------------------------------------


def train_step(state: TrainState, batch: Float[Tensor, "batch d_in"], plan: Plan) -> Float[Tensor, "figures"]:
    """Move the weights once; returns ``record.FIGURES`` still on the device, so that nothing waits for it.

    If loss or gradient is not finite, no weight and no moment moves; the caller sees it in the figures.
    """
    config, sae = plan.config, state.sae
    x = batch.to(plan.device, torch.float32, non_blocking=True) * state.scale
    x_hat, acts = sae.reconstruct(x)
    loss = unexplained = fvu(x, x_hat)
    # Before dead_after tokens have gone by nothing can be dead, so the device need not be asked.
    if config.auxk_alpha > 0 and state.tokens >= config.dead_after:
        dead = torch.nonzero(state.tokens_since_fired >= config.dead_after).squeeze(1)
        if len(dead):
            loss = loss + config.auxk_alpha * auxk_loss(sae, x, x_hat, dead)
    loss.backward()
    norm = _update(state, loss.detach(), plan)
    fired = acts.values > 0
    _count_fires(state, acts.indices, fired, len(x))
    dead_share = (state.tokens_since_fired >= config.dead_after).float().mean()
    return torch.stack([loss.detach(), unexplained.detach(), fired.sum() / len(x), dead_share, norm])


def _update(state: TrainState, loss: Float[Tensor, ""], plan: Plan) -> Float[Tensor, ""]:
    """Adam on unit-norm rows, unless a number is not finite; returns the gradient's norm before clipping."""
    remove_parallel_gradient_(state.sae)
    weights = list(named_weights(state.sae).values())
    if plan.config.max_grad_norm is None:
        norm = get_total_norm([weight.grad for weight in weights if weight.grad is not None])
    else:
        norm = clip_grad_norm_(weights, plan.config.max_grad_norm)
    for group in state.optimizer.param_groups:
        group["lr"] = plan.lr_at(state.step)
    # Fused Adam skips its update on the device where this is 1, as it does for torch's gradient scaler.
    state.optimizer.found_inf = (~torch.isfinite(loss + norm)).float()  # pyright: ignore[reportAttributeAccessIssue]
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    normalise_rows_(state.sae)
    return norm


def _count_fires(state: TrainState, indices: Tensor, fired: Tensor, tokens: int) -> None:
    """Put the counters of latents that fired back to zero; those that did not fire write to a spare last place."""
    d_sae = state.sae.d_sae
    touched = torch.zeros(d_sae + 1, dtype=torch.bool, device=indices.device)
    touched[torch.where(fired, indices, d_sae).reshape(-1)] = True
    state.tokens_since_fired.add_(tokens).masked_fill_(touched[:-1], 0)
    state.step += 1
    state.tokens += tokens


# ---- loop ---------------------------------------------------------------------------------------


def _train(
    stream: ActivationStream, plan: Plan, checkpoints: Path, progress: Progress, log: Path | None
) -> tuple[TrainState, float | None]:
    """The state after the last step, and tokens per second if any step was left to do."""
    state = _begin(stream, plan, checkpoints, progress)
    first, started = state.tokens, time.perf_counter()
    with ExitStack() as stack:
        pending = stack.enter_context(held_signals())
        task = stack.enter_context(progress.task("train", plan.steps, "step"))
        task.advance(state.step)
        clipped = plan.config.max_grad_norm is not None
        record = Record(task, _open_log(log, stack), clipped=clipped, tokens=state.tokens)
        batches = stack.enter_context(_reading(stream, state.step))
        while state.step < plan.steps and pending.signum is None:
            figures = train_step(state, next(batches), plan)
            record.add(figures, step=state.step, tokens=state.tokens, lr=plan.lr_at(state.step - 1))
            # The last one is there in case the run is stopped while it is being measured.
            if state.step % plan.config.checkpoint_every == 0 or state.step == plan.steps or pending.signum is not None:
                record.flush()  # refuses numbers that are not finite, which must not be saved
                save_checkpoint(checkpoints, state)
        if pending.signum is not None:
            progress.say(f"stopped after step {state.step} of {plan.steps}; the same command goes on from there")
    if state.step < plan.steps:
        raise KeyboardInterrupt  # whatever the signal's own handler did, this SAE is not finished
    seconds = time.perf_counter() - started
    return state, (state.tokens - first) / seconds if state.tokens > first else None


def _begin(stream: ActivationStream, plan: Plan, checkpoints: Path, progress: Progress) -> TrainState:
    """The newest checkpoint, or the state before the first step."""
    config = plan.config
    product_dtype = torch.bfloat16 if config.sae_dtype == "bf16" else None
    seed = torch_seed(config.seed, "sae weights")
    sae = TopKSAE(plan.d_in, plan.d_sae, config.k, seed=seed, backend=config.backend, product_dtype=product_dtype)
    state = load_checkpoint(checkpoints, sae.to(plan.device), progress)
    if state is not None:
        progress.say(f"going on from step {state.step} of {plan.steps}")
        return state
    with _reading(stream, 0) as batches:
        sample = take_sample(batches, plan.d_in).to(plan.device)
    middle = centre(sample, config.b_dec_init)
    scale = input_scale(sample, middle)
    with torch.no_grad():
        sae.b_dec.copy_(middle * scale)
    return TrainState.start(sae, scale)


def _measure(stream: ActivationStream, plan: Plan, folder: Path, state: TrainState, progress: Progress) -> TrainReport:
    """The report of the SAE as it lies in ``folder``, over rows that come once each, in the epoch after the last."""
    sae, _ = load_sae(folder, device=plan.device)
    sae.backend = plan.config.backend
    window = measuring_window(stream.batches_per_epoch * stream.batch_size, plan.config.dead_after)
    epochs = -(-plan.steps // stream.batches_per_epoch)
    with _reading(stream, epochs * stream.batches_per_epoch) as batches:
        meter, dead_share = measure(sae, batches, window, progress)
    return TrainReport(steps=state.step, tokens=state.tokens, fvu=meter.fvu, l0=meter.l0, dead_share=dead_share)


@contextmanager
def _reading(stream: ActivationStream, start: int) -> Iterator[Iterator[Float[Tensor, "batch d_in"]]]:
    """Batches from ``start`` on; the thread that reads ahead ends with the block."""
    batches = stream.batches(start)
    try:
        yield batches
    finally:
        if isinstance(batches, Generator):
            batches.close()


def _open_log(log: Path | None, stack: ExitStack) -> TextIO | None:
    if log is None:
        return None
    log.parent.mkdir(parents=True, exist_ok=True)
    return stack.enter_context(log.open("a", encoding="utf-8"))
