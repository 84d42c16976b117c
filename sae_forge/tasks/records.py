"""Records as what can be asked: questions, prompts with a target, passages; and the half and the number of them.

Where records come from and how they are parsed is ``data.texts.records``' business, for text and for these alike.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from sae_forge.config.questions import Half
from sae_forge.data.texts.formats import Malformed, suffix_of
from sae_forge.data.texts.records import brief, open_source
from sae_forge.data.texts.sources import corpus_name, local_path, told_apart
from sae_forge.errors import DataError
from sae_forge.progress import SILENT, Progress
from sae_forge.store import files
from sae_forge.tasks.item import Role
from sae_forge.tasks.question_forms import Form, checked_text, counted_from, form_of
from sae_forge.tasks.task import Named

Record = dict[str, Any]

SPLIT = "test"
"""Split of a ``datasets`` id that names none."""


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
    probe: bool = False
    """Whether it is there to find out if a model knows the fact, and is then left out of what is reported."""


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


Wanted = TypeVar("Wanted", bound=Named)
Read = Callable[[Record, str], Wanted]
"""From a record, and where it stands, to what can be asked."""


# ---- loading ------------------------------------------------------------------------------------


def domain_name(source: str) -> str:
    """What is asked about, from the name of its file (``wizards.jsonl``), folder or dataset."""
    path = local_path(source)
    return path.name[: len(path.name) - len(suffix_of(path))] if path.is_file() else corpus_name(source)


def sources_by_domain(sources: Sequence[str]) -> dict[str, str]:
    """The sources by what each is about; of two that are called alike the second has its folder's name before it.

    Raises:
        DataError: one is given twice.
    """
    return dict(zip(told_apart(sources, domain_name), sources, strict=True))


def iter_records(source: str, main: str, progress: Progress = SILENT) -> Iterator[tuple[str, Record]]:
    """Every record of a source with its place ("wizards.jsonl line 3"), for messages.

    Args:
        main: The field that a plain string is, and that the source's column stands for where it names one.

    Raises:
        DataError: the source is missing, holds no records, or what it holds are no objects.
    """
    opened, empty = open_source(source, SPLIT), True
    if opened.note:
        progress.say(opened.note)
    column = opened.named.column
    for where, record in opened.records():
        empty = False
        if isinstance(record, Malformed):
            raise DataError(f"{where} {record.why}")
        if isinstance(record, str):
            record = {main: record}
        if not isinstance(record, dict):
            raise DataError(f"{where} is not a JSON object but {brief(record)}")
        if column is not None and column not in record:
            raise DataError(f"{where} has no column {column!r}; it has {', '.join(map(str, record)) or 'none'}")
        yield where, record if column is None else {**record, main: record[column]}
    if empty:
        raise DataError(f"{source} holds no records")


def load(
    sources: Sequence[str], read: Read[Wanted], progress: Progress = SILENT, *, main: str = "prompt"
) -> tuple[Wanted, ...]:
    """The items of all these sources; one that stands there twice is taken once.

    Args:
        main: The field that a source's own column stands for.

    Raises:
        DataError: a source is missing or malformed, or two different records have one id.
    """
    records = (placed for source in sources for placed in iter_records(source, main, progress))
    return _distinct((where, read(record, where)) for where, record in records)


def load_questions(source: str, progress: Progress = SILENT) -> tuple[Question, ...]:
    """The questions of one source, in any of the forms of :mod:`~sae_forge.tasks.question_forms`.

    Raises:
        DataError: it is missing or malformed, or two different questions have one id.
    """
    records = list(iter_records(source, "question", progress))
    forms = [form_of(record, where) for where, record in records]
    if first := counted_from(forms):
        progress.say(f"{source}: answers count options from 1: one is the number of the last, and none is 0")
    return _distinct(
        (where, _question(form, record, where, first)) for form, (where, record) in zip(forms, records, strict=True)
    )


def _distinct(items: Iterable[tuple[str, Wanted]]) -> tuple[Wanted, ...]:
    kept: dict[str, Wanted] = {}
    for where, item in items:
        if kept.setdefault(item.id, item) != item:
            raise DataError(f"{where} has the id {item.id!r}, which another record has too")
    return tuple(kept.values())


def read_question(record: Record, where: str) -> Question:
    """One record as a question; numbers count its options from 0."""
    return _question(form_of(record, where), record, where, 0)


def _question(form: Form, record: Record, where: str, first: int) -> Question:
    """A form with optional ``subject``, ``fact``, ``id`` and ``probe`` of its record."""
    subject = text_field(record, "subject", where) if record.get("subject") else None
    answer = form.index(first)
    name, fact = record_names(record, where, [form.question, *form.choices, answer])
    probe = record.get("probe", False)
    if not isinstance(probe, bool):
        raise DataError(f"{where} needs 'probe' as true or false, found {brief(probe)}")
    return Question(
        id=name, fact=fact, question=form.question, choices=form.choices, answer=answer, subject=subject, probe=probe
    )


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
    return checked_text(record.get(name), name, record, where)


def record_names(record: Record, where: str, content: list[object]) -> tuple[str, str]:
    """Id and fact of a record: as given, else from the content, so that they are the same on every machine."""
    given = {name: record[name] for name in ("id", "fact") if record.get(name) is not None}
    for name, value in given.items():
        if not isinstance(value, str | int) or isinstance(value, bool):
            raise DataError(f"{where} needs {name!r} as text, found {value!r:.40}")
        checked_text(str(value), name, record, where)
    # by content and not by line: an id must survive a file that is sorted or cut
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
        # by hash: which items a limit takes hangs on no order of the file
        lowest = sorted(kept, key=lambda item: hashlib.blake2b(item.id.encode(), digest_size=8).digest())[:limit]
        chosen = {item.id for item in lowest}
        kept = [item for item in kept if item.id in chosen]
    return tuple(kept)
