"""The log of a run: one JSON line a step, and the guard that refuses numbers that are not finite.

A step leaves its figures on the device. On a GPU they are fetched for many steps at once, because fetching waits.
"""

import json
import math
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple, TextIO

import torch
from jaxtyping import Float
from torch import Tensor

from sae_forge.data.windows import Stream
from sae_forge.errors import NumericalError, ResourceError
from sae_forge.progress import Task
from sae_forge.training.tracking import Tracker

FIGURES: tuple[str, ...] = ("loss", "fvu", "l0", "dead_share", "grad_norm")
"""What a step leaves behind, in this order: ``loss`` is FVU plus weighted AuxK; ``grad_norm`` is before clipping, and 0
where nothing is clipped, because then no gradient exists as a whole."""
GPU_FLUSH_STEPS = 20
_TELLING = 5
"""Steps whose mean can be told from that of others."""


def falling(log: Path | None, steps: int) -> float | None:
    """Share of the FVU by which a log's steps fell over the last tenth of ``steps``, against the tenth before it.

    None where no log has them, or they are too few to tell.
    """
    part = steps // 10
    if log is None or part < _TELLING or not log.exists():
        return None
    wanted = range(steps - 2 * part + 1, steps + 1)
    fvu_at: dict[int, float] = {}
    with log.open(encoding="utf-8") as lines:
        for line in lines:
            with suppress(ValueError, KeyError, TypeError):  # a line that was being written when the power went
                if (entry := json.loads(line))["step"] in wanted:
                    fvu_at[entry["step"]] = float(entry["fvu"])
    if len(fvu_at) < 2 * part:
        return None
    earlier, later = (sum(fvu_at[step] for step in some) / part for some in (wanted[:part], wanted[part:]))
    return 1 - later / earlier


class _Step(NamedTuple):
    step: int
    tokens: int
    lr: float
    figures: Float[Tensor, "figures"]


class Record:
    """Figures of steps, written as they are fetched.

    Args:
        task: Progress to advance, by steps.
        log: Where lines go, or None. A run that is resumed appends; of two lines for a step the later holds.
        clipped: Whether the gradient norm belongs in the log.
        tokens: Tokens seen before the first step recorded here.
        stream: Where the batches come from, to tell reading from computing.
        tracker: Where figures go beside the log.
    """

    def __init__(
        self, task: Task, log: TextIO | None, tracker: Tracker, *, clipped: bool, tokens: int, stream: Stream
    ) -> None:
        self._task, self._log, self._tracker, self._clipped, self._stream = task, log, tracker, clipped, stream
        self._flushed_bytes, self._flushed_wait = stream.bytes_read, stream.seconds_waited
        self._waiting: list[_Step] = []
        self._flushed_tokens, self._flushed_at = tokens, time.perf_counter()

    def resume(self) -> None:
        """Measure rates from now on: what came since the last step was no training."""
        self._flushed_at = time.perf_counter()
        self._flushed_bytes, self._flushed_wait = self._stream.bytes_read, self._stream.seconds_waited

    def add(self, figures: Float[Tensor, "figures"], *, step: int, tokens: int, lr: float) -> None:
        """Take the figures of the step that has just been done; ``step`` counts from 1, ``tokens`` from the start."""
        self._waiting.append(_Step(step, tokens, lr, figures))
        if figures.device.type == "cpu" or len(self._waiting) >= GPU_FLUSH_STEPS:
            self.flush()

    def flush(self) -> None:
        """Write what waits.

        Raises:
            NumericalError: names the first step whose loss or gradient was not finite.
        """
        if not self._waiting:
            return
        steps, self._waiting = self._waiting, []
        rows = torch.stack([done.figures for done in steps]).tolist()
        now = time.perf_counter()
        seconds = max(now - self._flushed_at, 1e-9)
        read, waited = self._stream.bytes_read, self._stream.seconds_waited
        rates = {
            "tokens_per_second": (steps[-1].tokens - self._flushed_tokens) / seconds,
            "read_gb_per_second": (read - self._flushed_bytes) / seconds / 1e9,
            "waited": min(1.0, (waited - self._flushed_wait) / seconds),
        }
        self._flushed_tokens, self._flushed_at = steps[-1].tokens, now
        self._flushed_bytes, self._flushed_wait = read, waited
        for done, row in zip(steps, rows, strict=True):
            figures = dict(zip(FIGURES, row, strict=True))
            _require_finite(done.step, figures)
            self._write(done, figures, rates)
        self._task.advance(
            len(steps),
            fvu=rows[-1][FIGURES.index("fvu")],
            rate=f"{rates['tokens_per_second']:,.0f} tokens/s",
            read=f"{rates['read_gb_per_second']:.2f} GB/s",
            waited=f"{rates['waited']:.0%}",
        )

    def _write(self, done: _Step, figures: dict[str, float], rates: dict[str, float]) -> None:
        shown = {name: value for name, value in figures.items() if self._clipped or name != "grad_norm"}
        line = {"step": done.step, "tokens": done.tokens, **shown, "lr": done.lr, **rates}
        self._tracker.add(done.step, line)
        if self._log is None:
            return
        try:
            self._log.write(json.dumps(line) + "\n")
        except OSError as error:
            raise ResourceError(f"{self._log.name} cannot be written: {error.strerror}; free some space") from error


def _require_finite(step: int, figures: dict[str, float]) -> None:
    if not math.isfinite(figures["loss"] + figures["grad_norm"]):
        raise NumericalError(
            f"step {step}: loss {figures['loss']}, gradient norm {figures['grad_norm']}; no weight was changed by it. "
            "Lower --lr, set --max_grad_norm, or look at the activations"
        )


def open_log(log: Path | None, stack: ExitStack) -> TextIO | None:
    """The log, to be added to line by line; closed with the stack.

    Raises:
        ResourceError: it cannot be written.
    """
    if log is None:
        return None
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        return stack.enter_context(log.open("a", encoding="utf-8", buffering=1))  # a full disk is met line by line
    except OSError as error:
        raise ResourceError(f"{log} cannot be written: {error.strerror}; free some space") from error
