"""``push``: SAE, selection and report to one commit on the Hub."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from sae_forge.config.model import ModelConfig
from sae_forge.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class PushConfig(ModelConfig):
    """SAE, selection and report to one commit on the Hub."""

    heading: ClassVar[str] = "Publishing"

    sae: Annotated[str | None, "SAE folder of a run. Unset: the newest of the run."] = None
    private: Annotated[bool, "Create the repository private."] = False
    branch: Annotated[str | None, "Branch to commit to. Unset: main."] = None
    create_pr: Annotated[bool, "Open a pull request instead of committing."] = False
    commit_message: Annotated[str | None, "Subject of the commit."] = None
    license: Annotated[str | None, "Licence named in the model card."] = None
    include_contexts: Annotated[bool, "Publish the corpus snippets of the selection too."] = False
    dry_run: Annotated[bool, "Show the files and the card; touch no network."] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.create_pr and self.branch not in (None, "main"):
            raise ConfigError(f"--create_pr opens against main, so --branch {self.branch} cannot be given with it")
