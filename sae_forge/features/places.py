"""Where in a corpus each latent fires most, kept in bounded memory: 20 bytes a latent and place."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class TopPlaces:
    """The ``m`` strongest sequences of every latent, each at its strongest token, best first.

    One entry a sequence: five neighbouring tokens of one sentence would show a reader one context, not five.
    """

    acts: Float[Tensor, "d_sae m"]
    """0 where a latent fired in fewer than ``m`` sequences."""
    places: Int[Tensor, "d_sae m"]
    """``block * BLOCK_ROWS + row`` in the corpus's shards, -1 where there is none."""
    seq_ids: Int[Tensor, "d_sae m"]

    @classmethod
    def of(
        cls,
        latents: Int[Tensor, "n"],
        acts: Float[Tensor, "n"],
        places: Int[Tensor, "n"],
        seq_ids: Int[Tensor, "n"],
        *,
        d_sae: int,
        m: int,
    ) -> "TopPlaces":
        """The best of these firings; equal activations rank by place, so the order they come in is no matter."""
        table = cls(torch.zeros(d_sae, m), torch.full((d_sae, m), -1), torch.full((d_sae, m), -1))
        if m and len(latents):
            chosen, ranks = _best(latents.numpy(), acts.numpy(), places.numpy(), seq_ids.numpy(), m)
            at = (latents[chosen], torch.from_numpy(ranks))
            table.acts[at], table.places[at], table.seq_ids[at] = acts[chosen], places[chosen], seq_ids[chosen]
        return table

    @property
    def floor(self) -> Float[Tensor, "d_sae"]:
        """What a further activation must reach to be remembered."""
        return self.acts[:, -1] if self.acts.shape[1] else torch.full((len(self.acts),), torch.inf)

    def __add__(self, other: "TopPlaces") -> "TopPlaces":
        m = self.acts.shape[1]
        if not m:
            return self
        # Most latents keep what they have: only those that some newcomer could better are sorted again.
        moved = (other.places[:, 0] >= 0) & (other.acts[:, 0] >= self.floor)
        pair = [(table.acts[moved], table.places[moved], table.seq_ids[moved]) for table in (self, other)]
        acts, places, seq_ids = (torch.cat(columns, dim=1) for columns in zip(*pair, strict=True))
        real = places >= 0
        latents = torch.arange(len(places)).unsqueeze(1).expand_as(places)[real]
        merged = TopPlaces.of(latents, acts[real], places[real], seq_ids[real], d_sae=len(places), m=m)
        result = TopPlaces(self.acts.clone(), self.places.clone(), self.seq_ids.clone())
        result.acts[moved], result.places[moved], result.seq_ids[moved] = merged.acts, merged.places, merged.seq_ids
        return result


def _best(
    latents: np.ndarray, acts: np.ndarray, places: np.ndarray, seq_ids: np.ndarray, m: int
) -> tuple[np.ndarray, np.ndarray]:
    """Which firings are a latent's best of their sequence and among its ``m`` best sequences, and their ranks."""
    # lexsort goes by its last key first: by latent, by sequence, the strongest first, of equal acts the earliest
    order = np.lexsort((places, -acts, seq_ids, latents))
    same = (latents[order][1:] == latents[order][:-1]) & (seq_ids[order][1:] == seq_ids[order][:-1])
    heads = order[np.concatenate(([True], ~same))]
    heads = heads[np.lexsort((places[heads], -acts[heads], latents[heads]))]
    # the rank of a firing is its distance from where the run of its latent begins
    starts = np.flatnonzero(np.concatenate(([True], latents[heads][1:] != latents[heads][:-1])))
    ranks = np.arange(len(heads)) - np.repeat(starts, np.diff(np.append(starts, len(heads))))
    return heads[ranks < m], ranks[ranks < m]
