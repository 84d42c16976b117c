"""Steps of a model's arithmetic in fewer or cheaper operations than transformers takes, where no gradient is wanted.

No fused kernel knows the soft caps of Gemma 2, so transformers writes out every step of its attention, and the keys and
values for each head that reads them. Here heads that share keys are rows of one product, whose scores are worked on in
place. And a CPU's tanh takes three times as long as its exp, which is all that the GELU of most Gemmas needs.
"""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.activations import GELUTanh
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from sae_forge.models.diverting import Forward, diverted
from sae_forge.models.loading import LanguageModel

SOFT_CAPPED = "sae_forge_soft_capped"


@contextmanager
def quicker(lm: LanguageModel) -> Iterator[None]:
    """Inside the block, passes of a model in fp32 take less time, and its logits move by rounding.

    Only for passes without gradients.
    """
    config = lm.model.config
    with ExitStack() as restored:
        if lm.model.dtype == torch.float32:
            if config.model_type == "gemma2" and config._attn_implementation == "eager":
                restored.callback(setattr, config, "_attn_implementation", "eager")
                config._attn_implementation = SOFT_CAPPED
            for module in lm.model.modules():
                if type(module) is GELUTanh and lm.device.type == "cpu":
                    restored.enter_context(diverted(module, _gelu))
        yield


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


def _gelu(module: nn.Module, own: Forward) -> Forward:
    del module, own

    def forward(x: Tensor) -> Tensor:
        # (1 + tanh u) / 2 is the sigmoid of 2 u, and u is sqrt(2 / pi) (x + 0.044715 x^3)
        twice = 2 * math.sqrt(2 / math.pi)
        return x.square().mul_(0.044715 * twice).add_(twice).mul_(x).sigmoid_().mul_(x)

    return forward


AttentionInterface.register(SOFT_CAPPED, _attend)
AttentionMaskInterface.register(SOFT_CAPPED, eager_mask)
