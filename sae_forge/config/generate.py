"""``generate``: one prompt with and without an edit."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from sae_forge.config.fields import Setting
from sae_forge.config.sae import SelectedConfig
from sae_forge.config.sampling import SamplingConfig


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(SamplingConfig, SelectedConfig):
    """One prompt continued with and without an edit."""

    heading: ClassVar[str] = "Generation"

    compare: Annotated[bool, "Show the baseline beside the edit."] = True
    temperature: Annotated[
        float,
        "Sampling temperature; 0 is greedy.",
        Setting(at_least=0, finite=True, wanted="give 0 (greedy) or more"),
    ] = 0.0
