"""The last layer of a model where it is read: of all other tokens it computes keys and values, and no more.

A pass whose logits are wanted of few tokens needs attention and MLP of its last layer for these alone, since no layer
stands above that would look at the others. So the layer is called twice: with all tokens, as far as it hands their keys
and values to its cache, and then with those that are read, which find them there. It is the layer's own code both
times, so the families of the table, which tests hold to it, need not be told apart. One's own is left alone: attention
may know by itself which column it is at, as GPT-Neo's does.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from sae_forge.models.by_row import ROWS, divisible
from sae_forge.models.caches import branches
from sae_forge.models.diverting import Forward, diverted, given_to
from sae_forge.models.families import FAMILIES
from sae_forge.models.loading import LanguageModel

_CUTS = "sae_forge_cuts"


class _Cut(NamedTuple):
    columns: Int[Tensor, "batch read"]
    seq: int


_CUT: ContextVar[_Cut | None] = ContextVar("tokens of the pass under way that are read", default=None)


class _Known(Exception):  # noqa: N818 (a signal from the cache to the layer's caller, never an error)
    """Ends a layer from inside: the keys and values of all its tokens are known."""


@contextmanager
def reading(lm: LanguageModel, columns: Int[Tensor, "batch read"], seq: int) -> Iterator[None]:
    """Inside the block, what the last layer gives in other columns of a pass need mean nothing.

    Args:
        columns: Of each row, one at least; a row that has fewer repeats some.
        seq: Tokens of a row.
    """
    before = _CUT.set(_Cut(columns, seq))
    try:
        with cuttable(lm):
            yield
    finally:
        _CUT.reset(before)


@contextmanager
def cuttable(lm: LanguageModel, *, whole: bool = False) -> Iterator[None]:
    """Inside the block, the last layer heeds what is ``reading``. Who diverts it too, to give it some rows only, does
    so inside this block and says in ``ROWS`` which.

    Args:
        whole: It does not: somebody must be given all tokens, whatever is read.
    """
    layer = lm.layer(lm.n_layers - 1)
    if hasattr(layer, _CUTS) or lm.family not in FAMILIES.values() or not branches(lm):
        yield
        return
    setattr(layer, _CUTS, True)
    try:
        with nullcontext() if whole else diverted(layer, partial(_cutting, lm)):
            yield
    finally:
        delattr(layer, _CUTS)


def _cutting(lm: LanguageModel, layer: nn.Module, own: Forward) -> Forward:

    @torch.compiler.disable
    def forward(*args: Any, **kwargs: Any) -> Any:
        cut = _CUT.get()
        if cut is None:
            return own(*args, **kwargs)
        given, name = given_to(layer, args, kwargs), lm.family.cache_argument
        rows = ROWS.get()
        columns = cut.columns if rows is None else cut.columns[rows.to(cut.columns.device)]
        if not _divisible(lm, layer, {**given, name: None}, columns, cut.seq):
            return own(*args, **kwargs)
        cache = DynamicCache() if given.get(name) is None else given[name]
        return _twice(own, {**given, name: cache}, cache, columns.to(given["hidden_states"].device))

    return forward


def _divisible(lm: LanguageModel, layer: nn.Module, given: Mapping[str, Any], columns: Tensor, seq: int) -> bool:
    """Whether tokens may be left out of the layer.

    Args:
        given: What it is called with, the cache aside.
    """
    mask, turned = given.get("attention_mask"), given.get("position_embeddings") or ()
    if mask is None:  # left out where attention knows by itself that it is causal
        maskable = lm.model.config._attn_implementation == "sdpa"
    else:
        maskable = isinstance(mask, Tensor) and mask.ndim == 4 and mask.shape[2] == seq
    whole = given["hidden_states"].shape[:2] == (len(columns), seq)
    return maskable and whole and all(part.ndim == 3 for part in turned) and divisible([layer], given)


def _twice(own: Forward, given: Mapping[str, Any], cache: DynamicCache, columns: Tensor) -> Any:
    """What the layer gives for the columns, and zeros elsewhere; all where it asks nothing of its cache."""
    update, known, hidden = cache.update, [], given["hidden_states"]

    def note(*args: Any, **kwargs: Any) -> Any:
        known[:] = update(*args, **kwargs)
        raise _Known

    try:
        cache.update = note
        return own(**given)
    except _Known:
        cells = torch.arange(len(columns), device=columns.device)[:, None], columns
        cache.update = lambda *_, **_named: tuple(known)
        output = own(**_of_cells(given, cells, held=known[0].shape[-2] - hidden.shape[1]))
        some = output[0] if isinstance(output, tuple) else output
        every = some.new_zeros(hidden.shape)  # a layer may lie on another device than what it is given
        every[tuple(part.to(some.device) for part in cells)] = some
        return (every, *output[1:]) if isinstance(output, tuple) else every
    finally:
        del cache.update


def _of_cells(given: Mapping[str, Any], cells: tuple[Tensor, Tensor], held: int) -> dict[str, Any]:
    """The call for some tokens of each row, which see what they do among all.

    Args:
        cells: Their rows and columns, ``[rows, read]``.
        held: Earlier tokens in the cache.
    """
    rows, columns = cells
    seq = given["hidden_states"].shape[1]

    def read(part: Tensor) -> Tensor:
        return part.expand(len(rows), *part.shape[1:])[cells]

    some: dict[str, Any] = {"hidden_states": read(given["hidden_states"])}
    if (positions := given.get("position_ids")) is not None:
        some["position_ids"] = read(positions)
    if turned := given.get("position_embeddings"):
        some["position_embeddings"] = tuple(map(read, turned))
    if (mask := given.get("attention_mask")) is not None:
        some["attention_mask"] = read(mask.transpose(1, 2)).transpose(1, 2)
    else:
        some["attention_mask"] = torch.arange(held + seq, device=columns.device) <= held + columns[:, None, :, None]
    return {**given, **some}
