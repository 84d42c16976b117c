"""What packing asks of a model's tokenizer: the ids of documents, which are texts or conversations."""

from collections.abc import Mapping, Sequence

from sae_forge.models.chat import render
from sae_forge.models.loading import LanguageModel
from sae_forge.models.tokens import text_ids

Turns = Sequence[Mapping[str, str]]
"""A conversation: ``role`` and ``content`` of each turn."""


class DocumentTokenizer:
    """A model's tokenizer as documents see it: nothing that is written in them becomes a control token.

    A conversation is written by the model's chat template, without BOS in front and EOS behind, which packing sets; or,
    where the model has none, as a text with ``role: `` before each turn.
    """

    def __init__(self, lm: LanguageModel) -> None:
        self._lm = lm
        self.bos_token_id: int | None = lm.tokenizer.bos_token_id  # pyright: ignore[reportAttributeAccessIssue]
        self.eos_token_id: int | None = lm.tokenizer.eos_token_id  # pyright: ignore[reportAttributeAccessIssue]
        self.pad_token_id: int | None = lm.tokenizer.pad_token_id  # pyright: ignore[reportAttributeAccessIssue]
        self.control = 0
        """Control tokens in texts so far: only of a tokenizer that cannot read their spelling as text."""

    def __call__(self, texts: Sequence[str | Turns], *, add_special_tokens: bool = False) -> dict[str, list[list[int]]]:
        """``input_ids`` of each document, under the name transformers has for them."""
        del add_special_tokens  # packing sets them
        if not self._lm.tokenizer.chat_template:
            texts = [text if isinstance(text, str) else _as_text(text) for text in texts]
        plain = text_ids(self._lm, [text for text in texts if isinstance(text, str)])
        special = self._lm.special_ids
        self.control += sum(token in special for ids in plain if not special.isdisjoint(ids) for token in ids)
        rows = iter(plain)
        return {"input_ids": [next(rows) if isinstance(text, str) else self._chat(text) for text in texts]}

    def _chat(self, turns: Turns) -> list[int]:
        ids = render(self._lm, turns, to_go_on=False).ids(self._lm)
        opens, ends = ids[:1] == [self.bos_token_id], ids[-1:] == [self.eos_token_id]
        return ids[opens : len(ids) - ends]


def _as_text(turns: Turns) -> str:
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)
