"""Which tokens named each latent: the transpose that turns a scatter into a sum each latent owns.

Sums taken in this order need no atomics, so a gradient is the same to the bit every time it is taken.
"""

from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor


class Transpose(NamedTuple):
    """The entries of a ``[tokens, k]`` table of indices, grouped by latent."""

    entries: Int[Tensor, "entries"]
    """Positions in the flattened table, by latent and within a latent in token order; ``entry // k`` is the token."""
    offsets: Int[Tensor, "d_sae_plus_1"]
    """Latent ``i`` owns ``entries[offsets[i] : offsets[i + 1]]``."""

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return len(self.offsets) - 1


def transpose(indices: Int[Tensor, "tokens k"], d_sae: int) -> Transpose:
    """The table read the other way round; a stable sort keeps the order the same on every run."""
    ordered, entries = torch.sort(indices.reshape(-1).to(torch.int32), stable=True)
    bounds = torch.arange(d_sae + 1, device=indices.device, dtype=torch.int32)
    return Transpose(entries, torch.searchsorted(ordered, bounds))
