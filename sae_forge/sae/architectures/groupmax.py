"""GroupMax: latents stand in k runs of d_sae / k, and the largest of each run fires. Source: sparsify."""

from sae_forge.sae.architectures.architecture import Architecture, Parts
from sae_forge.sae.groupmax import GroupMaxSAE


def _built(parts: Parts, k: int) -> GroupMaxSAE:
    return GroupMaxSAE(parts.encoders, parts.b_enc.float(), parts.W_dec, parts.b_dec.float(), k)


GROUPMAX = Architecture(name="groupmax", has_k=True, built=_built)
