"""Difference in means as a dictionary of one latent, so that every edit, gate and control of latents applies to it.

The direction is that between the mean activation of forget and of retain tokens (arXiv 2312.06681 adds such a one).
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sae_forge.data.shards import ShardReader
from sae_forge.errors import ConfigError, DataError, ShardError
from sae_forge.sae.direction import Direction

QUANTILE = 95.0
"""Percentile of the retain tokens' projections beyond which the gated form acts."""


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
