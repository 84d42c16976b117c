"""TopK: the k largest pre-activations fire."""

from sae_forge.sae.architectures.architecture import Architecture, Parts
from sae_forge.sae.topk import TopKSAE


def _built(parts: Parts, k: int) -> TopKSAE:
    return TopKSAE.holding(parts.encoders, parts.b_enc.float(), parts.W_dec, parts.b_dec.float(), k)


TOPK = Architecture(name="topk", has_k=True, by_norm=True, takes_off_b_dec=True, built=_built)
