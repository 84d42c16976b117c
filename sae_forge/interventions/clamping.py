"""Edits that write given acts: where a latent fires, everywhere, or the mean it has on other text.

A value is one number, or one for each written latent in their order.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sae_forge.errors import ConfigError
from sae_forge.interventions.protocol import LatentEdit
from sae_forge.interventions.values import Value, checked, spread


@dataclass(frozen=True)
class ClampFiring:
    """Pin a latent to ``value`` on the tokens where its act exceeds ``theta``, and only there.

    A latent at rest stays at rest. Farrell et al. (arXiv 2410.19278) clamp at ``theta`` 0 to a negative value;
    conditional clamping (arXiv 2503.11127) raises ``theta``.
    """

    value: Value
    """Act to write, in the SAE's units. Negative steers away from what the latent stands for."""
    theta: float = 0.0
    """Acts up to this one count as rest."""

    def __post_init__(self) -> None:
        checked("value", self.value)
        checked("theta", self.theta)

    def edit(self, acts: Float[Tensor, "batch seq n"]) -> Float[Tensor, "batch seq n"]:
        return torch.where(acts > self.theta, spread("value", self.value, acts), acts)


@dataclass(frozen=True)
class SetTo:
    """Every written latent takes ``value`` on every token the gate opens, whether it fires there or not.

    DSG (arXiv 2504.08192) writes a large negative number to all its latents; refusal clamping writes one latent.
    """

    value: Value
    """Act to write, in the SAE's units."""

    def __post_init__(self) -> None:
        checked("value", self.value)

    def edit(self, acts: Float[Tensor, "batch seq n"]) -> Float[Tensor, "batch seq n"]:
        return spread("value", self.value, acts).expand_as(acts)


@dataclass(frozen=True)
class MeanAblation:
    """Every written latent takes its mean over retain text, on every token the gate opens."""

    means: tuple[float, ...]
    """Mean act over all retain tokens, one for each written latent."""

    def __post_init__(self) -> None:
        checked("means", self.means)

    def edit(self, acts: Float[Tensor, "batch seq n"]) -> Float[Tensor, "batch seq n"]:
        return spread("means", self.means, acts).expand_as(acts)


@dataclass(frozen=True)
class Split:
    """One edit for the first written latents and another for the rest, in one pass and behind one gate."""

    count: int
    """How many latents ``first`` has."""
    first: LatentEdit
    second: LatentEdit

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ConfigError(f"count={self.count} leaves the first edit no latent; give 1 or more")

    def edit(self, acts: Float[Tensor, "batch seq n"]) -> Float[Tensor, "batch seq n"]:
        first, second = acts[..., : self.count], acts[..., self.count :]
        return torch.cat([self.first.edit(first), self.second.edit(second)], dim=-1)
