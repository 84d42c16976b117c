"""How the library tells a watcher what it is doing: it never prints, it calls back."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, runtime_checkable


@runtime_checkable
class Task(Protocol):
    """One stretch of long work that is under way."""

    def advance(self, amount: int, **facts: float | str) -> None:
        """``amount`` more units are done; ``facts`` (a rate, a loss) replace those shown before."""
        ...


@runtime_checkable
class Progress(Protocol):
    """Where long work reports to; the command line draws bars, the library default is silent."""

    def say(self, line: str) -> None:
        """One sentence for the person watching: a plan, a warning, a stage that was skipped."""
        ...

    def task(self, title: str, total: int | None, unit: str) -> AbstractContextManager[Task]:
        """Open a stretch of ``total`` units (None: unknown), closed when the context ends."""
        ...


class _SilentTask:
    def advance(self, amount: int, **facts: float | str) -> None:
        del amount, facts


class Silent:
    """Progress that goes nowhere."""

    def say(self, line: str) -> None:
        del line

    @contextmanager
    def task(self, title: str, total: int | None, unit: str) -> Iterator[Task]:
        del title, total, unit
        yield _SilentTask()


SILENT: Progress = Silent()
