"""What the training losses are made of: activations and log-probabilities of real tokens, in float32 or better."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_forge.data.sinks import are_sinks
from sae_forge.methods.weights.texts import TextBatch
from sae_forge.models.loading import LanguageModel
from sae_forge.models.tokens import embeddable, real_token_mask

Loss = Callable[[TextBatch, TextBatch], Float[Tensor, ""]]
"""Of a forget and a retain batch, a function of the weights under training."""


def real_tokens(lm: LanguageModel, batch: TextBatch) -> Bool[Tensor, "batch seq"]:
    """Which tokens of a batch are text, on the model's device."""
    return real_token_mask(batch.token_ids, batch.attention_mask, lm.special_ids).to(lm.device)


def without_sinks(
    counted: Bool[Tensor, "batch seq"], before: Float[Tensor, "batch seq d_in"], norm: float | None
) -> Bool[Tensor, "batch seq"]:
    """Those that are no sinks in the given model: there one counts as much as a text of others, and no edit moves it.

    Args:
        before: Activations of the given model, since training may make ordinary ones as long.
    """
    return counted & ~are_sinks(before, norm).to(counted.device) if norm else counted


def mean_squared(
    x: Float[Tensor, "batch seq d_in"],
    target: Float[Tensor, "*any d_in"],
    counted: Bool[Tensor, "batch seq"],
) -> Float[Tensor, ""]:
    """Squared distance averaged over the counted tokens and the width."""
    squared = (_wide(x) - _wide(target)).square().mean(-1)
    return _mean(squared, counted.to(x.device))


def squared_mean(
    x: Float[Tensor, "batch seq d_in"],
    target: Float[Tensor, "*any d_in"],
    counted: Bool[Tensor, "batch seq"],
    mean: str,
) -> Float[Tensor, ""]:
    """``mean_squared``, or the mean over texts that ``texts`` and ``open_unlearning`` stand for in RMU's ``Mean``."""
    if mean not in ("texts", "open_unlearning"):
        return mean_squared(x, target, counted)
    counted = counted.to(x.device)
    sums = torch.where(counted, (_wide(x) - _wide(target)).square().mean(-1), 0.0).sum(-1)
    lengths = counted.sum(-1).clamp(min=1)
    # open-unlearning divides [batch] by [batch, 1]: of the batch x batch quotients that makes it takes the mean
    return (sums / lengths if mean == "texts" else sums / lengths[:, None]).mean()


def target_logprobs(
    lm: LanguageModel, batch: TextBatch, *, eos: bool = False
) -> tuple[Float[Tensor, "batch targets"], Bool[Tensor, "batch targets"]]:
    """Log-probability of every token but a row's first, zero where it is no target; and which are.

    Targets are the real tokens, and with ``eos`` the EOS that ends a text.
    """
    logits, wanted = next_token_logits(lm, batch, eos=eos)
    targets = batch.token_ids[:, 1:].to(logits.device)
    # the targets' entries of log_softmax, whose whole [batch, targets, vocab] is never made
    logprobs = logits.gather(-1, targets[..., None])[..., 0] - logits.logsumexp(-1)
    return torch.where(wanted, logprobs, 0.0), wanted


def nats_per_token(lm: LanguageModel, batch: TextBatch, *, eos: bool = False) -> Float[Tensor, ""]:
    """Next-token loss averaged over all targets of the batch."""
    logprobs, wanted = target_logprobs(lm, batch, eos=eos)
    return -_mean(logprobs, wanted)


def held(
    forget_loss: Float[Tensor, ""], lm: LanguageModel, retain: TextBatch, alpha: float, *, eos: bool = False
) -> Float[Tensor, ""]:
    """A loss on forget text, and ``alpha`` times that of retain text; at 0 the retain text is not run."""
    return forget_loss + alpha * nats_per_token(lm, retain, eos=eos) if alpha else forget_loss


def divergence(
    lm: LanguageModel, reference: LanguageModel, batch: TextBatch, *, eos: bool = False
) -> Float[Tensor, ""]:
    """KL of the reference's next-token distribution from the model's, averaged over the targets."""
    logits, wanted = next_token_logits(lm, batch, eos=eos)
    with torch.no_grad():
        before = next_token_logits(reference, batch)[0].log_softmax(-1)
    # sum of p_ref (log p_ref - log p), [batch, targets]
    after = logits.log_softmax(-1)
    return _mean((before.exp() * (before - after)).sum(-1), wanted)


def next_token_logits(
    lm: LanguageModel, batch: TextBatch, *, eos: bool = False
) -> tuple[Float[Tensor, "batch targets vocab"], Bool[Tensor, "batch targets"]]:
    """Logits for every token but a row's first, and which of those are targets."""
    logits = lm.model(**_inputs(lm, batch)).logits[:, :-1]
    wanted = real_tokens(lm, batch)
    if eos:
        ends = batch.attention_mask & (batch.token_ids == lm.tokenizer.eos_token_id)
        wanted = wanted | ends.to(wanted.device)
    return _wide(logits), wanted[:, 1:].to(logits.device)


def last_hidden(lm: LanguageModel, batch: TextBatch) -> Float[Tensor, "batch seq d_model"]:
    """What the last layer hands to the head, after the final norm."""
    return lm.model.base_model(**_inputs(lm, batch)).last_hidden_state


def _inputs(lm: LanguageModel, batch: TextBatch) -> dict[str, Any]:
    # positions count from the first attended token, as in every other pass of the house
    mask = batch.attention_mask.to(lm.device, torch.long)
    return {
        "input_ids": embeddable(lm, batch.token_ids, batch.attention_mask).to(lm.device),
        "attention_mask": mask,
        "position_ids": (mask.cumsum(-1) - 1).clamp(min=0),
        "use_cache": False,
    }


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    return torch.where(counted, values, 0.0).sum() / counted.sum().clamp(min=1)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
