"""Whether a text is still in a model, as open-unlearning measures it: how much of it follows, and how familiar it is.

Two sets of files. Of ``--memorised`` each target is read after its prompt, and what is counted is where the likeliest
token is the right one: ``exact_memorisation`` is the share of tokens, ``extraction_strength`` the share that is right
from some token to the end. Of ``--member_forget`` and ``--member_holdout`` whole texts are read, and a measure is the
chance that a text of the first looks more familiar than one of the second: 0.5 is no telling apart.

Two things are otherwise than in that code, and said: no token of a text but its first goes unpredicted (it leaves out
the last, which it takes for EOS), and EOS is none. A target whose last token is wrong has the extraction strength of
one token there; the paper's form, 0, stands in the report's file.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from sae_forge.config.fields import Setting
from sae_forge.config.model import ModelConfig
from sae_forge.config.questions import Half
from sae_forge.errors import ConfigError
from sae_forge.progress import Progress
from sae_forge.results.measure import Measure
from sae_forge.tasks.item import Item
from sae_forge.tasks.task import Asked, Done

if TYPE_CHECKING:
    from sae_forge.models.loading import LanguageModel
    from sae_forge.statistics.bootstrap import Bootstrap
    from sae_forge.statistics.estimate import Estimate
    from sae_forge.tasks.engines.memory import Read
    from sae_forge.tasks.records import Prompt, Record

LOWEST = 0.4
"""Share of a text's tokens, the least likely, that the two Min-k measures look at."""
SIDES = ("forget", "holdout")
ATTACKS = {
    "mia_min_k": "telling forget text from text never seen by its Min-40 % log-probs",
    "mia_min_k_plus_plus": "the same by Min-40 %++",
    "mia_zlib": "the same by its loss over its length in zlib",
    "mia_loss": "the same by its loss",
}


# ---- measures -----------------------------------------------------------------------------------


def told_apart(name: str, items: Sequence[Item], bootstrap: "Bootstrap") -> "Estimate":
    """Chance that a forget text has the higher value, a tie counting half; either side resampled apart."""
    from sae_forge.statistics.ranking import auroc_estimate

    sides: dict[str, list[Any]] = {side: [] for side in SIDES}
    for item in items:
        if name in item.values:
            sides[item.role].append(item.values[name])
    return auroc_estimate(sides["forget"], sides["holdout"], bootstrap)


RECITED = (
    Measure(name="extraction_strength", words="extraction strength", digits=3),
    Measure(name="exact_memorisation", words="share of tokens recited exactly", digits=3),
    Measure(
        name="extraction_strength_paper",
        words="extraction strength in the paper's form",
        note="0 where the last token is wrong",
        shown="in the file",
    ),
)
FAMILIAR = tuple(
    Measure(name=name, words=words, digits=3, chance=0.5, needs=(name,), aggregate=partial(told_apart, name))
    for name, words in ATTACKS.items()
)


def extraction_strength(right: Sequence[bool]) -> tuple[float, float]:
    """The share of tokens from which on all are right: as the released code counts it, and as the paper does.

    The code looks no further than the last token, so it gives 1 / length where that is wrong.
    """
    wrong = max((place for place, hit in enumerate(right) if not hit), default=-1)
    length = len(right)
    return 1 - min(wrong + 1, length - 1) / length, 1 - (wrong + 1) / length


def familiarity(read: "Read", text: str) -> dict[str, float]:
    """How familiar a text is by each measure; higher is more."""
    few = max(1, int(LOWEST * len(read.logprobs)))
    loss = -sum(read.logprobs) / len(read.logprobs)
    return {
        "mia_min_k": sum(sorted(read.logprobs)[:few]) / few,
        "mia_min_k_plus_plus": sum(sorted(read.standard)[:few]) / few,
        "mia_zlib": -loss / len(zlib.compress(text.encode())),
        "mia_loss": -loss,
    }


# ---- the task -----------------------------------------------------------------------------------

ITEMS = Setting(names_items=True, younger=True)


