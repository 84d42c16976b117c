"""What every reader of a foreign format asks before it believes a file: sizes, shapes, and numbers that are finite."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_forge.errors import CheckpointError

MAX_SIZE = 2**24
"""Beyond any width or number of latents there is."""


def positive(settings: Mapping[str, Any], name: str, path: Path) -> int:
    """A size that the settings in ``path`` give."""
    value = settings.get(name)
    if type(value) is not int or not 1 <= value <= MAX_SIZE:
        raise CheckpointError(f"{path} gives {name}={str(value)[:40]}; it must be a whole number above 0")
    return value


def require_shapes(path: Path, found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse other tensors than are expected, or tensors of other shapes."""
    if set(found) != set(expected):
        shown = sorted(name[:30] for name in found)[:6]
        raise CheckpointError(f"{path}: expected the tensors {', '.join(sorted(expected))}, found {', '.join(shown)}")
    for name, shape in expected.items():
        if tuple(found[name]) != shape:
            raise CheckpointError(f"{path}: expected {name} of shape {list(shape)}, found {list(found[name])[:8]}")


def require_finite(path: Path, found: Mapping[str, Tensor]) -> None:
    """Refuse weights with NaN or infinity in them."""
    for name, tensor in found.items():
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{path} is damaged: {name} holds numbers that are not finite")
