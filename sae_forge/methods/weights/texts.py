"""Token sequences to train on, read back from collected shards, so that neither corpus nor network is needed again.

Shards hold real tokens alone. What stood between them when the text was packed is put back: BOS where the packing
set it, EOS between documents, and BOS in front where the family wants it and the packing left it out.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor
from torch.nn.functional import pad

from sae_forge.data.shards import ShardReader
from sae_forge.errors import DataError, ShardError
from sae_forge.models.loading import LanguageModel
from sae_forge.models.tokens import bos_ids
from sae_forge.rng import generator

MAX_SEQUENCES = 4096
"""Sequences taken of each corpus: more than 400 steps of 8 use up."""


class TextBatch(NamedTuple):
    """Sequences of one step, padded on the right."""

    token_ids: Int64[Tensor, "batch seq"]
    attention_mask: Bool[Tensor, "batch seq"]
    """False on padding alone; BOS and EOS are attended to."""


@dataclass(frozen=True, eq=False)
class Texts:
    """The sequences of one or more corpora, each with at least one real token."""

    token_ids: Int64[Tensor, "rows seq"]
    attention_mask: Bool[Tensor, "rows seq"]

    def __len__(self) -> int:
        return len(self.token_ids)

    def rows(self, wanted: Int64[Tensor, " batch"]) -> TextBatch:
        """The chosen sequences, without the columns that would be padding for all of them."""
        mask = self.attention_mask[wanted]
        width = int(mask.any(0).nonzero().max()) + 1
        return TextBatch(self.token_ids[wanted, :width], mask[:, :width])


def load_texts(lm: LanguageModel, readers: Sequence[ShardReader], *, max_sequences: int = MAX_SEQUENCES) -> Texts:
    """The first ``max_sequences`` sequences of each corpus, as the model saw them when they were collected.

    Activations are not read: 16 bytes a token.

    Raises:
        ShardError: the shards were written with another tokenizer, or one is damaged.
        DataError: there is no corpus, or no token in it.
    """
    for reader in readers:
        if reader.fingerprint.tokenizer != lm.fingerprint()["tokenizer"]:
            raise ShardError(
                f"{reader.folder} holds tokens of {reader.fingerprint.model}, which another tokenizer wrote; "
                f"collect the corpus with {lm.name}"
            )
    # of each corpus at most as many, so that a long one does not crowd out a short one
    parts = [_sequences(lm, reader, max_sequences) for reader in readers]
    if not any(len(ids) for ids, _ in parts):
        raise DataError("there is no text to train on; collect a corpus with at least one real token")
    width = max(ids.shape[1] for ids, _ in parts)
    return Texts(
        torch.cat([pad(ids, (0, width - ids.shape[1]), value=lm.pad_id) for ids, _ in parts]),
        torch.cat([pad(mask, (0, width - mask.shape[1]), value=False) for _, mask in parts]),
    )


def iter_batches(texts: Texts, *, count: int, batch_size: int, seed: int, purpose: str) -> Iterator[TextBatch]:
    """``count`` batches; every sequence comes once before any comes again, each time round in another order.

    The same arguments give the same batches. ``purpose`` keeps the orders of two corpora apart.
    """
    # whole rounds of all sequences, the last of them cut short
    rounds = -(-count * batch_size // len(texts))
    orders = [generator(seed, purpose, number).permutation(len(texts)) for number in range(rounds)]
    order = torch.from_numpy(np.concatenate(orders)[: count * batch_size])
    yield from map(texts.rows, order.split(batch_size))


def _sequences(lm: LanguageModel, reader: ShardReader, at_most: int) -> tuple[Tensor, Tensor]:
    """Token ids and mask of one corpus, a row a packed sequence."""
    seq_ids, positions, token_ids = _origins(reader, at_most)
    if not len(seq_ids):
        return torch.zeros(0, 1, dtype=torch.int64), torch.zeros(0, 1, dtype=torch.bool)
    # [rows, longest]: a place that no token of the shards fills held a special token, or is padding
    row = seq_ids.unique_consecutive(return_inverse=True)[1]
    ids = torch.full((int(row.max()) + 1, int(positions.max()) + 1), lm.pad_id)
    real = torch.zeros_like(ids, dtype=torch.bool)
    ids[row, positions], real[row, positions] = token_ids, True
    mask = real.flip(1).cummax(1).values.flip(1)  # all up to the last real token of the row
    # places without a row hold the special tokens that stood there
    bos_id, eos_id, bos = lm.tokenizer.bos_token_id, lm.tokenizer.eos_token_id, reader.fingerprint.bos
    gap = mask & ~real
    opens = torch.zeros_like(gap)
    if bos == "row":
        opens[:, 0] = gap[:, 0]
    if bos == "document":  # EOS, BOS and then the next document's first token
        opens[:, :-1] = gap[:, :-1] & real[:, 1:]
    if isinstance(bos_id, int):
        ids = torch.where(opens, bos_id, ids)
    ids = torch.where(gap & ~opens, eos_id if isinstance(eos_id, int) else lm.pad_id, ids)
    # BOS in front of every row of a corpus that was packed without it, where the family wants one
    front = bos_ids(lm)
    if not front or bool((ids == front[0]).any()):
        return ids, mask
    column = torch.full((len(ids), 1), front[0])
    return torch.cat([column, ids], 1), torch.cat([torch.ones_like(column, dtype=torch.bool), mask], 1)


def _origins(reader: ShardReader, at_most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sequence, position and id of every token of the first ``at_most`` sequences."""
    blocks: list[dict[str, Tensor]] = []
    for block in range(reader.block_count):
        blocks.append(reader.read_origins(block))
        if blocks[-1]["seq_ids"][-1] >= at_most:
            break
    nothing = torch.zeros(0, dtype=torch.int64)
    seq_ids, positions, token_ids = (
        torch.cat([nothing, *(part[name].long() for part in blocks)]) for name in ("seq_ids", "positions", "token_ids")
    )
    kept = seq_ids < at_most
    return seq_ids[kept], positions[kept], token_ids[kept]
