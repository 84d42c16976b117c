"""What a model is asked: questions, prompts with a target, prompts to continue, and the half of them reported on."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from sae_forge.config.evaluate import EvalConfig
from sae_forge.config.questions import Half
from sae_forge.errors import DataError
from sae_forge.statistics.answers import LETTERS
from sae_forge.store import files
from sae_forge.tasks.records import Record, iter_records, resolve, text_field

Role = Literal["forget", "neighbour", "retain"]
ROLES: tuple[Role, ...] = ("forget", "neighbour", "retain")


@dataclass(frozen=True, kw_only=True)
class Question:
    """Four options, one right."""

    id: str
    fact: str
    """What the question asks about; paraphrases share it, and intervals resample it."""
    question: str
    choices: tuple[str, ...]
    answer: int
    """Index of the right option, from 0."""
    subject: str | None = None


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """The start of a text and what should follow it."""

    id: str
    fact: str
    prompt: str
    target: str


@dataclass(frozen=True, kw_only=True)
class Passage:
    """A text to be read."""

    id: str
    fact: str
    text: str


Item = TypeVar("Item", Question, Prompt, Passage)


@dataclass(frozen=True, kw_only=True)
class Domain:
    """One field of knowledge and what is asked about it."""

    name: str
    role: Role
    questions: tuple[Question, ...] = ()
    prompts: tuple[Prompt, ...] = ()

    def to_json(self) -> dict[str, object]:
        """Its role and how much was asked, with the ids, so that another run can ask the very same."""
        facts = {item.fact for item in (*self.questions, *self.prompts)}
        return {
            "role": self.role,
            "items": len(self.questions) or len(self.prompts),
            "questions": len(self.questions),
            "prompts": len(self.prompts),
            "facts": len(facts),
            "ids": {
                "questions": [item.id for item in self.questions],
                "prompts": [item.id for item in self.prompts],
            },
        }


# ---- loading ------------------------------------------------------------------------------------


def load_domains(config: EvalConfig) -> tuple[Domain, ...]:
    """Every domain named in the config, forget first, with the items of the chosen half.

    A question file and a prompt file of the same stem make one domain.

    Raises:
        DataError: a file is missing or malformed, or one stem is used twice.
    """
    asked = {role: _by_domain(getattr(config, f"{role}_questions"), load_questions) for role in ROLES}
    begun = {role: _by_domain(getattr(config, f"{role}_prompts"), load_prompts) for role in ROLES}
    names: list[tuple[Role, str]]
    names = [(role, name) for role in ROLES for name in dict.fromkeys((*asked[role], *begun[role]))]
    if doubled := [name for name, times in Counter(name for _, name in names).items() if times > 1]:
        raise DataError(f"the domain {doubled[0]!r} (the file's name) has several roles; rename one of the files")
    return tuple(
        Domain(
            name=name,
            role=role,
            questions=choose(asked[role].get(name, ()), config.half, config.limit, name),
            prompts=choose(begun[role].get(name, ()), config.half, config.limit, name),
        )
        for role, name in names
    )


def _by_domain(sources: Iterable[str], load: Callable[[Path], tuple[Item, ...]]) -> dict[str, tuple[Item, ...]]:
    found: dict[str, tuple[Item, ...]] = {}
    for source in sources:
        path = resolve(source)
        if path.stem in found:
            raise DataError(f"two files are called {path.stem!r} (again: {source}); a domain is named after its file")
        found[path.stem] = load(path)
    return found


def load_questions(path: Path) -> tuple[Question, ...]:
    """Records ``{question, choices[4], answer}`` with optional ``subject``, ``fact`` and ``id``."""
    return _unique(path, [_question(record, where) for where, record in iter_records(path)])


def load_prompts(path: Path) -> tuple[Prompt, ...]:
    """Records ``{prompt, target}`` with optional ``fact`` and ``id``."""
    return _unique(path, [read_prompt(record, where) for where, record in iter_records(path)])


def load_generation(sources: Sequence[str], limit: int | None) -> tuple[str, ...]:
    """The prompts to continue, in the order of their files; ``limit`` counts per file."""
    texts: list[str] = []
    for source in sources:
        texts += [text_field(record, "prompt", where) for where, record in iter_records(resolve(source))][:limit]
    return tuple(texts)


def _question(record: Record, where: str) -> Question:
    question = text_field(record, "question", where)
    choices = record.get("choices")
    if not isinstance(choices, list) or len(choices) != len(LETTERS) or not all(_is_text(text) for text in choices):
        raise DataError(f"{where} needs 'choices' as a list of {len(LETTERS)} texts")
    subject = text_field(record, "subject", where) if record.get("subject") else None
    answer = _answer(record.get("answer"), where)
    name, fact = _names(record, where, [question, *choices, answer])
    return Question(id=name, fact=fact, question=question, choices=tuple(choices), answer=answer, subject=subject)


def read_prompt(record: Record, where: str, *, prompt: str = "prompt", target: str = "target") -> Prompt:
    """A prompt from a record whose fields have these names."""
    text, follows = text_field(record, prompt, where), text_field(record, target, where)
    name, fact = _names(record, where, [text, follows])
    return Prompt(id=name, fact=fact, prompt=text, target=follows)


def read_passage(record: Record, where: str) -> Passage:
    """A record ``{text}`` with optional ``fact`` and ``id``."""
    text = text_field(record, "text", where)
    name, fact = _names(record, where, [text])
    return Passage(id=name, fact=fact, text=text)


def _answer(value: object, where: str) -> int:
    if isinstance(value, str) and len(value.strip()) == 1 and value.strip().upper() in LETTERS:
        return LETTERS.index(value.strip().upper())
    if type(value) is int and 0 <= value < len(LETTERS):
        return value
    raise DataError(f"{where} needs 'answer' as 0 to 3 or A to D, found {value!r:.40}")


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _names(record: Record, where: str, content: list[object]) -> tuple[str, str]:
    """Id and fact of a record: as given, else from the content, so that they are the same on every machine."""
    given = {name: record[name] for name in ("id", "fact") if record.get(name) is not None}
    for name, value in given.items():
        if not isinstance(value, str | int) or isinstance(value, bool) or not str(value).strip():
            raise DataError(f"{where} needs {name!r} as text, found {value!r:.40}")
    name = str(given.get("id", files.digest(content)[:16]))
    return name, str(given.get("fact", name))


def _unique(path: Path, found: list[Item]) -> tuple[Item, ...]:
    """Refuse two different items of one id; an item that merely stands in the file twice is taken once."""
    kept: dict[str, Item] = {}
    for item in found:
        if kept.setdefault(item.id, item) != item:
            raise DataError(f"{path.name} gives the id {item.id!r} to two different records")
    return tuple(kept.values())


# ---- choosing -----------------------------------------------------------------------------------


def half_of(fact: str) -> Literal["dev", "test"]:
    """The half a fact belongs to, by its hash: on every machine, in every file, whatever else is asked."""
    return "test" if hashlib.blake2b(fact.encode(), digest_size=8).digest()[0] & 1 else "dev"


def choose(found: Sequence[Item], half: Half, limit: int | None, domain: str) -> tuple[Item, ...]:
    """The items of one half, at most ``limit``, in the file's order.

    A limit takes those whose ids hash lowest, so a larger limit adds to a smaller one.

    Raises:
        DataError: nothing is left.
    """
    kept = [item for item in found if half == "all" or half_of(item.fact) == half]
    if found and not kept:
        raise DataError(f"none of the {len(found)} items of {domain!r} falls in the {half} half; use --half all")
    if limit is not None:
        lowest = sorted(kept, key=lambda item: hashlib.blake2b(item.id.encode(), digest_size=8).digest())[:limit]
        chosen = {item.id for item in lowest}
        kept = [item for item in kept if item.id in chosen]
    return tuple(kept)
