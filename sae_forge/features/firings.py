"""Where chosen latents fire in collected text, token by token: what tools that explain latents are handed."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_forge.data.shards import ShardReader
from sae_forge.data.sinks import are_sinks
from sae_forge.features.stats import require_width
from sae_forge.sae.dictionary import Dictionary

FLOOR = 1e-5
"""An act up to here does not count, as in delphi."""


@dataclass(frozen=True)
class Fired:
    """Firings in a few corpora, whose sequences are numbered as rows one after the other."""

    tokens: Int[Tensor, "rows ctx_len"]
    """Places that hold no real token hold ``filler``."""
    locations: Int[Tensor, "firings 3"]
    """Row, position and latent of each, in this order."""
    acts: Float[Tensor, " firings"]


def firings(
    readers: Sequence[ShardReader],
    sae: Dictionary,
    latents: Sequence[int],
    *,
    filler: int,
    sink_norm: float | None = None,
) -> Fired:
    """Every firing of the latents in all of these corpora, but for those on sinks.

    Raises:
        ShardError: the activations are not as wide as the SAE reads.
    """
    width = max((reader.fingerprint.ctx_len for reader in readers), default=0)
    chosen, tokens, places, acts, first = torch.tensor(latents), [], [], [], 0
    for reader in readers:
        require_width(reader, sae, reader.fingerprint.corpus)
        rows = int(reader.read_origins(reader.block_count - 1)["seq_ids"][-1]) + 1 if reader.block_count else 0
        text = torch.full((rows, width), filler, dtype=torch.int64)
        for block in reader.iter_blocks():
            with torch.no_grad():
                inside = block.acts.to(sae.b_dec.device, sae.b_dec.dtype)
                found = sae.latent_acts(inside, chosen.to(inside.device)).float().cpu()
            seq_ids, positions = block.seq_ids.long(), block.positions.long()
            text[seq_ids, positions] = block.token_ids.long()
            found[are_sinks(block.acts, sink_norm)] = 0
            token, column = (found.abs() > FLOOR).nonzero(as_tuple=True)
            places.append(torch.stack((seq_ids[token] + first, positions[token], chosen[column]), dim=1))
            acts.append(found[token, column])
        tokens.append(text)
        first += rows
    none = torch.zeros(0, 3, dtype=torch.int64)
    return Fired(
        torch.cat(tokens) if tokens else torch.zeros(0, 0, dtype=torch.int64),
        torch.cat([none, *places]),
        torch.cat([torch.zeros(0), *acts]),
    )
