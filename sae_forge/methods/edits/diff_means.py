"""Difference in means as a dictionary of one latent, so that every edit, gate and control of latents applies to it.

The direction is that between the mean activation of forget and of retain tokens (arXiv 2312.06681 adds such a one).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_forge.data.shards import ShardReader
from sae_forge.errors import ConfigError, DataError, ShardError
from sae_forge.sae.dictionary import LatentActs

QUANTILE = 95.0
"""Percentile of the retain tokens' projections beyond which the gated form acts."""


@dataclass(frozen=True, eq=False)
class Direction:
    """A ``Dictionary`` with one latent: the length of an activation along a unit direction.

    Silencing the latent takes exactly ``(x . v) v`` out of ``x``. Unlike those of an SAE its acts may be negative,
    which edits that ask whether a latent fires leave alone.
    """

    W_dec: Float[Tensor, "1 d_in"]
    threshold: float = -math.inf
    """A projection up to here is read as 0, so nothing is edited on that token."""

    @property
    def d_in(self) -> int:
        """Width of the activations it reads and writes."""
        return self.W_dec.shape[1]

    @property
    def d_sae(self) -> int:
        """One."""
        return 1

    @property
    def b_dec(self) -> Float[Tensor, " d_in"]:
        """Zero."""
        return torch.zeros_like(self.W_dec[0])

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> LatentActs:
        """The projection of each token."""
        values = self._projections(x)
        return LatentActs(values, torch.zeros_like(values, dtype=torch.int64))

    def decode(self, acts: LatentActs) -> Float[Tensor, "*batch d_in"]:
        """The part along the direction."""
        return acts.values @ self.W_dec

    def latent_acts(self, x: Float[Tensor, "*batch d_in"], latents: Int[Tensor, "n"]) -> Float[Tensor, "*batch n"]:
        """The projection of each token, for the one latent there is."""
        return self._projections(x)[..., latents]

    def gated(self, threshold: float) -> "Direction":
        """The same direction, read only where a token lies beyond ``threshold`` along it."""
        return replace(self, threshold=threshold)

    def to(self, device: torch.device | str) -> "Direction":
        """The same direction on another device."""
        return replace(self, W_dec=self.W_dec.to(device))

    def _projections(self, x: Tensor) -> Tensor:
        along = x.to(self.W_dec.dtype) @ self.W_dec.T
        return torch.where(along > self.threshold, along, 0.0)


@dataclass(frozen=True)
class RemoveShare:
    """Take ``strength`` times each act away, whatever its sign.

    At 1 nothing is left; above 1 the activation is pushed past the point where nothing is left.
    """

    strength: float = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.strength):
            raise ConfigError(f"strength={self.strength} is not a finite number; 1 removes all of it, 2 reflects it")

    def edit(self, acts: Float[Tensor, "batch seq n"]) -> Float[Tensor, "batch seq n"]:
        return torch.where(acts != 0, (1 - self.strength) * acts, acts)


def difference_in_means(forget: Sequence[ShardReader], retain: Sequence[ShardReader]) -> Direction:
    """From the mean of the retain tokens to that of the forget tokens, one row a token, in fp32 on the CPU.

    One pass over the shards; sums are in float64.

    Raises:
        ShardError: the shards are not all of one hook point of one model.
        DataError: a side has no token, or the two means are equal.
    """
    _require_one_site([*forget, *retain])
    difference = _mean(forget, "forget") - _mean(retain, "retain")
    length = difference.norm()
    if not length > 0:
        raise DataError("forget and retain activations have the same mean; they are the same text, or not collected")
    return Direction((difference / length).float()[None])


def retain_threshold(direction: Direction, retain: Sequence[ShardReader], *, percentile: float = QUANTILE) -> float:
    """The projection that ``percentile`` % of a corpus's tokens do not exceed; of several corpora the largest.

    Raises:
        ConfigError: the percentile is not in [0, 100].
        DataError: there is no corpus, or one without tokens.
    """
    if not 0 <= percentile <= 100:
        raise ConfigError(f"percentile={percentile} is not in 0..100; the usual one is {QUANTILE:g}")
    if not retain or not all(reader.rows for reader in retain):
        raise DataError("a threshold needs retain tokens; collect a retain corpus")
    return max(float(np.percentile(_projections(direction, reader), percentile)) for reader in retain)


def matching_strength(direction: Direction, readers: Sequence[ShardReader], *, mean_norm: float) -> float:
    """The strength of ``RemoveShare`` at which the edit moves a token by ``mean_norm`` on average.

    The average is over all tokens of the shards, those that the direction's threshold leaves alone among them, so a
    gated edit makes up for them on the others.

    Raises:
        DataError: no token lies beyond the direction's threshold.
    """
    along = np.concatenate([_projections(direction, reader) for reader in readers])
    moved = float(np.abs(np.where(along > direction.threshold, along, 0.0)).mean()) if len(along) else 0.0
    if not moved > 0:
        raise DataError(f"no token lies beyond {direction.threshold:g} along the direction; lower the threshold")
    return mean_norm / moved


def _projections(direction: Direction, reader: ShardReader) -> np.ndarray:
    along = direction.W_dec[0].double().cpu()
    blocks = reader.iter_acts(range(reader.block_count), reader.make_scratch())
    return torch.cat([acts.double() @ along for acts in blocks]).numpy()


def _mean(readers: Sequence[ShardReader], role: str) -> Float[Tensor, " d_in"]:
    rows = sum(reader.rows for reader in readers)
    if not rows:
        raise DataError(f"a difference in means needs {role} tokens; collect a {role} corpus")
    total = torch.zeros(readers[0].d_in, dtype=torch.float64)
    for reader in readers:
        for acts in reader.iter_acts(range(reader.block_count), reader.make_scratch()):
            total += acts.double().sum(0)
    return total / rows


def _require_one_site(readers: Sequence[ShardReader]) -> None:
    origins = [reader.fingerprint for reader in readers]
    sites = {(origin.model, origin.weights, origin.hook_point) for origin in origins}
    if len(sites) > 1:
        listed = ", ".join(sorted(f"{model} at {point}" for model, _, point in sites))
        raise ShardError(f"a difference in means needs activations of one site, got {listed}; collect them at one")
