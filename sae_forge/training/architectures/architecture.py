"""What an architecture says of itself. The rest of a step, the kernels and the loop ask for nothing else."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from sae_forge.config.train import TrainConfig
from sae_forge.sae.jumprelu import JumpReLUSAE
from sae_forge.sae.topk import TopKSAE
from sae_forge.training.code import Code
from sae_forge.training.plan import Plan
from sae_forge.training.state import TrainState


@runtime_checkable
class Encoder(Protocol):
    """The parts of a batch, ``[tokens, d_in]`` as they are stored, one code after the other; on every rank as many."""

    def __call__(
        self, state: TrainState, parts: Sequence[Tensor], plan: Plan, beside: Tensor | None = None
    ) -> Iterator[Code]:
        """Codes, with the pre-acts of the latents ``beside`` where those are to be had without another product."""
        ...


Finish = Callable[[TopKSAE, float, Mapping[str, Tensor]], TopKSAE | JumpReLUSAE]
"""The dictionary that is saved, which reads activations as they are stored: from the trained weights, which work on
activations times a factor, from that factor, and from what ``own`` came to."""


def _nothing() -> dict[str, Tensor]:
    return {}


@dataclass(frozen=True, kw_only=True)
class TrainedArchitecture:
    """One rule by which latents compete while they are trained."""

    name: str
    encode: Encoder
    finish: Finish
    own: Callable[[], dict[str, Tensor]] = _nothing
    """Tensors it keeps between steps, as they are before the first; they stand in every checkpoint by these names."""
    waits: bool = False
    """Whether a step asks a GPU for numbers, and so cannot be recorded as a CUDA graph."""
    refused: Callable[[TrainConfig], str] = lambda config: ""  # noqa: ARG005
    """Why it cannot be trained as asked, and what to do; an empty text where it can."""
