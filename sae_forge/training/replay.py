"""Steps as fast as the device takes them: on a GPU a step is recorded once as a CUDA graph and then played.

A step is some thirty launches of a few microseconds each; played as one graph the device does not wait for Python.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sae_forge.progress import Progress
from sae_forge.training.plan import Plan
from sae_forge.training.state import TrainState
from sae_forge.training.step import count_step, make_room, rates_of, step

WARM_STEPS = 3
"""Steps of one shape taken one by one before they are recorded: kernels are compiled and workspaces made."""


class _Recording(NamedTuple):
    graph: torch.cuda.CUDAGraph
    batch: Tensor
    figures: Tensor


class Stepper:
    """Call it with a batch to move the weights once; returns ``record.FIGURES`` still on the device.

    A graph holds for one number of places for the dead and one batch shape; others are recorded when they occur.
    """

    def __init__(self, state: TrainState, plan: Plan, progress: Progress) -> None:
        self._state, self._plan, self._progress = state, plan, progress
        self._rates = rates_of(state, plan)
        self._recordings: dict[tuple[int, ...], _Recording] = {}
        self._taken: dict[tuple[int, ...], int] = {}
        self._records = plan.device.type == "cuda"

    def __call__(self, batch: Float[Tensor, "batch d_in"]) -> Float[Tensor, "figures"]:
        state, plan = self._state, self._plan
        make_room(state, plan)
        self._rates.set(state.step + 1, plan.lr_at(state.step))
        shape = (state.aux_places, *batch.shape)
        self._taken[shape] = self._taken.get(shape, 0) + 1
        if self._records and shape not in self._recordings and self._taken[shape] > WARM_STEPS:
            self._record(shape, batch)
        if recording := self._recordings.get(shape):
            recording.batch.copy_(batch)
            recording.graph.replay()
            figures = recording.figures.clone()
        else:
            figures = step(state, batch.to(plan.device), plan, self._rates)
        count_step(state, len(batch))
        return figures

    def _record(self, shape: tuple[int, ...], batch: Tensor) -> None:
        """Record a step; recording takes none. A device that cannot record goes on step by step, and that is said."""
        graph, held = torch.cuda.CUDAGraph(), batch.clone()
        try:
            with torch.cuda.graph(graph):
                figures = step(self._state, held, self._plan, self._rates)
        except RuntimeError as error:
            self._records = False
            self._progress.say(f"no CUDA graph here ({str(error).splitlines()[0]}); training goes on step by step")
            return
        self._recordings[shape] = _Recording(graph, held, figures)
