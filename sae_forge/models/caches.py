"""Caches of a model as rows of texts: chosen, repeated and branched, with all that edits remember of those texts."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from sae_forge.models.loading import LanguageModel

Carried = tuple[Any, ...]
"""What a rewrite remembers of each text: tensors whose first axis is the batch, in tuples as deep as need be."""

CARRIED = "sae_forge_carried"
"""Where a cache has it, by block and beside how many tokens that block has seen."""

_KEYS_ALONE = {"DynamicLayer", "DynamicSlidingWindowLayer", "DummyLayer"}
"""Of transformers' kinds of layers in a cache; the last stands for one that reads another's keys."""


def select_rows(cache: Any, rows: Int[Tensor, " n"]) -> None:
    """Keep these rows of a cache, in this order and as often as named, with all that edits remember of their texts."""
    cache.reorder_cache(rows)  # a row selection for every kind of layer, those that keep a running state among them
    kept = getattr(cache, CARRIED, {})
    kept.update({block: (seen, _selected(carried, rows)) for block, (seen, carried) in kept.items()})


def branches(lm: LanguageModel) -> bool:
    """Whether the model's texts can go on from :func:`branched` caches: all it remembers are keys and values."""
    return all(type(layer).__name__ in _KEYS_ALONE for layer in DynamicCache(config=lm.model.config).layers)


def branched(cache: DynamicCache, rows: Int[Tensor, " n"], columns: Int[Tensor, "n width"]) -> DynamicCache:
    """A new cache of these rows of one that holds every token, of each only these columns; the given one stays."""
    new = DynamicCache()  # told of no config, it keeps what has left a sliding window: another row may not be so far
    for layer in cache.layers:
        new.layers.append(mine := DynamicLayer())
        # a layer that reads the keys of another has none of its own
        if isinstance(layer, DynamicLayer) and layer.keys is not None and layer.values is not None:
            keys, values = (_cells(part, rows, columns) for part in (layer.keys, layer.values))
            mine.lazy_initialization(keys, values)
            mine.keys, mine.values = keys, values
    kept, held = getattr(cache, CARRIED, {}), cache.get_seq_length()
    now = {block: (columns.shape[1], _selected(own, rows)) for block, (seen, own) in kept.items() if seen == held}
    setattr(new, CARRIED, now)
    return new


def _cells(
    part: Float[Tensor, "batch heads held d_head"], rows: Int[Tensor, " n"], columns: Int[Tensor, "n width"]
) -> Float[Tensor, "n heads width d_head"]:
    _, heads, held, d_head = part.shape
    first = (rows[:, None] * heads + torch.arange(heads)) * held
    chosen = (first[:, :, None] + columns[:, None, :]).flatten().to(part.device)
    return part.reshape(-1, d_head).index_select(0, chosen).view(len(rows), heads, -1, d_head)


def _selected(carried: Carried, rows: Tensor) -> Carried:
    return tuple(
        part.index_select(0, rows.to(part.device)) if isinstance(part, Tensor) else _selected(part, rows)
        for part in carried
    )
