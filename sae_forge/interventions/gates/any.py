"""``any``: a token gate that one latent opens."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sae_forge.interventions.gates.gate import GateKind, require_finite

if TYPE_CHECKING:
    from torch import Tensor

    from sae_forge.interventions.protocol import State


@dataclass(frozen=True)
class AnyFires:
    """Open where at least one targeted latent has an act above ``theta``."""

    theta: float = 0.0
    whole: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_finite("theta", self.theta)

    def decide(self, acts: "Tensor", real: "Tensor", state: "State | None") -> "tuple[Tensor, State]":
        """Acts of each token alone decide."""
        del real, state
        return (acts > self.theta).any(dim=-1), ()


ANY_FIRES = AnyFires()
ANY = GateKind(
    name="any",
    words="on tokens where any targeted latent fires",
    parts=(AnyFires,),
    make=lambda config, calibrate: AnyFires(config.theta),  # noqa: ARG005
)
