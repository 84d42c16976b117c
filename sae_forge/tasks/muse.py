"""What is asked for the measures of MUSE (arXiv 2407.06460): texts to recite, questions to answer, texts to recognise.

They are for the report alone and nothing is tuned on them, so they are not split into halves.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

from sae_forge.config.evaluate import EvalConfig
from sae_forge.errors import DataError
from sae_forge.models.loading import LanguageModel
from sae_forge.models.tokens import bos_ids, max_input
from sae_forge.tasks.items import Item, Passage, Prompt, choose, read_passage, read_prompt
from sae_forge.tasks.records import Record, iter_records, resolve

VERBMEM_TOKENS, KNOWMEM_TOKENS = 128, 32
"""Tokens written for each; VerbMem's references are cut to as many, BOS counted."""
STOPS = ("\n\n", "\nQuestion", "Question:")
"""Where an answer ends, because the next question begins."""
LOWEST_PERCENT = 40
"""Share of a text's tokens, the least likely ones, that PrivLeak looks at."""
SIDES = ("forget", "holdout")
"""The texts of PrivLeak: those to be forgotten, and those the model never saw."""


@dataclass(frozen=True, kw_only=True)
class Recall:
    """Prompts, and what stands in the text after each."""

    kind: Literal["verbmem", "knowmem"]
    role: Literal["forget", "retain"]
    prompts: tuple[Prompt, ...]
    """As the model is asked, each with the reference as it is compared."""
    max_new_tokens: int
    stops: tuple[str, ...] = ()
    shots: int = 0
    """Answered questions that stand before each."""
    truncated: int = 0
    """Prompts whose beginning does not fit into the model."""

    @property
    def name(self) -> str:
        """The measure's name in a report: ``knowmem_retain``."""
        return f"{self.kind}_{self.role}"


@dataclass(frozen=True, kw_only=True)
class Muse:
    """All that is asked for MUSE's measures; nothing, by default."""

    recalls: tuple[Recall, ...] = ()
    texts: dict[str, tuple[Passage, ...]] = field(default_factory=dict)
    """By side; both or none."""
    token_ids: dict[str, tuple[tuple[int, ...], ...]] = field(default_factory=dict)
    """Of the texts, BOS in front where the family wants it."""
    reference: float = EvalConfig.privleak_reference
    """AUC of a model that was retrained without the forget texts."""

    @property
    def units(self) -> int:
        """Continuations and texts that one measurement takes."""
        return sum(len(one.prompts) for one in self.recalls) + sum(map(len, self.texts.values()))

    @property
    def truncated(self) -> int:
        """Prompts whose beginning does not fit into the model."""
        return sum(one.truncated for one in self.recalls)

    def to_json(self) -> dict[str, Any]:
        """How much was asked and how, with the ids, by the measure's name in the report."""
        described: dict[str, Any] = {
            one.name: {
                "items": len(one.prompts),
                "max_new_tokens": one.max_new_tokens,
                "shots": one.shots,
                "ids": [prompt.id for prompt in one.prompts],
            }
            for one in self.recalls
        }
        if self.texts:
            described["privleak"] = {
                "items": {side: len(texts) for side, texts in self.texts.items()},
                "tokens": {side: sum(map(len, rows)) for side, rows in self.token_ids.items()},
                "lowest_percent": LOWEST_PERCENT,
                "reference": self.reference,
                "ids": {side: [text.id for text in texts] for side, texts in self.texts.items()},
            }
        return described


