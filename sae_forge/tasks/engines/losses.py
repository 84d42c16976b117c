"""How well a model predicts held-out text: nats per real token, stretch by stretch so that they can be resampled."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_forge.config.text import HeldOutConfig
from sae_forge.data.texts.corpus import Tally, iter_texts
from sae_forge.data.texts.packing import PackedBatch, iter_packed
from sae_forge.data.texts.plain import form_of
from sae_forge.data.texts.sources import corpus_name
from sae_forge.errors import DataError, NumericalError
from sae_forge.models.documents import DocumentTokenizer
from sae_forge.models.loading import LanguageModel
from sae_forge.models.tokens import max_input, packing, real_token_mask
from sae_forge.tasks.engines.continuations import Done, report
from sae_forge.tasks.engines.passes import forward, picked

LOGIT_BYTES = 2 * 2**30
"""Room for the float32 logits of one pass; a long context over a large vocabulary takes fewer sequences at once."""


@dataclass(frozen=True)
class Corpus:
    """Held-out text of one source, packed."""

    name: str
    role: str
    batches: tuple[PackedBatch, ...]
    predicted: int = 0
    """Tokens whose loss is taken."""
    remarks: tuple[str, ...] = ()
    """What is to be said of its text, a sentence each."""

    @property
    def key(self) -> str:
        """Its name among the texts of all roles."""
        return f"{self.role}/{self.name}"

    @property
    def rows(self) -> int:
        """Sequences, padding rows included."""
        return sum(len(batch.token_ids) for batch in self.batches)


@dataclass(frozen=True)
class SequenceLosses:
    """Losses of the sequences, or stretches of them, that hold at least one real token to predict."""

    nats: tuple[float, ...]
    """Summed over the real tokens of each."""
    tokens: tuple[int, ...]


def load_corpus(
    lm: LanguageModel, source: str, role: str, config: HeldOutConfig, name: str | None = None, *, beyond: int = 0
) -> Corpus:
    """The first ``config.loss_tokens`` tokens of a text source, about.

    Args:
        beyond: Packed sequences of it to leave out first.

    Raises:
        DataError: the source is missing, empty or holds no text.
    """
    tally = Tally()
    tokenizer = DocumentTokenizer(lm, tally, form=form_of(config.normalize_text))
    how: dict[str, Any] = {"split": config.split, "converse": tokenizer.converse, "tally": tally}
    try:
        texts = iter_texts(source, text_field=config.text_field, **how)
    except DataError:
        if config.text_field is None or "text_field" in config.spelled:
            raise
        texts = iter_texts(source, **how)  # a column that nobody spelled out need not be in it
    packed = iter_packed(
        texts,
        tokenizer,
        ctx_len=min(config.ctx_len, max_input(lm)),
        batch_size=config.eval_batch_size,
        bos=packing(lm, config.bos),
        max_tokens=None if beyond else config.loss_tokens,
        start=beyond // config.eval_batch_size,
    )
    batches = tuple(packed if not beyond else _some(packed, beyond, config.loss_tokens))
    tally.judge()
    predicted = sum(int(_targets(lm, batch).sum()) for batch in batches)
    if not predicted:
        raise DataError(f"{source} holds no token to predict; give held-out text of at least two words")
    name = name or corpus_name(source)
    return Corpus(name, role, batches, predicted, tuple(tally.lines(f"{role}/{name}")))


def _some(batches: Iterator[PackedBatch], first: int, tokens: int) -> Iterator[PackedBatch]:
    """The sequences from this one on, until there are so many tokens."""
    for batch in batches:
        kept = batch.seq_ids >= first
        ids, mask = batch.token_ids[kept], batch.attention_mask[kept]
        room = mask.sum(dim=1).cumsum(dim=0) - mask.sum(dim=1) < tokens
        yield PackedBatch(batch.index, ids[room], mask[room], batch.seq_ids[kept][room])
        tokens -= int(mask.sum())
        if tokens <= 0:
            return


@torch.inference_mode()
def sequence_losses(
    lm: LanguageModel, batches: Sequence[PackedBatch], *, stretch: int | None = None, done: Done | None = None
) -> SequenceLosses:
    """Loss on every real token but a sequence's first; BOS, EOS and padding are read but never predicted.

    Args:
        stretch: Tokens of a sequence that are summed at most; None: all of it.

    Raises:
        NumericalError: a loss is not finite.
    """
    nats, tokens = [], []
    for batch in batches:
        at_once = rows_at_once(lm, batch.token_ids.shape[1])
        for start in range(0, len(batch.token_ids), at_once):
            rows = slice(start, start + at_once)
            wanted = _targets(lm, batch)[rows]
            # rows of padding alone, and of special tokens alone, are no sequences
            kept = wanted.any(-1)
            if not kept.any():
                continue
            losses = token_losses(lm, batch.token_ids[rows][kept], batch.attention_mask[rows][kept], wanted[kept])
            width = stretch or losses.shape[1]
            for values, counts in zip(*(_stretches(each, width) for each in (losses, wanted[kept])), strict=True):
                nats += values[counts > 0].tolist()
                tokens += counts[counts > 0].tolist()
        report(done, len(batch.token_ids))
    if any(value - value != 0 for value in nats):
        raise NumericalError("the loss on held-out text is not finite; compute with --dtype fp32 or bf16")
    return SequenceLosses(tuple(nats), tuple(tokens))


def _stretches(each: Tensor, width: int) -> Tensor:
    """Sums over so many positions of each row, ``[rows, stretches]``."""
    return torch.stack([part.sum(dim=1) for part in each.split(width, dim=1)], dim=1)


def _targets(lm: LanguageModel, batch: PackedBatch) -> Tensor:
    """Which positions after the first hold a real token, ``[batch, ctx - 1]``."""
    return real_token_mask(batch.token_ids, batch.attention_mask, lm.special_ids)[:, 1:]


def rows_at_once(lm: LanguageModel, width: int) -> int:
    """Sequences of ``width`` tokens whose logits fit into :data:`LOGIT_BYTES`; one at least."""
    # 4 bytes a logit: they are made float32 for the loss, whatever the model computes in
    return max(1, LOGIT_BYTES // (4 * width * lm.config.vocab_size))


def token_losses(
    lm: LanguageModel, token_ids: Int[Tensor, "batch seq"], mask: Tensor, wanted: Tensor
) -> Float[Tensor, "batch targets"]:
    """Next-token losses in float64 on the CPU, zero where nothing is to be predicted."""
    # no logits where nothing is to be predicted, and of those there are no copy as large as they
    logits = forward(lm, token_ids, mask.long(), at=wanted.nonzero()).logits[0]
    targets = token_ids[:, 1:][wanted.to(token_ids.device)]
    losses = torch.zeros(wanted.shape, dtype=torch.float64)
    losses[wanted.cpu()] = -picked(logits, targets)
    return losses
