"""The forms in which people keep questions with options: where the options stand, and how the right one is named."""

import ast
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from sae_forge.data.texts.records import brief
from sae_forge.errors import DataError
from sae_forge.statistics.answers import LETTERS

FEWEST_OPTIONS = 2
ENOUGH = 20
"""Questions of which one would be expected to have the first option right, if that were 0."""
QUESTION = ("question", "question_stem")
OPTIONS = ("choices", "options")
ANSWER = ("answer", "answerKey", "answer_key", "answer_index", "answer_idx", "label", "correct_answer", "cop")
"""What records call these; the first of them that is there and not null counts."""
_OPTION_COLUMN = re.compile(r"(?:option|choice|ending|op|answer)?[ _-]?([a-z]|\d{1,2})", re.IGNORECASE)
_LETTER = re.compile(r"\(?([A-Za-z])[).:]?")
_NUMBER = re.compile(r"(\d{1,3})(?:\.0*)?")
_LITERAL = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", re.DOTALL)


@dataclass(frozen=True)
class Form:
    """A question as its record has it, the right option not yet looked up."""

    where: str
    question: str
    choices: tuple[str, ...]
    labels: tuple[str, ...]
    """What the record itself calls the options; letters, where it calls them nothing."""
    answer: Any

    @property
    def number(self) -> int | None:
        """The answer, where it can only be the number of an option."""
        number = _number_of(self.answer)
        named = isinstance(self.answer, str) and self.answer.strip() in (*self.labels, *self.choices)
        return None if named else number

    def index(self, first: int) -> int:
        """Which option is right, from 0.

        Args:
            first: The number of the first option, where a number names the right one.

        Raises:
            DataError: it names none, or could name two; shows what was found.
        """
        places = self._named(first)
        if len(places) == 1:
            return places.pop()
        if places:
            one, other = sorted(places)[:2]
            raise DataError(
                f"{self.where} has the answer {brief(self.answer)}, which names option {LETTERS[one]} one way and "
                f"{LETTERS[other]} another; write its letter or its whole text"
            )
        last = len(self.choices) - 1
        raise DataError(
            f"{self.where} needs 'answer' as {first} to {last + first} or A to {LETTERS[last]} or an option's text, "
            f"found {brief(self.answer)}"
        )

    def _named(self, first: int) -> set[int]:
        number = _number_of(self.answer)
        by_number = {number - first} if number is not None and 0 <= number - first < len(self.choices) else set()
        if not isinstance(self.answer, str):
            return by_number
        said = self.answer.strip()
        if self.labels.count(said) == 1:
            by_number = {self.labels.index(said)}
        elif (letter := _LETTER.fullmatch(said)) and letter[1].upper() in LETTERS[: len(self.choices)]:
            by_number = {LETTERS.index(letter[1].upper())}
        return by_number | {place for place, text in enumerate(self.choices) if text.strip() == said}


def form_of(record: Mapping[str, Any], where: str) -> Form:
    """A record's question, options and answer, in whatever form it keeps them.

    Options: a list, also in a string as tables have it; ``{"text": […], "label": […]}`` or a list of such (ARC);
    ``{"A": …, "B": …}``; or columns A, B, … (``option_a``, ``choice1``, …).

    Raises:
        DataError: one of the three is missing or no text; shows what was found.
    """
    asked = _first_of(record, QUESTION)
    if isinstance(asked, dict) and "stem" in asked:
        record, asked = {**record, **asked}, asked["stem"]
    question = checked_text(asked, "question", record, where)
    raw = _first_of(record, OPTIONS)
    labels, choices = _options(_columns(record) if raw is None else raw)
    flawed = not FEWEST_OPTIONS <= len(choices) <= len(LETTERS)
    if flawed or not all(isinstance(text, str) and text.strip() for text in choices):
        raise DataError(
            f"{where} needs 'choices' as a list of {FEWEST_OPTIONS} to {len(LETTERS)} texts, or as columns A, B, …; "
            f"found {brief(raw)} (it has: {_keys(record)})"
        )
    texts = tuple(checked_text(text, "choices", record, where) for text in choices)
    return Form(where, question, texts, tuple(labels) or tuple(LETTERS[: len(texts)]), _first_of(record, ANSWER))


