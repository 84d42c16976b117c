"""The text around the tokens a latent fires on most: what a person reads before removing it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sae_forge.data.shards import BLOCK_ROWS, ShardReader
from sae_forge.features.places import TopPlaces

CONTEXT = 16
"""Tokens shown on each side of the peak."""

Decode = Callable[[list[int]], str]


@dataclass(frozen=True)
class Snippet:
    """One place where a latent fires strongly."""

    text: str
    """Surrounding text of the same document, the peak token between « and »."""
    act: float
    seq_id: int
    position: int


@dataclass(frozen=True)
class _Rows:
    """What a block says of its tokens, without the activations."""

    seq_ids: Tensor
    positions: Tensor
    token_ids: Tensor


def read_snippets(
    reader: ShardReader, top: TopPlaces, latents: Sequence[int], decode: Decode
) -> list[tuple[Snippet, ...]]:
    """The snippets of each latent, strongest first.

    Reads each block of the corpus that holds one of these places, and its neighbours, once.
    """
    places = [[place for place in top.places[latent].tolist() if place >= 0] for latent in latents]
    wanted = {place // BLOCK_ROWS + step for its in places for place in its for step in (-1, 0, 1)}
    blocks = {}
    for number in sorted(wanted & set(range(reader.block_count))):
        block = reader.read_block(number)
        blocks[number] = _Rows(block.seq_ids, block.positions, block.token_ids)
    return [
        tuple(_snippet(blocks, place, act, decode) for place, act in zip(its, top.acts[latent].tolist(), strict=False))
        for latent, its in zip(latents, places, strict=True)
    ]


def _snippet(blocks: dict[int, _Rows], place: int, act: float, decode: Decode) -> Snippet:
    number, row = divmod(place, BLOCK_ROWS)
    near = [blocks[n] for n in (number - 1, number, number + 1) if n in blocks]
    seq_ids, positions, token_ids = (
        torch.cat([getattr(rows, name) for rows in near]) for name in ("seq_ids", "positions", "token_ids")
    )
    peak = row + (len(blocks[number - 1].seq_ids) if number - 1 in blocks else 0)
    # A jump in position is a dropped special token: beyond it lies another document.
    index = torch.arange(len(seq_ids))
    joined = (seq_ids == seq_ids[peak]) & (positions - index == positions[peak] - peak)
    left, right = peak, peak
    while left > 0 and joined[left - 1] and peak - left < CONTEXT:
        left -= 1
    while right < len(seq_ids) - 1 and joined[right + 1] and right - peak < CONTEXT:
        right += 1
    text = marked(token_ids[left : right + 1].tolist(), peak - left, decode)
    return Snippet(text, act, int(seq_ids[peak]), int(positions[peak]))


def marked(token_ids: list[int], peak: int, decode: Decode) -> str:
    """The decoded tokens on one line, ``token_ids[peak]`` between « and », its leading space outside.

    The pieces are cut from the text of the whole, since tokenizers decode a token alone otherwise than in its place.
    """
    before, through, whole = decode(token_ids[:peak]), decode(token_ids[: peak + 1]), decode(token_ids)
    if whole.startswith(through) and through.startswith(before):
        token, after = through[len(before) :], whole[len(through) :]
    else:  # a character split over tokens
        token, after = decode(token_ids[peak : peak + 1]), decode(token_ids[peak + 1 :])
    core = token.strip() or token
    lead, _, trail = token.partition(core)
    return " ".join(f"{before}{lead}«{core}»{trail}{after}".split())
