"""Sentences that a model writes of its own, by which a recipe holds its fluency."""

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
