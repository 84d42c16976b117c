"""``generate`` and ``demo``: text written with and without edits."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from sae_forge.config.editing import TouchingConfig
from sae_forge.config.fields import Setting
from sae_forge.config.sae import SelectedConfig
from sae_forge.config.sampling import SamplingConfig


@dataclass(frozen=True, kw_only=True)
class WritingConfig(SamplingConfig, TouchingConfig, SelectedConfig):
    """Which edits text is written under, and how."""

    heading: ClassVar[str] = "Generation"

    methods: Annotated[
        tuple[str, ...],
        "Methods to write under, at the settings the newest report measured, else their own; all: every edit it has. "
        "Unset: --ablation_scale on --num_features.",
        Setting(heading="Edits"),
    ] = ()
    chat: Annotated[bool, "Put what is asked into the model's chat template, as a user's turn."] = False
    temperature: Annotated[
        float,
        "Sampling temperature; 0 is greedy.",
        Setting(at_least=0, finite=True, wanted="give 0 (greedy) or more"),
    ] = 0.0


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(WritingConfig):
    """Prompts continued with and without edits."""

    prompts: Annotated[tuple[str, ...], "Files of more prompts, as {prompt} records.", Setting(names_items=True)] = ()
    compare: Annotated[bool, "Show the baseline beside the edit."] = True


@dataclass(frozen=True, kw_only=True)
class DemoConfig(WritingConfig):
    """A conversation on a terminal, the edit switched and changed while it goes on."""
