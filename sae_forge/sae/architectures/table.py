"""The architectures that can be used; a new one is a file here and a line in ``_ENTRIES``."""

from sae_forge.sae.architectures.abstopk import ABSTOPK
from sae_forge.sae.architectures.architecture import Architecture
from sae_forge.sae.architectures.gated import GATED
from sae_forge.sae.architectures.groupmax import GROUPMAX
from sae_forge.sae.architectures.jumprelu import JUMPRELU
from sae_forge.sae.architectures.relu import RELU
from sae_forge.sae.architectures.topk import TOPK

_ENTRIES = (TOPK, JUMPRELU, RELU, GATED, ABSTOPK, GROUPMAX)

ARCHITECTURES: dict[str, Architecture] = {entry.name: entry for entry in _ENTRIES}
