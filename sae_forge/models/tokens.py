"""The one definition of a real token, shared by collect, frequencies, gates and losses."""

from collections.abc import Collection

import torch
from jaxtyping import Bool, Int
from torch import Tensor


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
