"""What a field of a config can say of itself beside its type and its help."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Alias:
    """A second spelling of a flag, for ``Annotated``."""

    name: str


def distinct(numbers: tuple[int, ...], *, least: int) -> bool:
    """Whether every number is there once and none is below the least."""
    return bool(numbers) and len(set(numbers)) == len(numbers) and min(numbers) >= least
