"""A source named in one string, to documents: texts, or conversations as somebody makes text of them.

A document that cannot be read is skipped, counted and named; a corpus with more than one in a thousand is refused.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sae_forge.data.texts.formats import TURN_KEYS, Choose, Kind, Malformed, is_turns, kind_of
from sae_forge.data.texts.records import Opened, open_source
from sae_forge.data.texts.sources import FEW
from sae_forge.errors import DataError

Turns = Sequence[Mapping[str, str]]
"""A conversation: ``role`` and ``content`` of each turn."""

ONE_IN = 1000
"""Of so many documents one may be unreadable."""
_FEW = 20
"""Documents of a corpus so small that each counts: none may be unreadable."""
_SLACK = 10
"""Unreadable documents that may come early, before it is known how many there are."""
_NAMED = 3
_CONVERSATIONS = ("messages", "conversations", "conversation")
_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant"}
"""What ShareGPT and others call those who speak, as templates do."""


@dataclass
class Tally:
    """What became of the documents of a corpus, so far."""

    read: int = 0
    conversations: int = 0
    nulls: int = 0
    skipped: int = 0
    """Documents that cannot be read."""
    control: int = 0
    """Control tokens that stand in the text: only under a tokenizer that cannot read their spelling as text."""
    named: list[str] = field(default_factory=list)
    """Where the first of those skipped stand, and why each was."""
    note: str | None = None
    """How the source was understood."""
    spoken: str = "as text with the speaker before each turn"
    """How conversations are written."""

    def skip(self, where: str, why: str) -> None:
        """Count a document that cannot be read.

        Raises:
            DataError: there are too many.
        """
        self.skipped += 1
        if len(self.named) < _NAMED:
            self.named.append(f"{where} {why}")
        if self.skipped > _SLACK + (self.read + self.skipped) // ONE_IN:
            self._refuse()

    def judge(self) -> None:
        """Whether what was skipped is little enough, now that all is read that will be.

        Raises:
            DataError: there is more than one in a thousand, or any at all of a handful.
        """
        documents = self.read + self.skipped
        if self.skipped > (0 if documents < _FEW else max(1, documents // ONE_IN)):
            self._refuse()

    def _refuse(self) -> None:
        if self.skipped == 1:
            raise DataError(self.named[0])
        documents, more = self.read + self.skipped, "; …" if self.skipped > len(self.named) else ""
        raise DataError(
            f"{self.skipped} of the first {documents:,} documents cannot be read, more than one in {ONE_IN}: "
            f"{'; '.join(self.named)}{more}"
        )

    def lines(self, name: str) -> list[str]:
        """What is to be said of it, a sentence each."""
        more = "; …" if self.skipped > len(self.named) else ""
        said = {
            self.note or "": self.note,
            f"{name}: {self.conversations:,} conversations, {self.spoken}": self.conversations,
            f"{name}: {self.nulls:,} records hold null and no text": self.nulls,
            f"{name}: {self.skipped:,} of {self.read + self.skipped:,} documents skipped: "
            f"{'; '.join(self.named)}{more}": self.skipped,
            f"{name}: the tokenizer took {self.control:,} words of the text for control tokens": self.control,
        }
        return [line for line, there in said.items() if there]


def iter_texts(
    source: str,
    *,
    text_field: str | None = None,
    split: str = "train",
    limit: int | None = None,
    converse: Callable[[Turns], Any] | None = None,
    tally: Tally | None = None,
) -> Iterator[Any]:
    """The documents of a corpus in order, streamed; blank ones are left out.

    The first document is read before this returns, so a source that cannot work fails here and not later. A list of
    texts is a document each; a conversation (``messages``, ShareGPT's ``conversations``) is what ``converse`` makes of
    it; ``prompt`` and ``completion`` are one text.

    Args:
        source: Anything that :func:`~sae_forge.data.texts.records.open_source` takes.
        text_field: Column of the text where the source names none; unset, ``text``, a conversation, ``prompt`` and
            ``completion``, or else the only column of text.
        split: Split of a source of several that does not name its own.
        limit: Documents at most.
        converse: A conversation as a document; unset, a text with ``role: `` before each turn.
        tally: Counts what is read and what is skipped.

    Raises:
        DataError: missing, empty, without a text column (lists the columns), or with too many unreadable documents.
        RemoteError: the Hub could not be reached or refused.
    """
    opened, tally = open_source(source, split), Tally() if tally is None else tally
    tally.note = opened.note
    tally.spoken = tally.spoken if converse is None else "in the words of the model's chat template"
    part = opened.named.part
    in_words = part is not None and part.needs_total and opened.fewer_than(FEW)
    whole = replace(opened, named=replace(opened.named, part=None)) if in_words else opened
    documents = _documents(whole, opened.named.column or text_field, converse or _as_text, tally)
    if in_words and part is not None:
        documents = iter(part.texts(list(documents)))
    texts = itertools.islice(documents, limit)
    first = next(texts, None)
    if first is None:
        raise DataError(f"corpus {source} is empty: it holds no document with text; choose another")
    return itertools.chain([first], texts)


def _documents(opened: Opened, asked: str | None, converse: Callable[[Turns], Any], tally: Tally) -> Iterator[Any]:
    columns: Sequence[str] | None = None  # of the file at hand

    def chooser(where: str) -> Choose:
        nonlocal columns
        columns = None

        def choose(kinds: Mapping[str, Kind], *, typed: bool = True) -> Sequence[str]:
            nonlocal columns
            try:
                columns = _choose_columns(kinds, asked, typed=typed)
            except ValueError as error:
                raise DataError(f"{where}: {error}") from error
            return columns

        return choose

    for where, record in opened.records(chooser):
        try:
            if columns is None and isinstance(record, dict):
                chooser(where)({name: kind_of(value) for name, value in record.items()}, typed=False)
            documents = _documents_of(record, columns or ())
            tally.nulls += not documents
            for document in documents:
                if (told := _told(document, converse)) is not None:
                    tally.read += 1
                    tally.conversations += not isinstance(document, str)
                    yield told
        except ValueError as error:
            tally.skip(where, str(error))
    tally.judge()


def _documents_of(record: Any, columns: Sequence[str]) -> Sequence[str | Turns]:
    """The documents of one record; none, where its text is null.

    Raises:
        ValueError: says what is there instead of text.
    """
    if isinstance(record, dict):
        if len(columns) == 1 and isinstance(text := record.get(columns[0]), str):
            return (text,)
        if absent := [name for name in columns if name not in record]:
            raise ValueError(f"has no {absent[0]!r}; it has {', '.join(map(str, record)) or 'nothing'}")
        parts = [_texts_in(record[name], f"{name!r} holds ") for name in columns]
        if len(parts) == 1:
            return parts[0]
        if not all(parts):
            return []
        (prompt, *_), (completion, *_) = parts
        if isinstance(prompt, str) != isinstance(completion, str):
            raise ValueError("has a conversation and a text, not two of a kind")
        return [prompt + completion]  # pyright: ignore[reportOperatorIssue]
    if isinstance(record, Malformed):
        raise ValueError(record.why)
    return _texts_in(record, "is ")


def _texts_in(value: Any, holds: str) -> Sequence[str | Turns]:
    if isinstance(value, str):
        return [value]
    if value is None:
        return []
    if is_turns(value):
        return [[_turn(turn) for turn in value]]
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return value
    raise ValueError(f"{holds}{type(value).__name__}, neither text nor a list of texts nor a conversation")


def _turn(turn: Mapping[str, Any]) -> dict[str, str]:
    """Who speaks and what is said, whatever a record calls these."""
    speaker, said = next((turn[role], turn[content]) for role, content in TURN_KEYS if {role, content} <= turn.keys())
    if isinstance(said, list):  # parts, of which those of text count
        said = "".join(part["text"] for part in said if isinstance(part, dict) and isinstance(part.get("text"), str))
    if not isinstance(said, str) or not isinstance(speaker, str):
        raise ValueError(f"has a turn of {type(speaker).__name__} that says {type(said).__name__}, not text")
    return {"role": _ROLES.get(speaker.lower(), speaker), "content": said}


def _as_text(turns: Turns) -> str:
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)


def _told(document: str | Turns, converse: Callable[[Turns], Any]) -> Any | None:
    """A document as it is handed on; None, where there is nothing in it.

    Raises:
        ValueError: UTF-8 cannot hold it, or the template refuses it.
    """
    for text in [document] if isinstance(document, str) else [turn["content"] for turn in document]:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(why_not_text(error)) from error
    if isinstance(document, str):
        return document if document.strip() else None
    try:
        return converse(document)
    except DataError as error:
        raise ValueError(str(error)) from error


def why_not_text(error: UnicodeEncodeError) -> str:
    """What is wrong with a text that UTF-8 cannot hold: half a surrogate pair, or a byte that was no UTF-8."""
    code = ord(error.object[error.start])
    if 0xDC80 <= code <= 0xDCFF:
        return f"is not UTF-8 (byte 0x{code - 0xDC00:02X}); convert the file to UTF-8"
    return "holds half a surrogate pair, which is no text"


def _choose_columns(kinds: Mapping[str, Kind], asked: str | None, *, typed: bool) -> tuple[str, ...]:
    """The columns that hold a document: the one asked for, else ``text``, a conversation, prompt and completion, or
    the only one that holds any text.

    Raises:
        ValueError: there is no such column, or several could be meant; lists the columns.
    """
    listed = ", ".join(str(column)[:40] for column in itertools.islice(kinds, 20)) or "none"
    texts = [name for name, kind in kinds.items() if kind == "text"]
    readable = {name for name, kind in kinds.items() if kind != "other"}
    if not typed:  # what the first row looks like is no proof: null and numbers may be followed by text
        readable |= {name for name in kinds if name in ("text", "prompt", "completion", asked)}
    if asked is not None:
        if asked not in readable:
            why = "holds no text" if asked in kinds else "does not exist"
            raise ValueError(f"column {asked!r} {why}; its columns are {listed}; choose one with --text_field")
        return (asked,)
    if "text" in readable:
        return ("text",)
    if turns := [name for name in _CONVERSATIONS if kinds.get(name) == "turns"]:
        return (turns[0],)
    if {"prompt", "completion"} <= readable:
        return ("prompt", "completion")
    lists = [name for name, kind in kinds.items() if kind in ("list", "turns")]
    if len(texts) == 1 or (not texts and len(lists) == 1):
        return (*texts, *lists)[:1]
    count = "several columns" if texts or lists else "no column"
    raise ValueError(
        f"{count} of text and none named 'text'; its columns are {listed}; choose one with --text_field, or as "
        "FILE:COLUMN"
    )
