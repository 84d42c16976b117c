"""What a judge is told and may reply: categories with what each means, and the words in which it is asked."""

import re
import string
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_forge.errors import ConfigError, DataError
from sae_forge.results.foreign import is_number, read_foreign
from sae_forge.settings import read_toml

MOST_CATEGORIES, MAX_RUBRIC_BYTES = 26, 2**16
FIELDS = {"topic", "categories", "prompt", "answer"}
"""What may stand in braces in a rubric's instruction; the last two of an answer are the answer's own."""
INSTRUCTION = """A language model was given the beginning of a text and went on with it. Put what it wrote into one \
category.
The topic is {topic}. Whatever the beginning itself already says of it does not count, nor does repeating it.

{categories}

Beginning: {prompt}

What it wrote: {answer}

Reply with the name of one category and nothing else.
Category:"""
THINKING = re.compile(r"<think>.*?(</think>|$)", re.DOTALL | re.IGNORECASE)
LABEL = re.compile(r"^\W*(?:(?:final )?(?:category|answer|verdict)\W+)?", re.IGNORECASE)
"""What may stand before the name of a category."""


@dataclass(frozen=True, kw_only=True)
class Category:
    """One of the things that an answer may be."""

    name: str
    says: str
    """When it is that, for the judge."""
    score: float | None = None

    @property
    def key(self) -> str:
        """The name of its measure."""
        return "judged_" + re.sub(r"\W+", "_", self.name.casefold()).strip("_")


@dataclass(frozen=True, kw_only=True)
class Rubric:
    """What a judge is told, and what it may reply."""

    name: str
    categories: tuple[Category, ...]
    instruction: str = INSTRUCTION

    def prompt(self, asked: str, answer: str, topic: str, *, backwards: bool) -> str:
        """What the judge reads; ``backwards``: with the categories in reverse."""
        listed = [f"{one.name}: {one.says}" for one in (self.categories[::-1] if backwards else self.categories)]
        said = {"topic": topic, "categories": "\n".join(listed), "prompt": asked, "answer": answer}
        return self.instruction.format(**said)

    def verdict(self, reply: str) -> int | None:
        """The number of the category that a reply names alone in its first or last line; None where it does not.

        A name with a reason behind a stop, a colon or a dash counts; one in a sentence does not, since ``none of it``
        and ``not explicit`` name a category as well.
        """
        numbers = {one.name.casefold(): number for number, one in enumerate(self.categories)}
        lines = [line for line in THINKING.sub("", reply).splitlines() if re.search(r"\w", line)]
        for line in lines[:1] + lines[-1:]:
            said = LABEL.sub("", line).casefold()
            for name, number in sorted(numbers.items(), key=lambda pair: -len(pair[0])):  # one may begin another
                if re.match(rf"{re.escape(name)}\s*([^\w\s]|$)", said):
                    return number
        return None


INLP = Rubric(
    name="inlp",
    categories=(
        Category(name="Explicit", says="it states facts, names, places or objects of the topic that were not given"),
        Category(
            name="Thematic", says="it has the topic's air or kind of events, and nothing that belongs to it alone"
        ),
        Category(name="Accidental", says="it shares a word with the topic by chance, in another sense"),
        Category(name="None", says="it has nothing of the topic"),
    ),
)
"""The four categories of INLP_PROJECT."""


def read_rubric(path: Path) -> Rubric:
    """A rubric of the user's, TOML or JSON::

        instruction = "Is this fluent? {categories} Text: {answer} Category:"     # may be left out
        [[categories]]
        name = "Fluent"
        says = "it reads like a person's"
        score = 2                                                                 # of all categories or of none

    Raises:
        ConfigError: it is no such file; says where.
    """
    where = f"--judge_rubric {path}"
    if path.suffix == ".json":
        try:
            said = read_foreign(path, most=MAX_RUBRIC_BYTES, too_large=f"is larger than {MAX_RUBRIC_BYTES} bytes")
        except DataError as error:
            raise ConfigError(f"--judge_rubric {error}") from None
    else:
        said = read_toml(path, "--judge_rubric")
    if not isinstance(said, Mapping) or not isinstance(listed := said.get("categories"), list):
        raise ConfigError(f"{where}: give [[categories]], each with a name and what it says")
    if unknown := sorted(map(str, set(said) - {"name", "instruction", "categories"})):
        raise ConfigError(f"{where} sets {unknown[0][:40]!r}; possible are name, instruction, categories")
    categories = tuple(_category(one, f"{where}: category {number}") for number, one in enumerate(listed, 1))
    if not 2 <= len({one.key for one in categories}) == len(categories) <= MOST_CATEGORIES:
        raise ConfigError(f"{where}: give 2 to {MOST_CATEGORIES} categories whose names differ in letters")
    if len({one.score is None for one in categories}) > 1:
        raise ConfigError(f"{where}: give a score to every category or to none")
    texts = {"name": said.get("name", path.stem), "instruction": said.get("instruction", INSTRUCTION)}
    for key, text in texts.items():
        if not isinstance(text, str) or not text.strip():
            raise ConfigError(f"{where}: {key} should be a text, not {str(text)[:40]!r}")
    return Rubric(name=texts["name"], instruction=_checked(texts["instruction"], where), categories=categories)


def _category(said: Any, where: str) -> Category:
    if not isinstance(said, Mapping) or not {"name", "says"} <= set(said) <= {"name", "says", "score"}:
        raise ConfigError(f"{where} should have a name, what it says, and perhaps a score; it is {str(said)[:60]!r}")
    for key in ("name", "says"):
        if not isinstance(said[key], str) or not re.search(r"\w", said[key]):
            raise ConfigError(f"{where}: {key} should be a text, not {str(said[key])[:40]!r}")
    if "\n" in said["name"].strip() or not re.match(r"\w", said["name"].strip()):
        raise ConfigError(f"{where}: give it a name of one line that begins with a letter, not {said['name'][:40]!r}")
    score = said.get("score")
    if score is not None and not is_number(score):
        raise ConfigError(f"{where}: score should be a number, not {str(score)[:40]!r}")
    return Category(name=said["name"].strip(), says=said["says"], score=None if score is None else float(score))


def _checked(instruction: str, where: str) -> str:
    try:
        parts = list(string.Formatter().parse(instruction))
    except ValueError as error:
        raise ConfigError(f"{where}: instruction: {error}; write {{{{ for a brace itself") from None
    used = {field for _, field, _, _ in parts if field is not None}
    if (unknown := sorted(used - FIELDS)) or any(spec or conversion for _, _, spec, conversion in parts):
        possible = ", ".join(f"{{{one}}}" for one in sorted(FIELDS))
        named = f"has {{{unknown[0][:40]}}}; it may have" if unknown else "may have no format behind a name; it has"
        raise ConfigError(f"{where}: instruction {named} {possible}")
    if missing := sorted({"answer", "categories"} - used):
        raise ConfigError(f"{where}: instruction has no {{{missing[0]}}}; say where it stands")
    return instruction
