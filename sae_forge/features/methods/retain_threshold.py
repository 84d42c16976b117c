"""One flag of two methods: what the retain frequency of a latent must stay below."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from sae_forge.config.fields import Artefact, Setting
from sae_forge.config.model import ModelConfig

NAME = "retain_threshold"


@dataclass(frozen=True, kw_only=True)
class ThresholdSettings(ModelConfig):
    """The bound, which each method has a default of its own for: what decides a selection is what it amounts to."""

    heading: ClassVar[str] = "Selection of latents"
    decides: ClassVar[tuple[Artefact, ...]] = ("selection",)

    retain_threshold: Annotated[
        float | None,
        "frequency, conditional: retain frequency must stay below this. Unset: 0.01 and 1e-4.",
        Setting(decides=()),
    ] = None


def threshold(config: Any, default: float) -> float:
    """The bound that was given, or the method's own."""
    return default if config.retain_threshold is None else config.retain_threshold