def load_muse(lm: LanguageModel, config: EvalConfig) -> Muse:
    """The items that the config names, at most ``config.limit`` for each measure and side.

    Raises:
        DataError: a file is missing or malformed, or the model is too short for what it is asked.
    """
    verbmem = _load("verbmem", config.verbmem, _read_verbmem, config.limit)
    recalls = [_verbmem(lm, verbmem)] if verbmem else []
    shots = config.knowmem_shots[:1], config.knowmem_shots[-1:]
    for role, before in zip(("forget", "retain"), shots, strict=True):
        asked = _load(f"knowmem_{role}", getattr(config, f"knowmem_{role}"), _read_answered, config.limit)
        if asked:
            recalls.append(_knowmem(role, asked, _load("knowmem_shots", before, _read_answered, None)))
    sides = {side: (f"privleak_{side}", getattr(config, f"privleak_{side}")) for side in SIDES}
    texts = {side: _load(*named, read_passage, config.limit) for side, named in sides.items() if named[1]}
    return Muse(
        recalls=tuple(replace(one, truncated=_too_long(lm, one)) for one in recalls),
        texts=texts,
        token_ids={side: tuple(_token_ids(lm, text, side) for text in found) for side, found in texts.items()},
        reference=config.privleak_reference,
    )


def _load(
    name: str, sources: Sequence[str], read: Callable[[Record, str], Item], limit: int | None
) -> tuple[Item, ...]:
    """The items of all these files; one that stands there twice is taken once."""
    kept: dict[str, Item] = {}
    for source in sources:
        for where, record in iter_records(resolve(source)):
            item = read(record, where)
            if kept.setdefault(item.id, item) != item:
                raise DataError(f"{where} has the id {item.id!r}, which another record of --{name} has too")
    return choose(tuple(kept.values()), "all", limit, name)


def _read_verbmem(record: Record, where: str) -> Prompt:
    """A record ``{prompt, gt}``, as MUSE publishes them, or ``{prompt, target}``."""
    return read_prompt(record, where, target="target" if "target" in record else "gt")


_read_answered = partial(read_prompt, prompt="question", target="answer")


def _verbmem(lm: LanguageModel, items: Sequence[Prompt]) -> Recall:
    if (longest := max_input(lm)) <= VERBMEM_TOKENS:
        raise DataError(f"--verbmem writes {VERBMEM_TOKENS} tokens, and the model takes {longest} with the prompt")
    cut = tuple(replace(item, target=_shortened(lm, item.target)) for item in items)
    return Recall(kind="verbmem", role="forget", prompts=cut, max_new_tokens=VERBMEM_TOKENS)


def _shortened(lm: LanguageModel, text: str) -> str:
    """The text of its first tokens, as many as are written, BOS counted."""
    ids = lm.tokenizer(text, add_special_tokens=False)["input_ids"]
    return str(lm.tokenizer.decode(ids[: VERBMEM_TOKENS - len(bos_ids(lm))], skip_special_tokens=True))


def _knowmem(role: Literal["forget", "retain"], items: Sequence[Prompt], shots: Sequence[Prompt]) -> Recall:
    """Each question after the same answered ones."""
    before = "".join(f"Question: {shot.prompt}\nAnswer: {shot.target}\n\n" for shot in shots)
    asked = tuple(replace(item, prompt=f"{before}Question: {item.prompt}\nAnswer: ") for item in items)
    return Recall(
        kind="knowmem", role=role, prompts=asked, max_new_tokens=KNOWMEM_TOKENS, stops=STOPS, shots=len(shots)
    )


def _too_long(lm: LanguageModel, asked: Recall) -> int:
    """How many prompts do not fit into the model beside what is written."""
    room = max_input(lm) - asked.max_new_tokens - len(bos_ids(lm))
    rows = lm.tokenizer([item.prompt for item in asked.prompts], add_special_tokens=False)["input_ids"]
    return sum(len(row) > room for row in rows)


def _token_ids(lm: LanguageModel, passage: Passage, side: str) -> tuple[int, ...]:
    """The whole text, or as much from its beginning as the model takes."""
    ids = [*bos_ids(lm), *lm.tokenizer(passage.text, add_special_tokens=False)["input_ids"]][: max_input(lm)]
    if len(ids) < 2:
        raise DataError(f"the text {passage.text!r:.40} of --privleak_{side} holds no token to predict")
    return tuple(ids)
