"""``report``: a run folder to one page."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from sae_forge.config.model import ModelConfig


@dataclass(frozen=True, kw_only=True)
class ReportConfig(ModelConfig):
    """A run folder to one page."""

    heading: ClassVar[str] = "SAE and selection"

    sae: Annotated[str | None, "SAE folder of a run. Unset: the newest of the run."] = None
