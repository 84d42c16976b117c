"""Records as what can be asked: questions, prompts with a target, passages; and the half and the number of them.

Where records come from and how they are parsed is ``data.records``' business, for text and for these alike.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

from sae_forge import builtin
from sae_forge.config.questions import Half
from sae_forge.data.corpus import corpus_name
from sae_forge.data.records import open_sources
from sae_forge.errors import DataError
from sae_forge.statistics.answers import LETTERS
from sae_forge.store import files
from sae_forge.tasks.item import Role

Record = dict[str, Any]

SPLIT = "test"
"""Split of a ``datasets`` id that names none."""
FEWEST_OPTIONS = 2


@dataclass(frozen=True, kw_only=True)
class Question:
    """Two options or more, one right."""

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


@dataclass(frozen=True, kw_only=True)
class Domain:
    """The questions on one field of knowledge."""

    name: str
    role: Role
    questions: tuple[Question, ...] = ()


@runtime_checkable
class Named(Protocol):
    """What has an id, and a fact that it shares with its paraphrases."""

    @property
    def id(self) -> str: ...
    @property
    def fact(self) -> str: ...


Wanted = TypeVar("Wanted", bound=Named)
Read = Callable[[Record, str], Wanted]
"""From a record, and where it stands, to what can be asked."""


# ---- loading ------------------------------------------------------------------------------------


def domain_name(source: str) -> str:
    """What is asked about, from the name of its file (``wizards.jsonl``), folder or dataset."""
    path = builtin.locate(source) if builtin.is_builtin(source) else Path(source)
    return path.stem if path.is_file() else corpus_name(source)


def sources_by_domain(sources: Sequence[str]) -> dict[str, str]:
    """The sources by what each is about.

    Raises:
        DataError: two are called alike.
    """
    named: dict[str, str] = {}
    for source in sources:
        name = domain_name(source)
        if name in named:
            raise DataError(f"two files are called {name!r} (again: {source}); a domain is named after its file")
        named[name] = source
    return named


def iter_records(source: str) -> Iterator[tuple[str, Record]]:
    """Every record of a source with its place ("wizards.jsonl line 3"), for messages.

    Raises:
        DataError: the source is missing, holds no records, or what it holds are no objects.
    """
    empty = True
    for one in open_sources(source, SPLIT):
        for place, record in one.read(None):
            empty, where = False, f"{one.name} {place}"
            if not isinstance(record, dict):
                raise DataError(f"{where} is not a JSON object")
            yield where, record
    if empty:
        raise DataError(f"{source} holds no records")


def load(sources: Sequence[str], read: Read[Wanted]) -> tuple[Wanted, ...]:
    """The items of all these sources; one that stands there twice is taken once.

    Raises:
        DataError: a source is missing or malformed, or two different records have one id.
    """
    kept: dict[str, Wanted] = {}
    for source in sources:
        for where, record in iter_records(source):
            item = read(record, where)
            if kept.setdefault(item.id, item) != item:
                raise DataError(f"{where} has the id {item.id!r}, which another record has too")
    return tuple(kept.values())


def load_questions(source: str) -> tuple[Question, ...]:
    """The questions of one source."""
    return load([source], read_question)


def read_question(record: Record, where: str) -> Question:
    """A record ``{question, choices, answer}`` with optional ``subject``, ``fact`` and ``id``."""
    question = text_field(record, "question", where)
    choices = record.get("choices")
    most = len(LETTERS)
    if not isinstance(choices, list) or not FEWEST_OPTIONS <= len(choices) <= most or not all(map(_is_text, choices)):
        raise DataError(f"{where} needs 'choices' as a list of {FEWEST_OPTIONS} to {most} texts")
    subject = text_field(record, "subject", where) if record.get("subject") else None
    answer = _answer(record.get("answer"), LETTERS[: len(choices)], where)
    name, fact = record_names(record, where, [question, *choices, answer])
    return Question(id=name, fact=fact, question=question, choices=tuple(choices), answer=answer, subject=subject)


def read_prompt(record: Record, where: str, *, prompt: str = "prompt", target: str = "target") -> Prompt:
    """A prompt from a record whose fields have these names."""
    text, follows = text_field(record, prompt, where), text_field(record, target, where)
    name, fact = record_names(record, where, [text, follows])
    return Prompt(id=name, fact=fact, prompt=text, target=follows)


def read_passage(record: Record, where: str) -> Passage:
    """A record ``{text}`` with optional ``fact`` and ``id``."""
    text = text_field(record, "text", where)
    name, fact = record_names(record, where, [text])
    return Passage(id=name, fact=fact, text=text)


def text_field(record: Record, name: str, where: str) -> str:
    """A field that must be a string with something in it."""
    value = record.get(name)
    if not _is_text(value):
        have = ", ".join(sorted(map(str, record))) or "nothing"
        raise DataError(f"{where} needs {name!r} as text, found {json.dumps(value, default=str)[:40]} (it has: {have})")
    return str(value)


def _answer(value: object, letters: str, where: str) -> int:
    if isinstance(value, str) and len(value.strip()) == 1 and value.strip().upper() in letters:
        return letters.index(value.strip().upper())
    if type(value) is int and 0 <= value < len(letters):
        return value
    wanted = f"0 to {len(letters) - 1} or A to {letters[-1]}"
    raise DataError(f"{where} needs 'answer' as {wanted}, found {value!r:.40}")


def _is_text(value: object) -> bool:
    """Whether it is text with something in it that any tokenizer takes: JSON may hold half a surrogate pair."""
    return isinstance(value, str) and bool(value.strip()) and value.encode(errors="ignore").decode() == value


def record_names(record: Record, where: str, content: list[object]) -> tuple[str, str]:
    """Id and fact of a record: as given, else from the content, so that they are the same on every machine."""
    given = {name: record[name] for name in ("id", "fact") if record.get(name) is not None}
    for name, value in given.items():
        if not isinstance(value, str | int) or isinstance(value, bool) or not _is_text(str(value)):
            raise DataError(f"{where} needs {name!r} as text, found {value!r:.40}")
    name = str(given.get("id", files.digest(content)[:16]))
    return name, str(given.get("fact", name))


# ---- choosing -----------------------------------------------------------------------------------


def half_of(fact: str) -> Literal["dev", "test"]:
    """The half a fact belongs to, by its hash: on every machine, in every file, whatever else is asked."""
    return "test" if hashlib.blake2b(fact.encode(), digest_size=8).digest()[0] & 1 else "dev"


def choose(items: Sequence[Wanted], half: Half, limit: int | None, domain: str) -> tuple[Wanted, ...]:
    """The items of one half, at most ``limit``, in the file's order.

    A limit takes those whose ids hash lowest, so a larger limit adds to a smaller one.

    Raises:
        DataError: nothing is left.
    """
    kept = [item for item in items if half == "all" or half_of(item.fact) == half]
    if items and not kept:
        raise DataError(f"none of the {len(items)} items of {domain!r} falls in the {half} half; use --half all")
    if limit is not None:
        lowest = sorted(kept, key=lambda item: hashlib.blake2b(item.id.encode(), digest_size=8).digest())[:limit]
        chosen = {item.id for item in lowest}
        kept = [item for item in kept if item.id in chosen]
    return tuple(kept)
