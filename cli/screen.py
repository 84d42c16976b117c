"""What a person sees: bars and prose on stderr, results on stdout."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from cli.called import as_called
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
LONG = 2.0
"""Seconds after which what counts nothing is worth a line there."""
PATIENCE = 300.0
"""Seconds that a command may work there without a word; the first are twice ``LOG_EVERY``, then twice as many each time."""


class _BarTask:
    """A bar on a terminal."""

    def __init__(self, bars: Progress, task: TaskID, total: int | None, unit: str) -> None:
        self._bars, self._task, self._total, self._unit, self._done = bars, task, total, unit, 0

    def advance(self, amount: int, **facts: float | str) -> None:
        self._done += amount
        shown = amount_of(self._done, self._total, self._unit)
        self._bars.update(self._task, advance=amount, amount=shown, facts=_join(facts))


class _LineTask:
    """A line every few seconds, for logs and pipes."""

    def __init__(self, title: str, total: int | None, unit: str, heard: Callable[[], None]) -> None:
        self._title, self._total, self._unit, self._heard = title, total, unit, heard
        self._done, self._facts = 0, ""
        self._started = self._spoke = time.monotonic()

    def advance(self, amount: int, **facts: float | str) -> None:
        self._done += amount
        self._facts = _join(facts) or self._facts
        if time.monotonic() - self._spoke > LOG_EVERY:
            self.speak()

    @property
    def is_long(self) -> bool:
        """Whether somebody may have wondered."""
        return time.monotonic() - self._started > LONG

    def speak(self) -> None:
        self._spoke = time.monotonic()
        self._heard()
        seconds = self._spoke - self._started
        left = ""
        if self._total and 0 < self._done < self._total:
            left = f", about {seconds * (self._total - self._done) / self._done:.0f} s left"
        amount = amount_of(self._done, self._total, self._unit)
        told = f"{amount}, {seconds:.0f} s" if amount else f"{seconds:.0f} s"
        print(f"{self._title}: {told}{left}  {self._facts}".rstrip(), file=sys.stderr)  # noqa: T201


class _Heart:
    """Says, seldom and more and more so, that work goes on where nothing else has been said for long."""

    def __init__(self) -> None:
        self._started = self._last = time.monotonic()
        self._wait, self._over = 2 * LOG_EVERY, threading.Event()  # what counts itself speaks sooner
        threading.Thread(target=self._beat, daemon=True).start()

    def heard(self) -> None:
        """Something was said."""
        self._last, self._wait = time.monotonic(), 2 * LOG_EVERY

    def stop(self) -> None:
        """Say nothing more."""
        self._over.set()

    def _beat(self) -> None:
        while not self._over.wait(max(0.01, self._last + self._wait - time.monotonic())):
            if time.monotonic() >= self._last + self._wait:
                self._last, self._wait = time.monotonic(), min(2 * self._wait, PATIENCE)
                print(f"working, {self._last - self._started:.0f} s since the start", file=sys.stderr)  # noqa: T201


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
            TextColumn("{task.fields[amount]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[facts]}"),
            console=self._console,
            transient=True,
        )
        self._standing: TaskID | None = None
        self._heart: _Heart | None = None

    def __enter__(self) -> Self:
        """From here on somebody who watches sees that work goes on, whether or not it tells of itself."""
        if self._silent:
            return self
        if self._console.is_terminal:
            self._standing = self._bars.add_task("starting", total=None, amount="", facts="")
            self._bars.start()
        else:
            self._heart = _Heart()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        del kind, error, at
        self.stop()

    def stop(self) -> None:
        """Draw no more bars: the terminal is somebody else's from here on."""
        self._bars.stop()
        if self._heart is not None:
            self._heart.stop()

    def _heard(self) -> None:
        if self._heart is not None:
            self._heart.heard()

    def say(self, line: str) -> None:
        self._heard()
        self._console.print(as_called(line), markup=False)

    @contextmanager
    def task(self, title: str, total: int | None, unit: str) -> Iterator[Task]:
        if self._silent:
            with SILENT.task(title, total, unit) as task:
                yield task
        elif self._console.is_terminal:
            task = self._bars.add_task(title, total=total, amount=amount_of(0, total, unit), facts="")
            if self._standing is not None:
                self._bars.update(self._standing, visible=False)
            try:
                yield _BarTask(self._bars, task, total, unit)
            finally:
                self._bars.remove_task(task)
                if self._standing is not None and len(self._bars.task_ids) == 1:
                    self._bars.reset(self._standing, description="working", visible=True)
        else:
            lines = _LineTask(title, total, unit, self._heard)
            yield lines
            if unit or lines.is_long:
                lines.speak()

    def writer(self) -> "Watch | None":
        """What prints continuations while they are written, where a person is watching stdout; else None."""
        if not sys.stdout.isatty() or self._silent or self.machine:
            return None
        writing = Writing(Console(highlight=False, soft_wrap=True))

        def take(prompt: str, title: str, token: "Token") -> None:
            self.stop()  # two things that write to one terminal at once
            writing.take(prompt, title, token)

        return take

    def show(self, outcome: Outcome) -> None:
        """Print a result for a person: its tables, its summary, and the command to try next."""
        console = Console(
            highlight=False, soft_wrap=not sys.stdout.isatty(), width=None if sys.stdout.isatty() else PIPE
        )
        for sheet in outcome.tables:
            for part in tables(sheet, console.width):
                console.print(part, markup=False)
        console.print(as_called(outcome.summary), markup=False)
        match outcome.then:
            case (command,) | str(command):
                console.print(f"\nnext: {as_called(command)}", markup=False)
            case [_, *_] as commands:
                console.print(
                    "\n".join(["\nnext:", *(f"  {as_called(command)}" for command in commands)]), markup=False
                )


def amount_of(done: int, total: int | None, unit: str) -> str:
    """How far something is; nothing where it is not counted."""
    return f"{done:,}{f'/{total:,}' if total else ''} {unit}" if unit else ""


def _join(facts: dict[str, float | str]) -> str:
    return "  ".join(
        f"{name} {value:,.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in facts.items()
    )
