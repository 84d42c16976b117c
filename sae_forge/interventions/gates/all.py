"""``all``: a token gate that all latents open together."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sae_forge.interventions.gates.gate import GateKind, require_finite

if TYPE_CHECKING:
    from torch import Tensor

    from sae_forge.interventions.protocol import State


@dataclass(frozen=True)
class AllFire:
    """Open where every targeted latent has an act above ``theta``."""

    theta: float = 0.0
    whole: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_finite("theta", self.theta)

    def decide(self, acts: "Tensor", real: "Tensor", state: "State | None") -> "tuple[Tensor, State]":
        """Acts of each token alone decide."""
        del real, state
        return (acts > self.theta).all(dim=-1), ()


ALL = GateKind(
    name="all",
    words="on tokens where every targeted latent fires",
    parts=(AllFire,),
    make=lambda config, calibrate: AllFire(config.theta),  # noqa: ARG005
)
