"""AbsTopK: the k pre-activations of the largest size fire, with their sign. Source: SAELens, arXiv 2510.00404.

A latent that can be negative becomes two that cannot: ``i`` as it is, and ``d_sae + i`` for its negative acts.
"""

import torch

from sae_forge.sae.architectures.architecture import Architecture, Parts
from sae_forge.sae.topk import TopKSAE


def _built(parts: Parts, k: int) -> TopKSAE:
    def both(rows: torch.Tensor) -> torch.Tensor:
        return torch.cat((rows, -rows))

    encoders, W_dec = both(parts.encoders), both(parts.W_dec)
    return TopKSAE.holding(encoders, both(parts.b_enc).float(), W_dec, parts.b_dec.float(), k)


ABSTOPK = Architecture(name="abstopk", has_k=True, by_norm=True, takes_off_b_dec=True, built=_built)
