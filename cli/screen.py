"""What a person sees: bars and prose on stderr, results on stdout."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from sae_forge.outcome import Outcome
from sae_forge.progress import SILENT, Task
from sae_forge.show.terminal import tables

if TYPE_CHECKING:
    from sae_forge.live.session import Token
    from sae_forge.pipeline.generate import Watch

PIPE = 80
"""Columns of tables where stdout is no terminal."""
LOG_EVERY = 10.0
"""Seconds between progress lines where stderr is no terminal."""


class _BarTask:
    """A bar on a terminal."""

    def __init__(self, bars: Progress, task: TaskID) -> None:
        self._bars, self._task = bars, task

    def advance(self, amount: int, **facts: float | str) -> None:
        self._bars.update(self._task, advance=amount, facts=_join(facts))


class _LineTask:
    """A line every few seconds, for logs and pipes."""

    def __init__(self, title: str, total: int | None, unit: str) -> None:
        self._title, self._total, self._unit = title, total, unit
        self._done, self._facts = 0, ""
        self._started = self._spoke = time.monotonic()

    def advance(self, amount: int, **facts: float | str) -> None:
        self._done += amount
        self._facts = _join(facts) or self._facts
        if time.monotonic() - self._spoke > LOG_EVERY:
            self.speak()

    def speak(self) -> None:
        self._spoke = time.monotonic()
        of = f"/{self._total:,}" if self._total else ""
        seconds = self._spoke - self._started
        print(  # noqa: T201
            f"{self._title}: {self._done:,}{of} {self._unit}, {seconds:.0f} s  {self._facts}".rstrip(), file=sys.stderr
        )


class Writing:
    """Continuations printed while they are written, a heading for each; what an edit changed stands out.

    After a token that was edited stand its latents, strongest first.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._heading: tuple[str, str] | None = None
        self.texts: dict[str, str] = {}
        """What was written so far, by what it was written under."""

    def take(self, prompt: str, title: str, token: "Token") -> None:
        """Print a token, if the model wrote it."""
        from sae_forge.pipeline.generate import marks

        if (prompt, title) != self._heading:
            self._heading = (prompt, title)
            self._console.print(Text.assemble("\n", (title, "bold cyan"), "\n", (prompt, "dim")), end="")
        if token.written:
            self.texts[title] = self.texts.get(title, "") + token.piece
            latents = marks(token)
            shown = Text(token.piece, style="reverse" if latents else "")
            self._console.print(shown + Text(f"[{latents}]" if latents else "", style="dim"), end="")
            self._console.file.flush()


class Screen:
    """The command line's Progress; of several ranks all but the first are silent."""

    def __init__(self, *, silent: bool = False, machine: bool = False) -> None:
        self._silent = silent
        self.machine = machine
        """Whether stdout is one JSON object."""
        self._console = Console(stderr=True, highlight=False, soft_wrap=True, quiet=silent)
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:,.0f}/{task.fields[of]} {task.fields[unit]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[facts]}"),
            console=self._console,
            transient=True,
        )

    def __enter__(self) -> Self:
        if self._console.is_terminal and not self._silent:
            self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        del kind, error, at
        self._bars.stop()

    def stop(self) -> None:
        """Draw no more bars: the terminal is somebody else's from here on."""
        self._bars.stop()

    def say(self, line: str) -> None:
        self._console.print(line, markup=False)

    @contextmanager
    def task(self, title: str, total: int | None, unit: str) -> Iterator[Task]:
        if self._silent:
            with SILENT.task(title, total, unit) as task:
                yield task
        elif self._console.is_terminal:
            of = f"{total:,}" if total else "?"
            task = self._bars.add_task(title, total=total, of=of, unit=unit, facts="")
            try:
                yield _BarTask(self._bars, task)
            finally:
                self._bars.remove_task(task)
        else:
            lines = _LineTask(title, total, unit)
            yield lines
            lines.speak()

    def writer(self) -> "Watch | None":
        """What prints continuations while they are written, where a person is watching stdout; else None."""
        if not sys.stdout.isatty() or self._silent or self.machine:
            return None
        self.stop()  # two things that write to one terminal at once
        return Writing(Console(highlight=False, soft_wrap=True)).take

    def show(self, outcome: Outcome) -> None:
        """Print a result for a person: its tables, its summary, and the command to try next."""
        console = Console(
            highlight=False, soft_wrap=not sys.stdout.isatty(), width=None if sys.stdout.isatty() else PIPE
        )
        for sheet in outcome.tables:
            for part in tables(sheet, console.width):
                console.print(part, markup=False)
        console.print(outcome.summary, markup=False)
        if outcome.then:
            console.print(f"\nnext: {outcome.then}", markup=False)


def _join(facts: dict[str, float | str]) -> str:
    return "  ".join(
        f"{name} {value:,.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in facts.items()
    )
