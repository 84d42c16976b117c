"""``report``: a run folder to one page."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from sae_forge.config.model import ModelConfig


@dataclass(frozen=True, kw_only=True)
class ReportConfig(ModelConfig):
    """A run folder to one page."""

    heading: ClassVar[str] = "SAE and selection"

    sae: Annotated[str | None, "SAE folder of a run. Unset: all of the run, or of the layers named."] = None
    include_contexts: Annotated[
        bool, "Put in text of the forget corpus and what the model wrote; the built-in world's always is."
    ] = False
    with_model: Annotated[
        bool, "Load the model too, for the tokens that latents promote and marks on edited tokens; built-in ones are."
    ] = False
