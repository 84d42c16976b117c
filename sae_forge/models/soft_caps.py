"""Attention whose scores are capped, in fewer steps and copies than transformers takes, where no gradient is wanted.

No fused kernel knows the soft caps of Gemma 2, so transformers writes out every step of it, for each head that reads
them the keys and values too. Here heads that share keys are rows of one product, and its scores are worked on in place.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from sae_forge.models.loading import LanguageModel

NAME = "sae_forge_soft_capped"


@contextmanager
def soft_capped(lm: LanguageModel) -> Iterator[None]:
    """Inside the block, a Gemma 2 in fp32 attends as here, if it would step by step; its logits move by rounding.

    Only for passes without gradients.
    """
    config = lm.model.config
    if config.model_type != "gemma2" or config._attn_implementation != "eager" or lm.model.dtype != torch.float32:
        yield
        return
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = "eager"


def _attend(
    module: nn.Module,
    query: Float[Tensor, "batch heads seq d_head"],
    key: Float[Tensor, "batch shared keys d_head"],
    value: Float[Tensor, "batch shared keys d_head"],
    attention_mask: Float[Tensor, "batch 1 seq keys"],
    *,
    scaling: float,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Float[Tensor, "batch seq heads d_head"], None]:
    del module, others  # no dropout while a model is asked
    batch, heads, seq, _ = query.shape
    shared = key.shape[1]
    rows = query.contiguous().mul(scaling / (softcap or 1.0)).view(batch, shared, heads // shared * seq, -1)
    scores = rows @ key.transpose(2, 3)
    if softcap is not None:
        scores.tanh_().mul_(softcap)
    scores.view(batch, shared, heads // shared, seq, -1).add_(attention_mask[:, :, None])
    output = (scores.softmax(-1) @ value).view(batch, heads, seq, -1)
    return output.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, eager_mask)
