"""In which orders the options of a question may stand, and which cannot be moved because they speak of others."""

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import permutations

from sae_forge.config.questions import Scoring
from sae_forge.statistics.answers import LETTERS
from sae_forge.tasks.records import Question

ALL_ORDERS_OF = 4
"""Options up to which every order is asked."""

_ALL = re.compile(r"\ball of the above\b", re.IGNORECASE)
_OF_OPTIONS = "only|alone|together|above|are|both|all|correct|incorrect|right|wrong|true|false|valid|of|these|the"


def reordered(question: Question, order: Sequence[int]) -> Question:
    """The question with its options in another order; its answer is where the right one went."""
    choices = tuple(question.choices[place] for place in order)
    return replace(question, choices=choices, answer=list(order).index(question.answer))


def tricky(question: Question) -> bool:
    """Whether an option says "(Both) A and B", and no more than that of them, or "All of the above"."""
    points = _points(LETTERS[: len(question.choices)])
    return any(points.fullmatch(option) or _ALL.search(option) for option in question.choices)


@cache
def _points(letters: str) -> re.Pattern[str]:
    """Two or more of these letters, as an option names others."""
    letter = rf"\(?[{letters}]\)?"
    several = rf"{letter}(?:\s*,\s*{letter})*\s*,?\s*(?:and\b|&)\s*{letter}(?!\w)"
    # "A and B only", but not "A and B chains of the protein": what follows must speak of options too
    return re.compile(rf"\W*(?i:both\s+)?{several}(?i:\s+(?:{_OF_OPTIONS}))*\W*")


@cache
def rotations(options: int) -> tuple[tuple[int, ...], ...]:
    """As many orders as options: in them every option stands behind every letter once."""
    places = tuple(range(options))
    return tuple((*places[turn:], *places[:turn]) for turn in places)


@cache
def orders_of(scoring: Scoring, options: int) -> tuple[tuple[int, ...], ...]:
    """The orders that are worth asking, the file's own first; each lists the options by their place in the file.

    One where options are not listed, all of up to four options (24), and the rotations of more (5 to 26).
    """
    if scoring == "cloze":
        return rotations(options)[:1]
    return tuple(permutations(range(options))) if options <= ALL_ORDERS_OF else rotations(options)
