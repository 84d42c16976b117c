"""Decoder layers as functions of single rows: whether some rows of a pass may run without the others, and how."""

from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

ARGUMENTS = ("hidden_states", "attention_mask", "position_ids", "position_embeddings")
"""Of a layer, those that may be given for some rows alone."""
_PLAIN = (bool, int, float, str)
_AT_REST = "transformers.utils.output_capturing"
"""Whose hooks stay for ever once hidden states were asked for, and look at nothing when they are not."""

ROWS: ContextVar[Int[Tensor, " n"] | None] = ContextVar("rows of a pass that run", default=None)
"""Those that a layer is called with; None: all."""


def divisible(layers: Sequence[nn.Module], given: Mapping[str, Any]) -> bool:
    """Whether these layers may be called with a part of what they are given: it can be cut, and nobody looks on.

    Args:
        given: What the lowest of them is called with.
    """
    hidden, positions = given["hidden_states"], given.get("position_ids")
    if torch.is_grad_enabled() or hidden.ndim != 3 or (positions is not None and positions.ndim != 2):
        return False
    for name, value in given.items():
        parts = value if name in ARGUMENTS and isinstance(value, tuple) else (value,)
        # a cache must hold every row, and of arguments unknown here nobody can say which axis the rows are
        known = (Tensor, *_PLAIN) if name in ARGUMENTS else _PLAIN
        if not all(part is None or isinstance(part, known) for part in parts):
            return False
    modules = [module for layer in layers for module in layer.modules()]
    hooks = [hook for module in modules for hook in module._forward_hooks.values()]
    # what stands before the lowest layer has run, and needs nothing from above
    hooks += [hook for module in modules if module is not layers[0] for hook in module._forward_pre_hooks.values()]
    return all(getattr(hook, "__module__", None) == _AT_REST for hook in hooks)


def separable(layers: Sequence[nn.Module], given: Mapping[str, Any], batch: int) -> bool:
    """Whether rows may be left out of these layers and all above: nothing else depends on them, or looks on.

    Args:
        given: What the lowest of them is called with.
    """
    alike = len({type(layer) for layer in layers}) == 1
    return alike and len(given["hidden_states"]) == batch and divisible(layers, given)


def of_rows(given: Mapping[str, Any], batch: int, rows: Int[Tensor, " n"]) -> dict[str, Any]:
    """The same call for these rows; what is said of all rows at once stays."""
    return {name: _of_rows(value, batch, rows) if name in ARGUMENTS else value for name, value in given.items()}


def _of_rows(value: Any, batch: int, rows: Tensor) -> Any:
    if isinstance(value, tuple):
        return tuple(_of_rows(part, batch, rows) for part in value)
    return value.index_select(0, rows.to(value.device)) if value is not None and len(value) == batch else value
