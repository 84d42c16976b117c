"""What every measurement becomes: a number with its interval, apart from how it is made: a report needs no numpy."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """A number and the 95 % interval it was measured with."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        """The form every estimate has in a report."""
        return {"value": self.value, "low": self.low, "high": self.high}

    def transformed(self, rising: Callable[[float], float]) -> "Estimate":
        """The estimate of ``rising(value)``, for a function that never falls."""
        return Estimate(rising(self.value), rising(self.low), rising(self.high))

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"
