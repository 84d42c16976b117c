"""Facts about tokens: which are real text, what every sequence starts with, and how many a model takes."""

from collections.abc import Collection

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sae_forge.models.loading import LanguageModel


def real_token_mask(
    token_ids: Int[Tensor, "batch seq"],
    attention_mask: Bool[Tensor, "batch seq"] | Int[Tensor, "batch seq"],
    special_ids: Collection[int],
) -> Bool[Tensor, "batch seq"]:
    """True where a token is text: attended to, and not BOS, EOS, PAD or a chat-template token.

    Args:
        special_ids: The tokenizer's special ids, as ``LanguageModel.special_ids`` lists them.
    """
    special = torch.tensor(sorted(special_ids), dtype=token_ids.dtype, device=token_ids.device)
    return attention_mask.to(token_ids.device, torch.bool) & ~torch.isin(token_ids, special)


def bos_ids(lm: LanguageModel) -> list[int]:
    """The tokens every sequence starts with: BOS, for families trained with it."""
    bos = lm.tokenizer.bos_token_id
    return [bos] if lm.family.needs_bos and isinstance(bos, int) else []


def max_input(lm: LanguageModel) -> int:
    """Longest sequence the model takes, in tokens."""
    return int(getattr(lm.model.config, "max_position_embeddings", 0) or 2**31)
