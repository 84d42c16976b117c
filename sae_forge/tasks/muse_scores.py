"""MUSE's measures of a model as it stands: what it writes against what stands in the text, and what gives it away."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sae_forge.errors import NumericalError
from sae_forge.models.loading import LanguageModel
from sae_forge.statistics.answers import privleak
from sae_forge.statistics.bootstrap import Bootstrap
from sae_forge.statistics.estimate import Estimate
from sae_forge.statistics.metrics import rouge_l_f1
from sae_forge.statistics.ranking import auroc_estimate
from sae_forge.tasks.engines.continuations import Done, Score, pad, report
from sae_forge.tasks.engines.generation import Sampling, write
from sae_forge.tasks.engines.losses import rows_at_once, token_losses
from sae_forge.tasks.muse import LOWEST_PERCENT, Recall


@dataclass(frozen=True)
class Recalled:
    """What a model wrote after one prompt."""

    text: str
    """Up to where an answer ends."""
    tokens: int
    """Tokens generated, those after the answer's end included."""
    rouge_l: float
    """ROUGE-L F1 against the reference, in [0, 1]."""


def recall(lm: LanguageModel, asked: Recall, *, batch_size: int, done: Done | None = None) -> list[Recalled]:
    """What the model writes after each prompt, likeliest token first, against what stands in the text."""
    greedy = Sampling(max_new_tokens=asked.max_new_tokens, temperature=0)
    written = write(lm, [item.prompt for item in asked.prompts], greedy, batch_size=batch_size, done=done)
    found = []
    for item, got in zip(asked.prompts, written, strict=True):
        text = until(got.text, asked.stops)
        found.append(Recalled(text, got.tokens, rouge_l_f1(text, item.target)))
    return found


def until(text: str, stops: Sequence[str]) -> str:
    """The text before the first of ``stops`` in it."""
    return text[: min((text.find(stop) for stop in stops if stop in text), default=len(text))]


@torch.inference_mode()
def least_likely(
    lm: LanguageModel, rows: Sequence[Sequence[int]], *, batch_size: int, done: Done | None = None
) -> list[Score]:
    """Log-probs of the least likely 40 % of each text's tokens, one at least; their mean is Min-40 % probability.

    The first token is read and never predicted.

    Raises:
        NumericalError: a log-prob is not finite.
    """
    order = sorted(range(len(rows)), key=lambda number: (-len(rows[number]), number))
    found: dict[int, Score] = {}
    while order:
        size = min(batch_size, rows_at_once(lm, len(rows[order[0]])))
        chosen, order = order[:size], order[size:]
        token_ids, mask = pad([rows[number] for number in chosen], lm.pad_id, left=False)
        losses = token_losses(lm, token_ids, mask, mask[:, 1:].bool())
        for number, row in zip(chosen, losses, strict=True):
            predicted = len(rows[number]) - 1
            count = max(1, predicted * LOWEST_PERCENT // 100)
            found[number] = Score(-row[:predicted].topk(count).values.sum().item(), count)
        report(done, len(chosen))
    if any(score.logprob - score.logprob != 0 for score in found.values()):
        raise NumericalError("the loss on a text of PrivLeak is not finite; compute with --dtype fp32 or bf16")
    return [found[number] for number in range(len(rows))]


def leak(forget: Sequence[Score], holdout: Sequence[Score], reference: float, bootstrap: Bootstrap) -> Estimate:
    """PrivLeak with its interval over texts, those of either side resampled apart.

    The AUC in it is the chance that a holdout text has a higher Min-40 % probability than a forget text, a tie
    counting half. It is near 0 for a model that knows the forget texts, so PrivLeak is then near -100.
    """
    found = auroc_estimate([score.mean for score in holdout], [score.mean for score in forget], bootstrap)
    return found.transformed(lambda value: privleak(value, reference))
