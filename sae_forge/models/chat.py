"""Turns of a conversation in the words of a model's chat template, and which tokens those are.

Only what the template writes becomes a control token: one that is spelled out in what somebody said is text.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from jinja2 import TemplateError

from sae_forge.errors import DataError
from sae_forge.models.loading import LanguageModel
from sae_forge.models.tokens import bos_ids, text_ids

TEMPLATE_RAISES = (
    TemplateError, ArithmeticError, AttributeError, ImportError, LookupError, RecursionError, TypeError, ValueError,
)  # fmt: skip
"""What a chat template, which is a repository's own code in a sandbox, may raise."""
_PRIVATE = "\ue000"
"""A character that no template has and hardly any text; where a text has it, more of it in a row."""


@dataclass(frozen=True)
class Rendered:
    """A conversation as the model reads it."""

    text: str
    spelled: tuple[tuple[int, int], ...] = ()
    """Where in it something is spelled like a special token and is text, in characters."""

    def __len__(self) -> int:
        return len(self.text)

    def followed_by(self, text: str) -> "Rendered":
        """The same with a text after it, such as the beginning of an answer."""
        return replace(self, text=self.text + text)

    def ids(self, lm: LanguageModel, end: int | None = None) -> list[int]:
        """Token ids of it, or of its first ``end`` characters; with BOS where the template writes it."""
        text = self.text[:end]
        if not any(first < len(text) for first, _ in self.spelled):
            read = lm.tokenizer(text, add_special_tokens=False, split_special_tokens=False, verbose=False)
            return read["input_ids"]  # pyright: ignore[reportReturnType]
        ids, start = [], 0
        for match in re.finditer(_any_of(lm.special_strings), text):
            if any(first < match.end() and match.start() < last for first, last in self.spelled):
                continue
            ids += _ids_within(lm, text[start : match.start()], opens=start == 0)
            ids.append(lm.tokenizer.convert_tokens_to_ids(match[0]))
            start = match.end()
        return ids + _ids_within(lm, text[start:], opens=start == 0)


def render(lm: LanguageModel, turns: Sequence[Mapping[str, str]], *, to_go_on: bool) -> Rendered:
    """The turns, each with a ``role`` and its ``content``, as the model's template writes them.

    Args:
        to_go_on: End with the beginning of the model's next turn.

    Raises:
        DataError: the template refuses these turns; says why.
    """
    special = lm.special_strings
    everything = "".join(turn["content"] for turn in turns)
    mark = next(_PRIVATE * times for times in count(1) if _PRIVATE * times not in everything)
    number = {text: f"{mark}{index}{mark}" for index, text in enumerate(special)}
    spelling = re.compile(_any_of(special))
    hidden = [{**turn, "content": spelling.sub(lambda it: number[it[0]], turn["content"])} for turn in turns]
    try:
        text = str(lm.tokenizer.apply_chat_template(hidden, tokenize=False, add_generation_prompt=to_go_on))
    except TEMPLATE_RAISES as error:
        who = "a user's turn alone" if [turn["role"] for turn in turns] == ["user"] else "these turns"
        why = f"{type(error).__name__}: {str(error)[:160]}"
        raise DataError(f"the chat template of {lm.name} refuses {who}: {why}") from error
    whole, spelled = "", []
    for place, part in enumerate(text.split(mark)):  # every other part is the number of something hidden
        if place % 2:
            part = special[int(part)]
            spelled.append((len(whole), len(whole) + len(part)))
        whole += part
    return Rendered(whole, tuple(spelled))


def render_alike(
    lm: LanguageModel, conversations: Sequence[Sequence[Mapping[str, str]]], *, to_go_on: bool
) -> list[Rendered]:
    """``render`` of each, where they differ in the order of what their last turn says and in nothing else.

    The template runs for the first and the last of them alone, if it does nothing to what is said but copy it.

    Raises:
        DataError: the template refuses these turns; says why.
    """
    said = [turns[-1]["content"] for turns in conversations]
    if len(said) > 2 and all(text == text.strip() for text in said):
        ends = [render(lm, conversations[place], to_go_on=to_go_on) for place in (0, -1)]
        front, _, behind = ends[0].text.partition(said[0])
        copied = [Rendered(f"{front}{text}{behind}") for text in said]
        if [copied[0], copied[-1]] == ends:
            return copied
    return [render(lm, turns, to_go_on=to_go_on) for turns in conversations]


def prompt_ids(lm: LanguageModel, prompt: str | Rendered) -> list[int]:
    """Token ids of what a model reads first: BOS in front where the family wants it and no template wrote it."""
    return prompts_ids(lm, [prompt])[0]


def prompts_ids(lm: LanguageModel, prompts: Sequence[str | Rendered]) -> list[list[int]]:
    """``prompt_ids`` of many at once, which takes the tokenizer less time."""
    plain = [one.text for one in prompts if isinstance(one, Rendered) and not one.spelled]
    how: dict[str, Any] = {"add_special_tokens": False, "split_special_tokens": False, "verbose": False}
    read = iter(lm.tokenizer(plain, **how)["input_ids"] if plain else ())
    texts = iter(text_ids(lm, [one for one in prompts if isinstance(one, str)]))
    front = bos_ids(lm)
    every: list[list[int]] = []
    for prompt in prompts:
        ids: Any = next(texts) if isinstance(prompt, str) else prompt.ids(lm) if prompt.spelled else next(read)
        every.append(ids if front and ids[:1] == front else [*front, *ids])
    return every


def _any_of(texts: Sequence[str]) -> str:
    return "|".join(map(re.escape, texts)) or r"(?!)"


def _ids_within(lm: LanguageModel, text: str, *, opens: bool) -> list[int]:
    """Token ids of a text that stands after a control token, or opens the whole.

    Some tokenizers mark the beginning of a whole as if a space stood there. What stands inside is then read behind a
    line break, which merges with nothing, and that is taken away again.
    """
    if not text:
        return []
    (alone,) = text_ids(lm, [text])
    if opens or _marks_each_part(lm):
        return alone
    front, behind = text_ids(lm, ["\n", f"\n{text}"])
    return behind[len(front) :] if behind[: len(front)] == front else alone


def _marks_each_part(lm: LanguageModel) -> bool:
    """Whether a text is read the same after a control token as it is alone."""
    mark = lm.special_strings[0]
    read = lm.tokenizer(f"{mark}a", add_special_tokens=False, split_special_tokens=False)["input_ids"]
    return read == [lm.tokenizer.convert_tokens_to_ids(mark), *text_ids(lm, ["a"])[0]]
