"""Edits that push a token along latents' directions, or take out of it what lies along them."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sae_forge.interventions.protocol import AlongRows
from sae_forge.interventions.values import Value, checked, spread


@dataclass(frozen=True)
class AddConstant:
    """Add ``alpha`` times each written latent's decoder row on every token the gate opens."""

    alpha: Value
    """In the SAE's units of an act. Negative steers away."""

    def __post_init__(self) -> None:
        checked("alpha", self.alpha)

    def edit(self, acts: Float[Tensor, "batch seq n"]) -> Float[Tensor, "batch seq n"]:
        return acts + spread("alpha", self.alpha, acts)


@dataclass(frozen=True)
class RemoveProjection:
    """Take out of the activation ``strength`` times what lies along each written latent's direction.

    The latents are gone through in their order, each against what the ones before it left of ``x - b_dec``; so at
    1 nothing along the last is left, and overlapping directions are not removed twice (Farrell et al., 2410.19278).
    """

    strength: float = 1.0
    """1 removes the projection, 2 mirrors it."""

    def __post_init__(self) -> None:
        checked("strength", self.strength)

    def bind(self, rows: Float[Tensor, "n d_in"], b_dec: Float[Tensor, "d_in"]) -> AlongRows:
        return _Projection(rows, b_dec, self.strength, None)


@dataclass(frozen=True)
class SetProjection:
    """Give ``x - b_dec`` the component ``value`` along each written latent's direction, on every open token.

    This is what lm-eval's steering calls clamp: it asks no encoder, so it is no conditional clamping.
    """

    value: Value
    """Component to write, in units of the activation."""

    def __post_init__(self) -> None:
        checked("value", self.value)

    def bind(self, rows: Float[Tensor, "n d_in"], b_dec: Float[Tensor, "d_in"]) -> AlongRows:
        return _Projection(rows, b_dec, 1.0, self.value)


@dataclass(frozen=True, eq=False)
class _Projection:
    """An ``AlongRows``: components along unit rows, each of what is left by the ones before."""

    rows: Float[Tensor, "n d_in"]
    b_dec: Float[Tensor, "d_in"]
    strength: float
    value: Value | None
    """Component to put in the place of each removed one; None puts nothing there."""

    def delta(
        self, x: Float[Tensor, "batch seq d_in"], acts: Float[Tensor, "batch seq n"]
    ) -> Float[Tensor, "batch seq d_in"]:
        return self.coefficients(x, acts) @ self.rows

    def coefficients(
        self, x: Float[Tensor, "batch seq d_in"], acts: Float[Tensor, "batch seq n"]
    ) -> Float[Tensor, "batch seq n"]:
        del acts  # a projection asks no encoder
        lengths = self.rows.norm(dim=-1)
        # components lie along unit rows and what is returned multiplies the rows, hence the division by length below
        units = self.rows / torch.where(lengths > 0, lengths, 1.0)[:, None]
        rest, along = x - self.b_dec, []
        for unit in units:
            along.append(rest @ unit)
            rest = rest - along[-1][..., None] * unit
        removed = torch.stack(along, dim=-1)
        wanted = 0.0 if self.value is None else spread("value", self.value, removed)
        return torch.where(lengths > 0, (wanted - self.strength * removed) / lengths, 0.0)
