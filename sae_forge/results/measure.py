"""What one number of an item is: said once by the task that measures it, printed by whoever shows it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from sae_forge.store.records import OMITTED

if TYPE_CHECKING:  # numpy stays out of --help
    from sae_forge.statistics.bootstrap import Bootstrap, Estimate


PART = "share of answers"
"""The unit of measures that are the parts of one whole."""


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
    yes_or_no: bool = field(default=False, metadata=OMITTED)
    """Whether an item's value is 0 or 1, so that where all are alike the interval is Wilson's, over facts."""
    shown: Literal["always", "in full", "in the file"] = "always"
    """Where it is printed: in the one table of a terminal and in all others; in the others alone; nowhere."""
    note: str = ""
    """What one must know to read the number: ``where 0 is a model retrained without the forget text``."""
    aggregate: Aggregate | None = field(default=None, metadata=OMITTED)
    """From items to an estimate; None: sum of values over sum of weights, resampled by fact."""
    read: Read | None = field(default=None, metadata=OMITTED)
    """From an item to its value and what it is counted over; None: the value of the measure's name, each counting once.

    An item that has no such value is none of the measure's.
    """
    needs: tuple[str, ...] = field(default=(), metadata=OMITTED)
    """Values without which its aggregate says nothing: each must be in some item."""
    heading: str | None = field(default=None, metadata=OMITTED)
    """Where it stands if not under the heading of its task."""
    derived: bool = field(default=False, metadata=OMITTED)
    """Whether it says no more than another measure does, so that neither changes nor controls need its heading."""

    def complete(self, items: Sequence[Any]) -> bool:
        """Whether these items hold all that its aggregate is made of."""
        return all(any(name in item.values for item in items) for name in self.needs)

    def of(self, item: Any) -> tuple[float, float] | None:
        """The item's value and weight; None where the item has none."""
        if self.read is not None:
            return self.read(item)
        value = item.values.get(self.name)
        return None if value is None else (value, item.weights.get(self.name, 1.0))
