"""``generate``: one prompt with and without an edit."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from sae_forge.config.sampling import SamplingConfig


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(SamplingConfig):
    """One prompt continued with and without an edit."""

    sae: Annotated[str | None, "SAE folder, params.npz, or Hub owner/name:path. Unset: the newest here."] = None
    allow_pickle: Annotated[bool, "Read an SAE in a pickle (dictionary_learning's ae.pt), in a limited process."] = (
        False
    )
    selection: Annotated[Path | None, "Selection file. Unset: the newest that features made for this SAE."] = None
    compare: Annotated[bool, "Show the baseline beside the edit."] = True
    temperature: Annotated[float, "Sampling temperature; 0 is greedy."] = 0.0
