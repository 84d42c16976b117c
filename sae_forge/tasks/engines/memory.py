"""What a model makes of each token of a text: whether it is the likeliest, its log-prob, and how that compares."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sae_forge.errors import DataError, NumericalError
from sae_forge.models.loading import LanguageModel
from sae_forge.models.tokens import bos_ids, max_input, text_ids
from sae_forge.tasks.engines.continuations import Done, encode, report
from sae_forge.tasks.engines.losses import rows_at_once
from sae_forge.tasks.engines.passes import forward, pad

LEAST_VARIANCE = 1e-6
"""Of a token's log-prob over the vocabulary, where the model is all but certain."""


@dataclass(frozen=True)
class Row:
    """The tokens of a text, and from which on they are predicted."""

    ids: tuple[int, ...]
    first: int
    """At least 1: what stands first is read and never predicted."""
    truncated: bool = False


@dataclass(frozen=True)
class Read:
    """Of each predicted token, in their order."""

    right: tuple[bool, ...]
    """Whether no token was likelier."""
    logprobs: tuple[float, ...]
    standard: tuple[float, ...]
    """Its log-prob less the mean over the vocabulary, in standard deviations of that (Min-k %++)."""


def text_row(lm: LanguageModel, text: str) -> Row:
    """A text from its first token on.

    Raises:
        DataError: there is no token to predict.
    """
    return _row(lm, (*bos_ids(lm), *text_ids(lm, [text])[0]), 1, text)


def token_row(lm: LanguageModel, prompt: str, target: str) -> Row:
    """A target after its prompt, as the tokenizer writes both together.

    Raises:
        DataError: there is no token to predict.
    """
    if not prompt:
        return text_row(lm, target)
    (one,) = encode(lm, [(prompt, [target])])
    row = _row(lm, (*one.context, *one.targets[0]), len(one.context), target)
    return replace(row, truncated=row.truncated or one.truncated)


def _row(lm: LanguageModel, ids: tuple[int, ...], first: int, text: str) -> Row:
    longest = max_input(lm)
    row = Row(ids[:longest], max(1, first), len(ids) > longest)
    if len(row.ids) <= row.first:
        raise DataError(f"the text {text!r:.40} holds no token to predict")
    return row


def read(lm: LanguageModel, rows: Sequence[Row], *, batch_size: int, done: Done | None = None) -> list[Read]:
    """What the model as it stands, edits included, makes of every predicted token.

    Raises:
        NumericalError: a log-prob is not finite.
    """
    order = sorted(range(len(rows)), key=lambda number: (-len(rows[number].ids), number))
    reads: dict[int, Read] = {}
    while order:
        size = min(batch_size, rows_at_once(lm, len(rows[order[0]].ids)))
        chosen, order = order[:size], order[size:]
        token_ids, mask = pad([rows[number].ids for number in chosen], lm.pad_id, left=False)
        with torch.inference_mode():
            logits = forward(lm, token_ids, mask).logits
            for place, number in enumerate(chosen):
                row = rows[number]
                wanted = torch.tensor(row.ids[row.first :], device=logits.device)
                reads[number] = _read(logits[place, row.first - 1 : len(row.ids) - 1].float(), wanted)
        report(done, len(chosen))
    if any(value - value != 0 for one in reads.values() for value in (*one.logprobs, *one.standard)):
        raise NumericalError("a log-prob of a text is not finite; compute with --dtype fp32 or bf16")
    return [reads[number] for number in range(len(rows))]


def _read(logits: Tensor, wanted: Tensor) -> Read:
    """From ``[tokens, vocab]`` logits."""
    logprobs = logits.log_softmax(-1)
    own = logprobs.gather(-1, wanted[:, None])[:, 0]
    share = logprobs.exp()
    mean = (share * logprobs).sum(-1)
    spread = ((share * logprobs.square()).sum(-1) - mean.square()).clamp(min=LEAST_VARIANCE).sqrt()
    right = logprobs.argmax(-1) == wanted
    return Read(tuple(right.tolist()), *(tuple(part.double().tolist()) for part in (own, (own - mean) / spread)))
