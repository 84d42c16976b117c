"""What every reader of a format asks before it believes its settings."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sae_forge.errors import CheckpointError

MAX_SIZE = 2**24
"""Beyond any width or number of latents there is."""


def positive(settings: Mapping[str, Any], name: str, path: Path) -> int:
    """A size that the settings in ``path`` give."""
    value = settings.get(name)
    if type(value) is not int or not 1 <= value <= MAX_SIZE:
        raise CheckpointError(f"{path} gives {name}={str(value)[:40]}; it must be a whole number above 0")
    return value
