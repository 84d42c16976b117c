"""What one number of an item is: said once by the task that measures it, printed by whoever shows it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from sae_forge.errors import DataError

if TYPE_CHECKING:  # numpy stays out of --help
    from sae_forge.statistics.bootstrap import Bootstrap, Estimate

BETTER = ("up", "down", "neither")


class Counted(Protocol):
    """What an aggregation reads of an item: its values and what they count over, and which fact it is about."""

    @property
    def fact(self) -> str: ...
    @property
    def values(self) -> Mapping[str, float | tuple[float, ...]]: ...
    @property
    def weights(self) -> Mapping[str, float]: ...


Aggregate = Callable[[Sequence[Any], "Bootstrap"], "Estimate"]
"""From items (see :class:`Counted`) to one estimate."""


Read = Callable[[Any], tuple[float, float]]
"""From an item to its value and its weight."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One thing that is measured of an item, and how it is said and summed up."""

    name: str
    """Its key in a report: ``accuracy``."""
    words: str
    """For tables and sentences: ``question accuracy``."""
    unit: str = ""
    """``nats per token``, ``x 100``, ``share``; nothing where the words say it."""
    better: Literal["up", "down", "neither"] = "neither"
    """Which way is better for what is kept; what is forgotten wants the opposite."""
    chance: float | None = None
    """Where guessing lies, if that is the same for all items."""
    digits: int = 2
    """Digits after the point in a table."""
    aggregate: Aggregate | None = None
    """From items to an estimate; None: sum of values over sum of weights, resampled by fact."""
    read: Read | None = None
    """From an item to its value and what it is counted over; None: the value of the measure's name, each counting once.

    An item that has no such value is none of the measure's.
    """
    heading: str | None = None
    """Where it stands if not under the heading of its task."""

    def of(self, item: Any) -> tuple[float, float] | None:
        """The item's value and weight; None where the item has none."""
        if self.read is not None:
            return self.read(item)
        value = item.values.get(self.name)
        return None if value is None else (value, item.weights.get(self.name, 1.0))

    def to_json(self) -> dict[str, Any]:
        """What a report keeps of it: all but how it is summed up."""
        return {
            "name": self.name,
            "words": self.words,
            "unit": self.unit,
            "better": self.better,
            "chance": self.chance,
            "digits": self.digits,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Measure":
        """The measure a report describes.

        Raises:
            DataError: a field is missing, unknown or of another type; names it.
        """
        try:
            measure = cls(**value)
        except TypeError as error:
            raise DataError(f"a measure of the report is described by {sorted(value)}: {error}") from error
        if measure.better not in BETTER:
            raise DataError(f"a measure of the report is better {measure.better!r}; possible are: {', '.join(BETTER)}")
        return measure
