"""How likely a model finds what should follow a prompt, per token: the domain log-prob of INLP_PROJECT.

There a target was forced token by token, without BOS and over five prompts a domain; here it is one pass, with
BOS for the families trained with it, over as many prompts as there are, so that the shift has an interval.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from sae_forge.config.fields import Setting
from sae_forge.config.model import ModelConfig
from sae_forge.config.questions import Half
from sae_forge.progress import Progress
from sae_forge.results.measure import Measure
from sae_forge.tasks.item import ROLES, Item
from sae_forge.tasks.task import Asked, Done, Standing
from sae_forge.tasks.wrapped import PLAIN, Wording

if TYPE_CHECKING:
    from sae_forge.models.loading import LanguageModel

MEASURES = (
    Measure(
        name="logprob", words="log-prob of what should follow", unit="nats per token", better="up", digits=3,
        shown="in full",
        read=lambda item: (item.values["logprob"] / item.weights["tokens"], 1.0),
    ),
)  # fmt: skip
STANDING = Standing(kind="prompt")


@dataclass(frozen=True, kw_only=True)
class Settings(ModelConfig):
    """Prompt files by role."""

    heading: ClassVar[str] = "Completions"

    forget_prompts: Annotated[
        tuple[str, ...], "Files of {prompt, target} records on what is forgotten.", Setting(names_items=True)
    ] = ()
    neighbour_prompts: Annotated[
        tuple[str, ...], "Files of {prompt, target} records on what lies close to it.", Setting(names_items=True)
    ] = ()
    retain_prompts: Annotated[
        tuple[str, ...], "Files of {prompt, target} records on what is kept.", Setting(names_items=True)
    ] = ()


@dataclass(frozen=True, kw_only=True)
class Completions:
    """Prompts with a target; in a domain that has questions too, this log-prob stands instead of the options'."""

    name: str = "completions"
    title: str = "Completions"
    group: str | None = None
    measures: tuple[Measure, ...] = MEASURES
    settings: type | None = Settings
    tuned_on: bool = False
    writes: bool = False
    standing: Standing = STANDING
    wording: Wording = PLAIN

    def load(
        self, lm: "LanguageModel", config: Any, *, half: Half, limit: int | None, progress: Progress
    ) -> tuple[Asked, ...]:
        """The prompts of each file.

        Raises:
            DataError: a file is missing or malformed, or nothing of it is left.
        """
        from sae_forge.tasks.engines.continuations import encode
        from sae_forge.tasks.records import choose, load, read_prompt, sources_by_domain

        asked = []
        for role in ROLES:
            for name, source in sources_by_domain(getattr(config, f"{role}_prompts")).items():
                prompts = choose(load([source], read_prompt, progress), half, limit, name)
                texts = [self.wording.around(self.wording.said(item.prompt)) for item in prompts]
                encoded = encode(lm, [(text, (item.target,)) for text, item in zip(texts, prompts, strict=True)])
                asked.append(
                    Asked.of(
                        self,
                        prompts,
                        domain=name,
                        role=role,
                        kind=self.standing.kind,
                        truncated=sum(item.truncated for item in encoded),
                        content=encoded,
                    )
                )
        return tuple(asked)

    def ask(self, lm: "LanguageModel", asked: Asked, *, batch_size: int, done: Done | None) -> list[Item]:
        """For each prompt the summed log-prob of its target, over the target's tokens."""
        from sae_forge.tasks.engines.continuations import score

        scores = score(lm, asked.content, batch_size=batch_size, done=done)
        return [
            asked.answered(number, {"logprob": target.logprob}, {"tokens": target.tokens})
            for number, (target,) in enumerate(scores)
        ]
