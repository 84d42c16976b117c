"""Steps as fast as the device takes them: on a GPU a step is recorded once as a CUDA graph and then played.

A step is some thirty launches of a few microseconds each; played as one graph the device does not wait for Python.
"""

from functools import cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sae_forge.errors import BackendError
from sae_forge.kernels.dispatch import never_waits
from sae_forge.training.architectures.table import architecture_of
from sae_forge.training.plan import Plan
from sae_forge.training.state import TrainState
from sae_forge.training.step import count_step, make_room, rates_of, step

WARM_STEPS = 3
"""Steps of one shape taken one by one before they are recorded: kernels are compiled and workspaces made."""


@cache
def _pool() -> Any:
    """The memory all recordings share: they are played one at a time, and figures are copied at once."""
    return torch.cuda.graph_pool_handle()


class _Recording(NamedTuple):
    graph: torch.cuda.CUDAGraph
    batch: Tensor
    figures: Tensor


class Stepper:
    """Call it with a batch to move the weights once; returns ``record.FIGURES`` still on the device.

    A graph holds for one number of places for the dead and one batch shape; others are recorded when they occur.
    """

    def __init__(self, state: TrainState, plan: Plan) -> None:
        self._state, self._plan = state, plan
        self._rates = rates_of(state, plan)
        self._recordings: dict[tuple[int, ...], _Recording] = {}
        self._taken: dict[tuple[int, ...], int] = {}
        # no graph waits for another rank, and the definitions and some architectures ask the device for numbers
        self._records = (
            plan.config.cuda_graph
            and plan.device.type == "cuda"
            and plan.team.world == 1
            and never_waits(plan.config.backend)
            and not architecture_of(plan.config).waits
        )

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
        count_step(state, len(batch) * plan.replicas)
        return figures

    def _record(self, shape: tuple[int, ...], batch: Tensor) -> None:
        """Record a step; recording takes none.

        Raises:
            BackendError: the device cannot; after a recording that failed its memory is in no state to go on with.
        """
        graph, held = torch.cuda.CUDAGraph(), batch.clone()
        try:
            with torch.cuda.graph(graph, pool=_pool()):
                figures = step(self._state, held, self._plan, self._rates)
        except RuntimeError as error:
            raise BackendError(
                f"this step cannot be recorded as a CUDA graph ({str(error).splitlines()[0]}); "
                "the same command with --no_cuda_graph goes on from the last checkpoint"
            ) from error
        self._recordings[shape] = _Recording(graph, held, figures)
