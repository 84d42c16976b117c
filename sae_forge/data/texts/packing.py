"""Documents to rows of equal length, so that a forward batch always has the same shape and every token is real."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from sae_forge.config.text import Packing
from sae_forge.errors import ConfigError

_PIECE = 2**20
"""Characters tokenised at a time: longer documents go in pieces, at the cost of one token's boundary per piece."""


@runtime_checkable
class Tokenizer(Protocol):
    """What packing needs of a tokenizer; those of transformers fit where all documents are texts."""

    bos_token_id: int | None
    eos_token_id: int | None
    pad_token_id: int | None

    def __call__(self, texts: list[Any], *, add_special_tokens: bool) -> Any:
        """``["input_ids"]`` of the result is one list of ids a text."""
        ...


@dataclass(frozen=True)
class PackedBatch:
    """One forward batch; its content depends on the corpus and its index only."""

    index: int
    token_ids: Int64[Tensor, "batch ctx"]
    attention_mask: Bool[Tensor, "batch ctx"]
    """False on padding, which only the corpus's last batch has."""
    seq_ids: Int64[Tensor, " batch"]
    """Number of each row over the whole corpus."""


def iter_packed(
    texts: Iterable[Any],
    tokenizer: Tokenizer,
    *,
    ctx_len: int,
    batch_size: int,
    bos: Packing,
    max_tokens: int | None = None,
    start: int = 0,
) -> Iterator[PackedBatch]:
    """Rows of ``ctx_len`` tokens, ``batch_size`` at a time: documents joined by EOS and cut where a row is full.

    Every batch has all its rows; the last one is padded. Without an EOS token documents follow one another directly.

    Args:
        bos: ``row``: each row starts with BOS. ``document``: each document does. ``none``: nothing does.
        max_tokens: Corpus tokens to take; BOS, EOS and PAD do not count.
        start: First batch to yield; those before it are tokenised and left out.

    Raises:
        ConfigError: a BOS is wanted and the tokenizer has none.
    """
    if bos != "none" and tokenizer.bos_token_id is None:
        raise ConfigError(f"--bos {bos}: this model's tokenizer has no BOS token; give --bos none")
    body = ctx_len - (bos == "row")
    if body < 1:
        raise ConfigError(f"--ctx_len {ctx_len} leaves no room for text beside BOS; give at least 2 tokens")
    pieces = _pieces(texts, tokenizer, bos == "document", max_tokens)
    for index, tokens in enumerate(_cut(pieces, body * batch_size)):
        if index >= start:
            yield _batch(index, tokens, tokenizer, (batch_size, body), tokenizer.bos_token_id if bos == "row" else None)


def _batch(
    index: int, tokens: np.ndarray, tokenizer: Tokenizer, shape: tuple[int, int], bos: int | None
) -> PackedBatch:
    pad = next(token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if token is not None)
    count = shape[0] * shape[1]
    token_ids = np.full(count, pad, np.int64)
    token_ids[: len(tokens)] = tokens
    token_ids, mask = token_ids.reshape(shape), (np.arange(count) < len(tokens)).reshape(shape)
    if bos is not None:
        token_ids = np.insert(token_ids, 0, np.where(mask[:, 0], bos, pad), axis=1)
        mask = np.insert(mask, 0, mask[:, 0], axis=1)
    seq_ids = torch.arange(index * shape[0], (index + 1) * shape[0])
    return PackedBatch(index, torch.from_numpy(token_ids), torch.from_numpy(mask), seq_ids)


def _cut(pieces: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """The pieces end to end, in runs of ``size``; the last run may be shorter."""
    held: list[np.ndarray] = []
    count = 0
    for piece in pieces:
        held.append(piece)
        count += len(piece)
        if count >= size:
            joined = np.concatenate(held)
            whole = count // size * size
            yield from joined[:whole].reshape(-1, size)
            held, count = [joined[whole:]], count - whole
    if count:
        yield np.concatenate(held)


def _pieces(texts: Iterable[Any], tokenizer: Tokenizer, bos: bool, max_tokens: int | None) -> Iterator[np.ndarray]:
    """Token ids of each piece of text, with EOS between documents and BOS before them where wanted."""
    special = [
        token for token in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) if token is not None
    ]
    opening = np.array([tokenizer.bos_token_id] if bos else [], np.int64)
    joint = np.array([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id], np.int64)
    left = max_tokens
    for number, (opens, tokens) in enumerate(_tokenize(texts, tokenizer)):
        if left is not None:
            real = np.flatnonzero(~np.isin(tokens, special))
            tokens = tokens[: real[left - 1] + 1] if len(real) >= left else tokens
            left -= min(left, len(real))
        if opens:
            yield np.concatenate([joint[: bool(number)], opening, tokens])
        else:
            yield tokens
        if left == 0:
            return


def _tokenize(texts: Iterable[Any], tokenizer: Tokenizer) -> Iterator[tuple[bool, np.ndarray]]:
    """Whether a piece opens a document, and its ids; tokenised many at a time, as fast tokenizers like it."""
    # in pieces cut before white space, where few tokenizers merge, so that memory does not grow with a document
    for group in _groups(_split(texts)):
        encoded = tokenizer([text for _, text in group], add_special_tokens=False)["input_ids"]
        for (opens, _), ids in zip(group, encoded, strict=True):
            yield opens, np.asarray(ids, np.int64)


def _split(texts: Iterable[Any]) -> Iterator[tuple[bool, Any]]:
    """Documents in pieces of at most ``_PIECE`` characters, cut before white space; what is no text stays whole."""
    for text in texts:
        if not isinstance(text, str):
            yield True, text
            continue
        first = 0
        while len(text) - first > _PIECE:
            space = max(text.rfind(blank, first + 1, first + _PIECE) for blank in " \n")
            cut = space if space > 0 else first + _PIECE
            yield first == 0, text[first:cut]
            first = cut
        yield first == 0, text[first:]


def _groups(pieces: Iterator[tuple[bool, Any]]) -> Iterator[list[tuple[bool, Any]]]:
    """Consecutive pieces, at most 256 and about ``_PIECE`` characters together."""
    for piece in pieces:
        group, size = [piece], len(piece[1])
        for piece in itertools.islice(pieces, 255 if size < _PIECE else 0):
            group.append(piece)
            size += len(piece[1])
            if size >= _PIECE:
                break
        yield group
