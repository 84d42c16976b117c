"""What packing asks of a model's tokenizer: the ids of documents, which are texts or conversations."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol, runtime_checkable

from sae_forge.models.chat import Rendered, render
from sae_forge.models.loading import LanguageModel
from sae_forge.models.tokens import text_ids

Turns = Sequence[Mapping[str, str]]
"""A conversation: ``role`` and ``content`` of each turn."""
Encoded = dict[str, list[list[int]]]


@runtime_checkable
class Counting(Protocol):
    """Who counts control tokens that stand in texts, where a tokenizer cannot read their spelling as text."""

    control: int


class DocumentTokenizer:
    """A model's tokenizer as documents see it: nothing that is written in them becomes a control token.

    A conversation is written by the model's chat template, without BOS in front and EOS behind, which packing sets.

    Args:
        form: What is made of a text before it is read.
    """

    def __init__(self, lm: LanguageModel, tally: Counting | None = None, *, form: Callable[[str], str] = str) -> None:
        self._lm, self._tally, self._form = lm, tally, form
        self.bos_token_id: int | None = lm.tokenizer.bos_token_id  # pyright: ignore[reportAttributeAccessIssue]
        self.eos_token_id: int | None = lm.tokenizer.eos_token_id  # pyright: ignore[reportAttributeAccessIssue]
        self.pad_token_id: int | None = lm.tokenizer.pad_token_id  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def converse(self) -> Callable[[Turns], Rendered] | None:
        """How a conversation becomes a document; None where the model has no chat template."""
        return partial(render, self._lm, to_go_on=False) if self._lm.tokenizer.chat_template else None

    def __call__(self, texts: Sequence[str | Rendered], *, add_special_tokens: bool = False) -> Encoded:
        """``input_ids`` of each document, under the name transformers has for them."""
        del add_special_tokens  # packing sets them
        plain = text_ids(self._lm, [self._form(text) for text in texts if isinstance(text, str)])
        if self._tally is not None:
            special = self._lm.special_ids
            self._tally.control += sum(
                token in special for ids in plain if not special.isdisjoint(ids) for token in ids
            )
        rows = iter(plain)
        return {"input_ids": [next(rows) if isinstance(text, str) else self._chat(text) for text in texts]}

    def _chat(self, chat: Rendered) -> list[int]:
        ids = chat.ids(self._lm)
        opens, ends = ids[:1] == [self.bos_token_id], ids[-1:] == [self.eos_token_id]
        return ids[opens : len(ids) - ends]
