"""What of an evaluation falls to this process: all of it, or a share beside other ranks or other jobs of an array.

Shares meet in files: each writes the answers it got, and whoever has all of them makes the report. So what is split are
whole things asked of whole subjects, whose batches and sums are those of one process.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sae_forge import ranks
from sae_forge.config.evaluate import EvalConfig


class Elsewhere(Exception):  # noqa: N818 (nothing is wrong)
    """No report is made here: the first rank makes it, or whoever comes when all parts are measured."""


@dataclass(frozen=True)
class Share:
    """One of several equal shares, counted from 0."""

    number: int = 0
    of: int = 1

    @classmethod
    def here(cls, config: EvalConfig) -> "Share":
        """This process's: the part that was asked for, shared out to the ranks of the job."""
        team, (part, parts) = ranks.here(), config.job
        return cls(part * team.world + team.rank, parts * team.world)

    @property
    def whole(self) -> bool:
        """Whether there are no others."""
        return self.of == 1

    def dealt(self, count: int) -> range:
        """Every n-th of so many pieces: for those that cost alike."""
        return range(self.number, count, self.of)

    def cut(self, costs: Sequence[int]) -> list[int]:
        """The pieces of one stretch that costs about as much as every other share's."""
        total, before, mine = max(1, sum(costs)), 0, []
        for piece, cost in enumerate(costs):
            # by where the middle of a piece lies, so that each piece has one owner whatever rounding does
            if (2 * before + cost) * self.of // (2 * total) == self.number:
                mine.append(piece)
            before += cost
        return mine


ALL = Share()
