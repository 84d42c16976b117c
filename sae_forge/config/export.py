"""``export``: what latents of a run fire on, for tools that explain them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from sae_forge.config.fields import Setting
from sae_forge.config.sae import SelectedConfig
from sae_forge.errors import ConfigError

Tool = Literal["delphi", "neuronpedia"]


@dataclass(frozen=True, kw_only=True)
class ExportConfig(SelectedConfig):
    """What latents of a run fire on, for tools that explain them."""

    heading: ClassVar[str] = "Export"

    to: Annotated[Tool, "delphi: its cache of latents. neuronpedia: its JSON, a record a latent, and links."] = "delphi"
    out: Annotated[Path | None, "Folder that is made. Unset: export/ in the run folder."] = None
    include_contexts: Annotated[bool, "Export text of the forget corpus too."] = False
    splits: Annotated[
        int, "delphi: files the latents are divided into.", Setting(at_least=1, wanted="give 1 or more")
    ] = 5
    neuronpedia_id: Annotated[
        str | None, "neuronpedia: model and source there, as gemma-2-2b/12-gemmascope-res-16k, for the links."
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.neuronpedia_id is not None and len(self.neuronpedia_id.split("/")) != 2:
            raise ConfigError(f"--neuronpedia_id {self.neuronpedia_id}: give MODEL/SOURCE as its addresses have them")
