"""An item: one thing a model was asked, and what came of it. The only measurement there is."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Role = Literal["forget", "neighbour", "retain"]
ROLES: tuple[Role, ...] = ("forget", "neighbour", "retain")


@dataclass(frozen=True, kw_only=True)
class Item:
    """One question, text or prompt under one subject: a row of ``items.parquet``.

    Three values have a meaning wherever they occur: ``correct`` (what was lost and gained is counted by it),
    ``chosen`` with ``option_logprobs`` (which letters were favoured) and ``chance`` (where guessing lies).
    """

    task: str
    """Name of the task that asked."""
    domain: str
    role: str
    id: str
    fact: str
    """What is resampled together: paraphrases share a fact."""
    values: Mapping[str, float | tuple[float, ...]]
    """By name; a measure takes the one of its own name unless it says how it reads an item."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """What a value is counted over, by the value's name; 1 where absent. ``tokens``: of every value."""
    text: str | None = None
    """What the model wrote."""

    @property
    def cluster(self) -> str:
        """Name of its fact among those of all domains."""
        return f"{self.domain}/{self.fact}"
