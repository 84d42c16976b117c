"""Prompts to continue: what a model writes, and whether it repeats itself."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from sae_forge.config.fields import Setting
from sae_forge.config.model import ModelConfig
from sae_forge.config.questions import Half
from sae_forge.progress import Progress
from sae_forge.results.measure import Measure
from sae_forge.tasks.item import Item
from sae_forge.tasks.task import Asked, Done, Standing
from sae_forge.tasks.wrapped import PLAIN, Wording

if TYPE_CHECKING:
    from sae_forge.models.loading import LanguageModel

MEASURES = (
    Measure(name="distinct_1", words="distinct words", better="up", shown="in full"),
    Measure(name="distinct_2", words="distinct word pairs", better="up", shown="in full"),
    Measure(name="distinct_3", words="distinct word triples", better="up", shown="in full"),
    Measure(name="stutter", words="stutters", better="down", yes_or_no=True, shown="in full"),
    Measure(name="degenerate", words="degenerate", better="down", yes_or_no=True, shown="in full"),
)


@dataclass(frozen=True, kw_only=True)
class Settings(ModelConfig):
    """Files of what is to be continued; how it is drawn is said with the edit."""

    heading: ClassVar[str] = "Generation"

    generation_prompts: Annotated[
        tuple[str, ...], "Files of {prompt} records to continue.", Setting(names_items=True)
    ] = ()


def _sampled_how(config: Any) -> dict[str, Any]:
    return {name: getattr(config, name) for name in ("max_new_tokens", "temperature", "top_p", "seed")}


STANDING = Standing(
    headings=("generation",), protocol=lambda config: {"generation": {**_sampled_how(config), "prompts": 0}}
)


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """Sampled continuations, drawn with the same numbers whatever is done to the model."""

    name: str = "prompts"
    title: str = "Generated text"
    group: str | None = "generation"
    measures: tuple[Measure, ...] = MEASURES
    settings: type | None = Settings
    tuned_on: bool = False
    writes: bool = True
    standing: Standing = STANDING
    wording: Wording = PLAIN

    def load(
        self, lm: "LanguageModel", config: Any, *, half: Half, limit: int | None, progress: Progress
    ) -> tuple[Asked, ...]:
        """The prompts of all files, in their order; ``limit`` counts per file, and halves do not matter.

        Raises:
            DataError: a file is missing or malformed.
        """
        from sae_forge.tasks.engines.generation import Sampling, shortened
        from sae_forge.tasks.records import iter_records, text_field

        texts: list[str] = []
        for source in config.generation_prompts:
            records = iter_records(source, "prompt", progress)
            texts += [text_field(record, "prompt", where) for where, record in records][:limit]
        sampling = Sampling(**_sampled_how(config))
        numbers = tuple(map(str, range(len(texts))))
        said = tuple(self.wording.around(self.wording.said(text)) for text in texts)
        asked = Asked(
            task=self,
            kind="generation",
            ids=numbers,
            facts=numbers,
            units=len(texts),
            shortened=shortened(lm, said, config.max_new_tokens),
            counted=str(self.group),
            protocol={str(self.group): {**vars(sampling), "prompts": len(texts)}},
            content=(said, sampling),
        )
        return (asked,) if texts else ()

    def ask(self, lm: "LanguageModel", asked: Asked, *, batch_size: int, done: Done | None) -> list[Item]:
        """What is written after each prompt, and the repetition in it."""
        from sae_forge.tasks.engines.generation import write

        texts, sampling = asked.content
        items = []
        for number, got in enumerate(write(lm, texts, sampling, batch_size=batch_size, done=done)):
            values = got.measures()
            values["degenerate"] = bool(values["degenerate"])  # of truth values a table makes a column of their own
            items.append(asked.answered(number, values, {"tokens": got.tokens}, text=got.text))
        return items
