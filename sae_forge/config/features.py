"""``features``: shards and an SAE to a ranked selection of latents."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from sae_forge.config.collect import CollectConfig
from sae_forge.config.fields import Artefact, Setting
from sae_forge.config.questions import QuestionsConfig
from sae_forge.config.sae import SaeConfig
from sae_forge.config.text import SinksConfig
from sae_forge.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig(CollectConfig, QuestionsConfig, SaeConfig, SinksConfig):
    """Shards and an SAE to a ranked selection of latents.

    ``study.settings`` adds the flags of every method there is, and the ``catalogue`` that they come from.
    """

    catalogue: ClassVar[Any]
    heading: ClassVar[str] = "Selection of latents"
    decides: ClassVar[tuple[Artefact, ...]] = ("selection",)

    method: Annotated[
        tuple[str, ...],
        "How latents are scored; of several, eval takes the first. all: every one that shards can decide.",
        Setting(decides=(), distinct=True, wanted="name each method once"),
    ] = ("inlp",)
    num_features: Annotated[
        tuple[int, ...],
        "Latents to select; of several (10,50,100) the largest.",
        Setting(decides=("report",), at_least=1, wanted="give at least 1 latent"),
    ] = (100,)
    latents: Annotated[
        tuple[int, ...] | None,
        "Take these latents instead of scoring.",
        Setting(decides=(), at_least=0, wanted="give indices of 0 or more"),
    ] = None
    keep_form: Annotated[
        bool,
        "Take latents too that mark the form of a text: quotes and dashes, spellings, line ends.",
    ] = False
    refusal: Annotated[
        str | None,
        "Text where the model refuses: the latent that fires on most of it is noted.",
        Setting(decides=(), names_items=True),
    ] = None
    refusal_latent: Annotated[
        int | None,
        "Note this refusal latent instead of finding one with --refusal.",
        Setting(at_least=0, wanted="give an index of 0 or more"),
    ] = None
    snippets: Annotated[
        int,
        "Top-activating snippets to show for each latent.",
        Setting(at_least=0, wanted="give 0 or more"),
    ] = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        from_preset = "refusal_latent" in self.spelled and "refusal" not in self.spelled
        if self.refusal is not None and self.refusal_latent is not None and not from_preset:
            raise ConfigError("--refusal finds the refusal latent and --refusal_latent names it; give one of them")

    @property
    def refusal_text(self) -> str | None:
        """The text that the refusal latent is to be found on; a latent that was named makes it needless."""
        return None if self.refusal_latent is not None else self.refusal
