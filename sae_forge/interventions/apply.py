"""Where an edit meets a live model: latents are read, changed, and written back as a difference.

``x + (edit(z) - z)[S] @ W_dec[S]`` equals decoding the edited latents and adding the SAE's error back, with one
virtue more: a token on which nothing changes stays identical to the bit, which two decodes in float32 do not give.
Nothing here outlives its ``with`` block, and nothing is global.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_forge.errors import CheckpointError, ConfigError
from sae_forge.hookpoint import HookPoint
from sae_forge.interventions.controls import RandomDirections
from sae_forge.interventions.protocol import LatentEdit, ResidualEdit
from sae_forge.models.hooks import splice
from sae_forge.models.loading import LanguageModel
from sae_forge.sae.topk import TopKSAE


@dataclass(frozen=True)
class Intervention:
    """Which latents are edited, and how."""

    name: str
    """The method's name in reports."""
    latents: tuple[int, ...]
    """Distinct latents; their order means nothing."""
    edit: LatentEdit | RandomDirections

    def __post_init__(self) -> None:
        if not self.latents or min(self.latents) < 0 or len(set(self.latents)) < len(self.latents):
            raise ConfigError(f"{self.name} needs distinct latents of 0 or more, at least one; got {self.latents[:8]}")


@dataclass
class EditLog:
    """How much of the text that went through was touched; grows while the edit is in force."""

    tokens: int = 0
    """Real tokens seen; under cached generation each is seen once."""
    edited: int = 0
    """Real tokens whose activation was changed."""

    @property
    def share(self) -> float:
        """Share of the real tokens that was edited, in [0, 1]."""
        return self.edited / self.tokens if self.tokens else 0.0


@contextmanager
def applied(lm: LanguageModel, sae: TopKSAE, point: HookPoint, intervention: Intervention) -> Iterator[EditLog]:
    """Inside the block, ``lm`` computes with ``intervention`` in force at ``point``; after it, as before.

    Raises:
        CheckpointError: the SAE is of another width than the model.
        ConfigError: the point lies beyond the model, or a latent beyond the SAE.
    """
    if sae.d_in != lm.d_model:
        raise CheckpointError(
            f"the SAE reads activations {sae.d_in} wide, but {lm.name} is {lm.d_model} wide; use one trained on it"
        )
    log, bound = EditLog(), _bind(sae, intervention)

    def rewrite(x: Tensor, real: Tensor) -> Tensor:
        difference = bound.delta(x, real)
        changed = (difference != 0).any(dim=-1)
        log.tokens += int(real.sum())
        log.edited += int(changed.sum())
        return _add(x, difference, changed)

    with splice(lm, point, rewrite):
        yield log


def edited(
    sae: TopKSAE,
    intervention: Intervention,
    x: Float[Tensor, "batch seq d_in"],
    real: Bool[Tensor, "batch seq"],
) -> Float[Tensor, "batch seq d_in"]:
    """``x`` under the intervention; tokens that are not real or do not change are identical to the bit."""
    difference = delta(sae, intervention, x, real)
    return _add(x, difference, (difference != 0).any(dim=-1))


def delta(
    sae: TopKSAE,
    intervention: Intervention,
    x: Float[Tensor, "batch seq d_in"],
    real: Bool[Tensor, "batch seq"],
) -> Float[Tensor, "batch seq d_in"]:
    """The difference the intervention makes to ``x``, in fp32 or better; exactly zero where it makes none.

    Raises:
        ConfigError: a latent lies beyond the SAE.
    """
    return _bind(sae, intervention).delta(x, real)


def _add(x: Tensor, difference: Tensor, changed: Tensor) -> Tensor:
    """Add where something changes; elsewhere even adding 0.0 would turn -0.0 into 0.0."""
    moved = (x.to(difference.dtype) + difference).to(x.dtype)
    return torch.where(changed[..., None], moved, x)


@dataclass(frozen=True, eq=False)
class _Bound:
    """An intervention tied to an SAE: what depends on neither text nor call is gathered once."""

    sae: TopKSAE
    latents: Tensor
    residual: ResidualEdit

    def delta(self, x: Tensor, real: Tensor) -> Tensor:
        weights = self.sae.W_dec
        inside = x.to(weights.device, torch.promote_types(x.dtype, weights.dtype))
        acts = self.sae.latent_acts(inside, self.latents)
        difference = self.residual.delta(inside, acts)
        return torch.where(real[..., None], difference.to(x.device), 0.0)


@dataclass(frozen=True, eq=False)
class _AlongRows:
    """A ``ResidualEdit``: a change of acts, carried along the latents' own decoder rows."""

    edit: LatentEdit
    rows: Float[Tensor, "n d_in"]

    def delta(
        self, x: Float[Tensor, "batch seq d_in"], acts: Float[Tensor, "batch seq n"]
    ) -> Float[Tensor, "batch seq d_in"]:
        del x  # a latent edit depends on the acts alone
        return (self.edit.edit(acts) - acts) @ self.rows


def _bind(sae: TopKSAE, intervention: Intervention) -> _Bound:
    if max(intervention.latents) >= sae.d_sae:
        raise ConfigError(f"latent {max(intervention.latents)} is beyond the SAE, whose latents are 0..{sae.d_sae - 1}")
    W_dec = sae.W_dec.detach()
    latents = torch.tensor(intervention.latents, device=W_dec.device)
    match intervention.edit:
        case RandomDirections() as control:
            return _Bound(sae, latents, control.bind(W_dec, latents))
        case edit:
            return _Bound(sae, latents, _AlongRows(edit, W_dec[latents]))