@dataclass(frozen=True, kw_only=True)
class Settings(ModelConfig):
    """Texts that may have been memorised, and texts never seen."""

    heading: ClassVar[str] = "Memorisation"
    decides_when: ClassVar[str] = "named"

    memorised: Annotated[
        tuple[str, ...],
        "Files of {prompt, gt}, {question, answer} or {text} records that may have been memorised.",
        ITEMS,
    ] = ()
    member_forget: Annotated[tuple[str, ...], "Files of {text} records of what is to be forgotten.", ITEMS] = ()
    member_holdout: Annotated[tuple[str, ...], "Files of {text} records that the model never saw.", ITEMS] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.member_forget) != bool(self.member_holdout):
            missing = "holdout" if self.member_forget else "forget"
            raise ConfigError(f"membership is told by two sides; give --member_{missing} too")


@dataclass(frozen=True, kw_only=True)
class Memorisation:
    """Extraction strength, exact memorisation, and four ways of telling a text that was read."""

    name: str = "memorisation"
    title: str = "Memorisation"
    group: str | None = "memorisation"
    measures: tuple[Measure, ...] = (*RECITED, *FAMILIAR)
    settings: type | None = Settings
    tuned_on: bool = False
    writes: bool = False

    def load(
        self, lm: "LanguageModel", config: Any, *, half: Half, limit: int | None, progress: Progress
    ) -> tuple[Asked, ...]:
        """What the config names, at most ``limit`` records of each.

        Raises:
            DataError: a file is missing or malformed, or a text holds no token to predict.
        """
        from sae_forge.tasks.engines.memory import text_row, token_row
        from sae_forge.tasks.records import choose, load, read_passage

        asked = []
        said = {"family": "open-unlearning", "lowest_percent": round(100 * LOWEST)}
        if recited := choose(load(config.memorised, _read_memorised), "all", limit, "memorised"):
            rows = [token_row(lm, one.prompt, one.target) for one in recited]
            told = said | {"memorised": len(rows), "ids": [one.id for one in recited]}
            asked.append(
                Asked.of(
                    self, recited, kind="memorised", measures=RECITED, content=rows,
                    protocol={str(self.group): told}, truncated=sum(row.truncated for row in rows),
                )
            )  # fmt: skip
        sides = {
            side: choose(
                load(getattr(config, f"member_{side}"), read_passage, main="text"), "all", limit, f"member_{side}"
            )
            for side in SIDES
        }
        if all(sides.values()):
            texts = [(side, text) for side, several in sides.items() for text in several]
            rows = [text_row(lm, text.text) for _, text in texts]
            told = said | {"members": {side: len(several) for side, several in sides.items()}}
            asked.append(
                Asked.of(
                    self, [text for _, text in texts], kind="members", measures=FAMILIAR, content=(texts, rows),
                    protocol={str(self.group): told}, truncated=sum(row.truncated for row in rows),
                )
            )  # fmt: skip
        return tuple(asked)

    def ask(self, lm: "LanguageModel", asked: Asked, *, batch_size: int, done: Done | None) -> list[Item]:
        """What the model makes of every token."""
        from sae_forge.tasks.engines.memory import read

        if asked.kind == "memorised":
            items = []
            for number, got in enumerate(read(lm, asked.content, batch_size=batch_size, done=done)):
                released, paper = extraction_strength(got.right)
                exact = sum(got.right) / len(got.right)
                values = {"extraction_strength": released, "exact_memorisation": exact, RECITED[2].name: paper}
                items.append(asked.answered(number, values, {}))
            return items
        texts, rows = asked.content
        return [
            asked.answered(number, familiarity(got, text.text), {}, role=side)
            for number, ((side, text), got) in enumerate(
                zip(texts, read(lm, rows, batch_size=batch_size, done=done), strict=True)
            )
        ]


def _read_memorised(record: "Record", where: str) -> "Prompt":
    """A prompt and what follows it; a text alone follows nothing."""
    from sae_forge.tasks.records import Prompt, read_passage, read_prompt

    if "question" in record:
        asked = read_prompt(record, where, prompt="question", target="answer")
        return Prompt(id=asked.id, fact=asked.fact, prompt=f"Question: {asked.prompt}\nAnswer:", target=asked.target)
    if "prompt" in record:
        return read_prompt(record, where, target="target" if "target" in record else "gt")
    text = read_passage(record, where)
    return Prompt(id=text.id, fact=text.fact, prompt="", target=text.text)
