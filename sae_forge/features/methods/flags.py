"""Flags that several ways of selecting share, each declared by those that use it.

What every selection records hangs on two of these classes; where no method of a config declares them, their defaults
hold.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from sae_forge.config.fields import Artefact, Setting
from sae_forge.config.model import ModelConfig

Formula = Literal["corrected", "literal"]
Flags = TypeVar("Flags", bound=ModelConfig)
RETAIN_THRESHOLD = "retain_threshold"


@dataclass(frozen=True, kw_only=True)
class ScoreSettings(ModelConfig):
    """How INLP's statistics are formed, which latents of every method are shown with."""

    heading: ClassVar[str] = "Selection of latents"
    decides: ClassVar[tuple[Artefact, ...]] = ("selection",)

    formula: Annotated[Formula, "corrected: length-corrected, bounded. literal: as the paper's code."] = "corrected"
    ratio_smoothing: Annotated[
        float | None,
        "inlp: fires added to both sides of the ratio. Unset: one in 4,000 tokens of the shortest text, 1 to 16.",
        Setting(above=0, wanted="give more than 0 fires"),
    ] = None
    activation_eps: Annotated[
        float,
        "inlp literal: added to the retain mean in act_ratio.",
        Setting(above=0, wanted="give more than 0"),
    ] = 1e-4


@dataclass(frozen=True, kw_only=True)
class ClearSettings(ModelConfig):
    """When a latent fires clearly, for ``conditional`` and for the refusal latent."""

    heading: ClassVar[str] = "Selection of latents"
    decides: ClassVar[tuple[Artefact, ...]] = ("selection",)

    fire_threshold: Annotated[
        float,
        "conditional, --refusal: an act counts as firing above this.",
        Setting(at_least=0, finite=True, wanted="give a finite act of 0 or more"),
    ] = 0.0


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


@dataclass(frozen=True, kw_only=True)
class ClearThresholdSettings(ThresholdSettings, ClearSettings):
    """Both bounds of ``conditional``."""


def threshold(config: Any, default: float) -> float:
    """The retain threshold that was given, or the method's own."""
    return default if config.retain_threshold is None else config.retain_threshold


def part_of(config: Any, kind: type[Flags]) -> Flags:
    """The config as that part of it which holds these flags; their defaults, where it was composed without."""
    return config if isinstance(config, kind) else kind()
