"""``none``: an edit is in force on every token."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sae_forge.interventions.gates.gate import GateKind

if TYPE_CHECKING:
    from torch import Tensor

    from sae_forge.interventions.protocol import State


@dataclass(frozen=True)
class Always:
    """Open on every token."""

    whole: ClassVar[bool] = False

    def decide(self, acts: "Tensor", real: "Tensor", state: "State | None") -> "tuple[Tensor, State]":
        """True at each token."""
        del acts, state
        return real.new_ones(real.shape), ()


ALWAYS = Always()
NONE = GateKind(
    name="none",
    words="on every token",
    parts=(Always,),
    make=lambda config, calibrate: ALWAYS,  # noqa: ARG005
)