def counted_from(forms: Sequence[Form]) -> int:
    """The number of the first option where numbers name the right one: 0, or 1 where nothing else is likely.

    That is where some answer is the number of its question's options and none is 0, in enough questions to tell that
    from a mistake: every number from 1 on is there, or there are :data:`ENOUGH`.
    """
    numbers = [(number, len(form.choices)) for form in forms if (number := form.number) is not None]
    given, most = {number for number, _ in numbers}, max((options for _, options in numbers), default=0)
    last = any(number == options for number, options in numbers) and 0 not in given
    return int(last and (len(numbers) >= ENOUGH or given >= set(range(1, most + 1))))


def checked_text(value: object, name: str, record: Mapping[str, Any], where: str) -> str:
    """A value that must be text with something in it that any tokenizer takes.

    Raises:
        DataError: shows what was found.
    """
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where} needs {name!r} as text, found {brief(value)} (it has: {_keys(record)})")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        from sae_forge.data.texts.corpus import why_not_text

        raise DataError(f"{where} needs {name!r} as text, and it {why_not_text(error)}: {brief(value)}") from error
    return value


def _keys(record: Mapping[str, Any]) -> str:
    return ", ".join(f"{key!s:.40}" for key in sorted(map(str, record))[:20]) or "nothing"


def _first_of(record: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((record[name] for name in names if record.get(name) is not None), None)


def _number_of(value: object) -> int | None:
    if isinstance(value, str):
        number = _NUMBER.fullmatch(value.strip())
        return int(number[1]) if number else None
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value or abs(value) > 999:
        return None
    return int(value) if value == int(value) else None


def _columns(record: Mapping[str, Any]) -> list[Any]:
    """The options in columns of their own, of letters from A on, else of numbers from 0 or 1; the last may be empty."""
    named = {called[1].lower(): it for key, it in record.items() if (called := _OPTION_COLUMN.fullmatch(str(key)))}
    for names in (list(LETTERS.lower()), [str(n) for n in range(26)], [str(n) for n in range(1, 27)]):
        options = [named[name] for name in takewhile(named.__contains__, names)]
        if any(name in named for name in names[len(options) :]):  # one is missing in between
            continue
        while options and options[-1] is None:
            options.pop()
        if len(options) >= FEWEST_OPTIONS:
            return options
    return []


def _options(raw: Any) -> tuple[Sequence[str], Sequence[Any]]:
    """What the options are called, if they are called anything, and their texts; of what is none, nothing."""
    if isinstance(raw, str):
        raw = _listed(raw)
    if isinstance(raw, dict) and isinstance(raw.get("text"), list):
        labels = raw.get("label")
        called = isinstance(labels, list) and len(labels) == len(raw["text"])
        return [str(label) for label in labels or []] if called else [], _texts(raw["text"])
    if isinstance(raw, dict):
        order = sorted(raw, key=str)
        called = [str(key).upper() for key in order] == list(LETTERS[: len(order)])
        return (list(LETTERS[: len(order)]), _texts([raw[key] for key in order])) if called else ([], [])
    if not isinstance(raw, list):
        return [], []
    if raw and all(isinstance(option, dict) and "text" in option for option in raw):
        labels = [str(option["label"]) for option in raw if option.get("label") is not None]
        return (labels if len(labels) == len(raw) else []), _texts([option["text"] for option in raw])
    return [], _texts(raw)


def _texts(options: Sequence[Any]) -> list[Any]:
    """The options, numbers among them as they are written."""
    return [str(one) if isinstance(one, int | float) and not isinstance(one, bool) else one for one in options]


def _listed(text: str) -> Any:
    """A list in a string: JSON, or as Python or NumPy print one, which is how tables keep it; else None."""
    text = text.strip()
    if not (text.startswith(("[", "{")) and text.endswith(("]", "}"))):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    if text.startswith("{") or _LITERAL.sub("", text).strip("[]").replace(",", "").strip():
        return None
    try:
        return [ast.literal_eval(literal) for literal in _LITERAL.findall(text)]
    except (ValueError, SyntaxError):
        return None
