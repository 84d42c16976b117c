"""Gated: one affine map says whether a latent fires, another that shares its direction how strongly (2404.16014).

With ``pre = exp(r_mag) (x @ W_enc) + b_mag`` the gate ``x @ W_enc + b_gate > 0`` is the same as
``pre > b_mag - exp(r_mag) b_gate``: a threshold of its own for each latent.
"""

from collections.abc import Mapping

from torch import Tensor

from sae_forge.sae.architectures.architecture import Architecture
from sae_forge.sae.architectures.jumprelu import thresholded


def _plain(found: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    strength = found["r_mag"].exp()
    return found["b_mag"], (found["b_mag"] - strength * found["b_gate"]).clamp_min(0), strength


GATED = Architecture(name="gated", alone=True, tensors=("b_gate", "b_mag", "r_mag"), plain=_plain, built=thresholded)
