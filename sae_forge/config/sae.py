"""Which SAE, and which of its latents: what the verbs share that use an SAE."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from sae_forge.config.fields import Setting
from sae_forge.config.model import ModelConfig


@dataclass(frozen=True, kw_only=True)
class SaeConfig(ModelConfig):
    """Which SAE; it counts by its weights."""

    heading: ClassVar[str] = "SAE and selection"

    sae: Annotated[
        str | None,
        "SAE folder, params.npz, Hub owner/name:path, or several: a list, a glob, owner/name:path/*. Unset: newest.",
        Setting(decides=()),
    ] = None
    allow_pickle: Annotated[bool, "Read an SAE in a pickle (dictionary_learning's ae.pt), in a limited process."] = (
        False
    )


@dataclass(frozen=True, kw_only=True)
class SelectedConfig(SaeConfig):
    """Which SAE and which selection of its latents; that counts by its content."""

    selection: Annotated[
        Path | None, "Selection file. Unset: the newest that features made for this SAE.", Setting(decides=())
    ] = None
