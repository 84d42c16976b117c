"""Sentences by which a recipe holds a model's fluency: those that it writes of its own, or some that are given."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sae_forge.errors import DataError

if TYPE_CHECKING:
    from sae_forge.methods.weights.texts import TextBatch, Texts
    from sae_forge.models.loading import LanguageModel


@dataclass(frozen=True)
class Writing:
    """How many sentences, and how long."""

    sentences: int = 20
    prompt_tokens: int = 8
    """Tokens of retain text that each sentence starts with, BOS among them."""
    new_tokens: int = 32
    """Tokens that are written after them."""


DEFAULT = Writing()


def written(lm: "LanguageModel", how: Writing, retain: "Texts", batch_size: int, seed: int) -> "list[TextBatch]":
    """Sentences that ``lm`` goes on with, most likely token by token, after the beginnings of retain text."""
    import torch

    from sae_forge.methods.weights.texts import TextBatch, Texts, iter_batches
    from sae_forge.models.tokens import room_after

    long_enough = retain.attention_mask[:, : how.prompt_tokens].sum(-1) == how.prompt_tokens
    openings = Texts(retain.token_ids[long_enough], retain.attention_mask[long_enough])
    if not len(openings):
        raise DataError(
            f"no retain sequence has the {how.prompt_tokens} tokens that a sentence starts with; "
            "collect longer text, lower prompt_tokens or leave the coherence term out with gamma=0"
        )
    count = -(-how.sentences // batch_size)
    batches = iter_batches(openings, count=count, batch_size=batch_size, seed=seed, purpose="crisp sentences")
    sentences = []
    for batch in batches:
        token_ids = batch.token_ids[:, : how.prompt_tokens]
        with torch.no_grad():
            continued: Any = lm.model.generate(  # pyright: ignore[reportCallIssue]
                input_ids=token_ids.to(lm.device),
                attention_mask=torch.ones_like(token_ids).to(lm.device),
                max_new_tokens=room_after(lm, token_ids[0].tolist(), how.new_tokens),
                do_sample=False,
                pad_token_id=lm.pad_id,
            )
        ids = continued.cpu()
        mask = ids != lm.pad_id
        mask[:, : how.prompt_tokens] = True  # a family may pad with a token that its text holds, such as EOS
        sentences.append(TextBatch(ids, mask))
    return sentences


def given(lm: "LanguageModel", sentences: Sequence[str], batch_size: int) -> "list[TextBatch]":
    """These sentences as the model reads them, each cut to what it takes."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    from sae_forge.methods.weights.texts import TextBatch
    from sae_forge.models.tokens import bos_ids, max_input, text_ids

    rows = [torch.tensor([*bos_ids(lm), *ids][: max_input(lm)]) for ids in text_ids(lm, list(sentences))]
    batches = []
    for start in range(0, len(rows), batch_size):
        own = rows[start : start + batch_size]
        ids = pad_sequence(own, batch_first=True, padding_value=lm.pad_id)
        lengths = torch.tensor([len(row) for row in own])
        batches.append(TextBatch(ids, torch.arange(ids.shape[1]) < lengths[:, None]))
    return batches
