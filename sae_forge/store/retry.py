"""How often and how long one thing is tried: waits that double, and an end."""

import time
from dataclasses import dataclass


@dataclass(kw_only=True)
class Patience:
    """What is left of the will to try one thing again; kept by whoever tries."""

    tries: int
    """How often it is tried at most."""
    first: float
    """Seconds before the second try; each wait is twice the one before."""
    longest: float
    """Seconds of a wait at most, unless the other side names them."""
    seconds: float
    """Until no further try begins."""
    until: float | None = None
    """The moment, of the monotonic clock, when these have passed; None: they begin with the first failure."""
    failed: int = 0
    """Tries so far, all of them in vain."""

    def next_wait(self, *, asked: float | None = None, tries: int | None = None) -> float | None:
        """Seconds to wait after a failure; None when enough was tried.

        Args:
            asked: Seconds the other side asks for.
            tries: How often a failure of this kind is worth trying, where that is less.
        """
        self.failed += 1
        now = time.monotonic()
        # the clock starts with the first failure, so a slow first try costs no later one
        self.until = now + self.seconds if self.until is None else self.until
        wait = min(self.longest, self.first * 2 ** (self.failed - 1)) if asked is None else asked
        enough = self.failed >= min(self.tries, self.tries if tries is None else tries)
        return None if enough or now + wait > self.until else wait
