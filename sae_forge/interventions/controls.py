"""The control that tells forgetting from mere damage: the same push on the same tokens, in directions without meaning.

It is gated by the real latents and has the real edit's L2 norm on every token; only the directions are others.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_forge.errors import ConfigError
from sae_forge.interventions.protocol import LatentEdit
from sae_forge.rng import generator

DirectionKind = Literal["isotropic", "latents"]


@dataclass(frozen=True)
class RandomDirections:
    """Do what ``edit`` does, with another direction in the place of each targeted latent's.

    The delta of a token is ``sum of c_j r_j``, where ``c_j`` is how far ``edit`` moves latent j and ``r_j`` is drawn
    once from ``seed``, scaled to the norm of the real delta.
    """

    edit: LatentEdit
    seed: int
    kind: DirectionKind = "isotropic"
    """``isotropic``: uniform on the sphere. ``latents``: decoder rows of other latents, none of them twice."""
    alive: tuple[int, ...] | None = None
    """Latents that ``latents`` may draw from; None: all of the SAE's."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(DirectionKind):
            raise ConfigError(f"kind={self.kind!r} is unknown; choose one of {', '.join(get_args(DirectionKind))}")

    def bind(self, W_dec: Float[Tensor, "d_sae d_in"], latents: Int[Tensor, " n"]) -> "MatchedDirections":
        """The control for these latents of this SAE, its directions drawn.

        Raises:
            ConfigError: too few other latents to draw from.
        """
        rows = W_dec[latents]
        return MatchedDirections(self.edit, rows, self._directions(W_dec, rows, latents))

    def _directions(self, W_dec: Tensor, rows: Tensor, latents: Tensor) -> Float[Tensor, "n d_in"]:
        random = generator(self.seed, f"{self.kind} control directions")
        if self.kind == "isotropic":
            drawn = torch.from_numpy(random.standard_normal(tuple(rows.shape))).to(rows)
            return drawn / drawn.norm(dim=-1, keepdim=True) * rows.norm(dim=-1, keepdim=True)
        targeted = set(latents.tolist())
        pool = [other for other in self.alive or range(len(W_dec)) if other not in targeted]
        if len(pool) < len(latents):
            raise ConfigError(
                f"the control needs {len(latents)} other latents and has {len(pool)} to draw from; target fewer"
            )
        chosen = random.permutation(pool)[: len(latents)]
        return W_dec[torch.from_numpy(chosen).to(W_dec.device)]


@dataclass(frozen=True, eq=False)
class MatchedDirections:
    """A ``ResidualEdit``: the real edit's coefficients on other directions, at the real edit's norm."""

    edit: LatentEdit
    rows: Float[Tensor, "n d_in"]
    directions: Float[Tensor, "n d_in"]

    def delta(
        self, x: Float[Tensor, "batch seq d_in"], acts: Float[Tensor, "batch seq n"]
    ) -> Float[Tensor, "batch seq d_in"]:
        del x  # the push depends on the latents alone
        change = self.edit.edit(acts) - acts
        real_norm = (change @ self.rows).norm(dim=-1, keepdim=True)
        drawn = change @ self.directions
        drawn_norm = drawn.norm(dim=-1, keepdim=True)
        return torch.where(drawn_norm > 0, drawn * (real_norm / drawn_norm), 0.0)
