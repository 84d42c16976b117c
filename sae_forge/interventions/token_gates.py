"""Token gates: open or shut by the acts of a token alone."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_forge.interventions.protocol import State
from sae_forge.interventions.values import checked


@dataclass(frozen=True)
class Always:
    """Open on every token."""

    def decide(
        self, acts: Float[Tensor, "batch seq n"], real: Bool[Tensor, "batch seq"], state: State | None
    ) -> tuple[Bool[Tensor, "batch seq"], State]:
        del acts, state
        return torch.ones_like(real), ()


@dataclass(frozen=True)
class AnyFires:
    """Open where at least one targeted latent has an act above ``theta``."""

    theta: float = 0.0

    def __post_init__(self) -> None:
        checked("theta", self.theta)

    def decide(
        self, acts: Float[Tensor, "batch seq n"], real: Bool[Tensor, "batch seq"], state: State | None
    ) -> tuple[Bool[Tensor, "batch seq"], State]:
        del real, state
        return (acts > self.theta).any(dim=-1), ()


@dataclass(frozen=True)
class AllFire:
    """Open where every targeted latent has an act above ``theta``."""

    theta: float = 0.0

    def __post_init__(self) -> None:
        checked("theta", self.theta)

    def decide(
        self, acts: Float[Tensor, "batch seq n"], real: Bool[Tensor, "batch seq"], state: State | None
    ) -> tuple[Bool[Tensor, "batch seq"], State]:
        del real, state
        return (acts > self.theta).all(dim=-1), ()


TokenGate = Always | AnyFires | AllFire
ALWAYS, ANY_FIRES = Always(), AnyFires()
