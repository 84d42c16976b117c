"""JumpReLU: a latent fires above a threshold of its own. BatchTopK and Matryoshka SAEs are saved as one."""

from sae_forge.sae.architectures.architecture import Architecture, Parts
from sae_forge.sae.jumprelu import JumpReLUSAE


def thresholded(parts: Parts, k: int) -> JumpReLUSAE:
    """The dictionary of latents that fire each by itself."""
    del k
    W_enc, b_enc, b_dec = parts.encoders.T, parts.b_enc.float(), parts.b_dec.float()
    return JumpReLUSAE(W_enc, b_enc, parts.W_dec, b_dec, parts.threshold.float())


JUMPRELU = Architecture(
    name="jumprelu",
    alone=True,
    tensors=("b_enc", "threshold"),
    plain=lambda found: (found["b_enc"], found["threshold"], None),
    built=thresholded,
)
