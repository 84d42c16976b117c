"""ReLU ("standard"): a latent fires above 0."""

from sae_forge.sae.architectures.architecture import Architecture
from sae_forge.sae.architectures.jumprelu import thresholded

RELU = Architecture(name="standard", alone=True, built=thresholded)
