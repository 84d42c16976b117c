"""Quantising: whatever was done to the model, its weights are rounded to a few bits, as a smaller copy would be.

Rounding may bring back what small changes of weights had hidden (arXiv 2410.16454). The rounding is simulated: each
output row of every projection in the layers takes one of ``2^bits - 1`` evenly spaced values and is kept in the model's
own dtype. So it needs no package and runs on a CPU, and no memory is saved.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from sae_forge.config.fields import Setting
from sae_forge.config.model import ModelConfig
from sae_forge.methods.method import Wrapper, on_each
from sae_forge.progress import SILENT, Progress

if TYPE_CHECKING:
    from sae_forge.interventions.edit import Edit
    from sae_forge.methods.subjects import Subject
    from sae_forge.models.loading import LanguageModel


@dataclass(frozen=True, kw_only=True)
class QuantisedConfig(ModelConfig):
    """How coarsely weights are rounded."""

    heading: ClassVar[str] = "Retraining"

    quantise_bits: Annotated[
        int,
        "quantised: bits the weights of each method named beside it are rounded to.",
        Setting(at_least=2, at_most=8, wanted="give 2 to 8 bits"),
    ] = 4


@dataclass(frozen=True, eq=False)
class Quantised:
    """A subject with its weights rounded."""

    inner: "Subject"
    bits: int
    changes_weights: bool = True

    @property
    def edits(self) -> tuple["Edit", ...]:
        """Those of the subject."""
        return self.inner.edits

    def weights(self, lm: "LanguageModel", progress: Progress = SILENT) -> "LanguageModel":
        """The subject's weights, rounded."""
        return quantised(self.inner.weights(lm, progress), self.bits)


def quantised(lm: "LanguageModel", bits: int) -> "LanguageModel":
    """The model with the projections of its layers rounded to ``bits``; embeddings and norms are left, and ``lm`` too.

    A row ``w`` becomes ``s round(w / s)`` with ``s = max |w| / (2^(bits - 1) - 1)``.
    """
    import torch

    from sae_forge.methods.weights.training import own_copy
    from sae_forge.models.projections import projections

    rounded = [projection for layer in range(lm.n_layers) for projection in projections(lm, layer)]
    changed = own_copy(lm, f"{bits}bit", [projection.weight for projection in rounded])
    # symmetric around 0, so the lowest of the 2^bits codes stays unused
    levels = 2 ** (bits - 1) - 1
    with torch.no_grad():
        for projection in rounded:
            weight = changed.model.get_parameter(projection.weight)
            step = weight.float().abs().amax(projection.inputs, keepdim=True).clamp(min=1e-12) / levels
            weight.copy_((weight.float() / step).round() * step)
    return changed


METHOD = Wrapper(
    name="quantised",
    title=lambda settings: f"rounded to {settings['quantise_bits']} bits",
    from_flags=lambda materials: {"quantise_bits": materials.setting(QuantisedConfig).quantise_bits},
    wrap=lambda inner, settings, _: Quantised(inner, settings["quantise_bits"]),
    settings=QuantisedConfig,
    over=on_each,
)
