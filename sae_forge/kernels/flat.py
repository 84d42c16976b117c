"""Entries that are not k a token: flat lists in the order of their tokens, and as the rectangle of the widest token.

The CPU form takes flat lists as they are. The others were made for rectangles, so for them zeros are filled in, which
contribute nothing; what is owned by latents never meets those, because the table of entries names the real ones alone.
"""

from typing import NamedTuple

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from sae_forge.kernels.rows import Slopes
from sae_forge.kernels.transpose import Transpose


class Rectangle(NamedTuple):
    """Where flat entries stand among ``tokens × width`` ones."""

    place: Int[Tensor, " entries"]
    tokens: int
    width: int

    @classmethod
    def of(cls, token_of: Int[Tensor, " entries"], tokens: int) -> "Rectangle":
        """The narrowest one; finding it waits for the device."""
        counts = torch.bincount(token_of, minlength=tokens)
        width = max(1, int(counts.max()))
        first = counts.cumsum(0) - counts
        rank = torch.arange(len(token_of), device=token_of.device) - first[token_of]
        return cls(token_of * width + rank, tokens, width)

    def filled(self, flat: Shaped[Tensor, " entries"]) -> Shaped[Tensor, "tokens width"]:
        """The entries at their places, zeros elsewhere."""
        whole = flat.new_zeros(self.tokens * self.width)
        return whole.index_copy_(0, self.place, flat).view(self.tokens, self.width)

    def slopes(self, slopes: Slopes, table: Transpose) -> tuple[Slopes, Transpose]:
        """The same sums, said of the rectangle."""
        values, pre_acts, indices = (self.filled(each) for each in (slopes.values, slopes.pre_acts, slopes.indices))
        rectangular = Slopes(slopes.target, slopes.residual, values, pre_acts, indices)
        return rectangular, Transpose(self.place[table.entries].to(table.entries.dtype), table.offsets)
