"""The full-screen conversation of ``demo``: a model as it is and under an edit, side by side, written as one watches.

The model works in a thread of its own and puts tokens into a queue; the screen takes them from there a few times a
second. So a key is answered while the model writes, however long a token takes.
"""

import gc
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from queue import Empty, SimpleQueue
from typing import Any, ClassVar

from rich.text import Text
from textual import events, on
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.css.query import NoMatches
from textual.widgets import Footer, Input, Label, Select, Static, Switch

from cli.talk import LEAVE
from sae_forge.config.generate import DemoConfig
from sae_forge.errors import ForgeError
from sae_forge.live.conversation import Conversation
from sae_forge.live.session import Token
from sae_forge.live.subjects import BASELINE
from sae_forge.outcome import Outcome
from sae_forge.pipeline.bench import Bench
from sae_forge.pipeline.demo import ready
from sae_forge.pipeline.generate import Opened, marks
from sae_forge.progress import Task

PER_SECOND = 20
"""How often what was written meanwhile is shown."""
SWITCH = 0.001
"""Seconds after which a thread that computes in Python lets the screen's have its turn; by default five times as many."""
PAUSE = 0.05
"""Seconds after a key in which no further token is begun, so that the key is shown first."""
SHOWN = 8
"""Latents in the panel."""


class _Loading:
    """Progress as lines of the screen, until the model is there."""

    def __init__(self, say: Any) -> None:
        self._say = say

    def say(self, line: str) -> None:
        self._say(line)

    @contextmanager
    def task(self, title: str, total: int | None, unit: str) -> Iterator[Task]:
        yield _Counted(self._say, title, total, unit)


class _Counted:
    def __init__(self, say: Any, title: str, total: int | None, unit: str) -> None:
        self._say, self._title, self._total, self._unit, self._done = say, title, total, unit, 0

    def advance(self, amount: int, **facts: float | str) -> None:
        del facts
        self._done += amount
        self._say(f"{self._title}: {self._done:,}{f'/{self._total:,}' if self._total else ''} {self._unit}")


@contextmanager
def _a_core_free() -> Iterator[None]:
    """Inside the block the model leaves the screen a core, where there are several."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(max(1, min(before, (os.cpu_count() or 1) - 1)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Demo(App[ForgeError | None]):
    """Both answers side by side, the latents that fire beside them, and below what can be changed."""

    TITLE = "sae-forge demo"
    CSS = """
    #title { height: 1; background: $primary; color: $text; padding: 0 1; }
    #answers { height: 1fr; }
    .answer { width: 2fr; border: round $surface-lighten-2; padding: 0 1; }
    #latents { width: 1fr; border: round $surface-lighten-2; padding: 0 1; }
    #settings { height: 3; }
    #settings Label { padding: 1 1 0 1; }
    #settings Input { width: 14; }
    #method { width: 32; }
    #said { height: auto; min-height: 1; max-height: 10; color: $text-muted; padding: 0 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+s", "send", "Send", priority=True),
        Binding("ctrl+a", "switch", "Edit on/off", priority=True),
        Binding("escape", "stop", "Stop", priority=True),
        Binding("ctrl+q", "quit", "Quit", priority=True),
    ]

    def __init__(self, config: DemoConfig) -> None:
        super().__init__()
        self.config = config
        self.conversation: Conversation | None = None
        self.under: Opened | None = None
        self.bench: Bench | None = None
        self.said: list[dict[str, Any]] = []
        """What was asked and written, by title."""
        self.writing = False
        self._stop = threading.Event()
        self._written: SimpleQueue[tuple[str, Token] | ForgeError | None] = SimpleQueue()
        self._loaded = ""
        self._typed = 0.0
        """When the last key was pressed."""
        self._painted = threading.Event()
        """Not set while what was written is on its way to the screen."""
        self._painted.set()

    def outcome(self) -> Outcome:
        """Run until the person leaves.

        Raises:
            ForgeError: the model, the SAE or the selection could not be had.
        """
        if (error := self.run()) is not None:
            raise error
        assert self.bench is not None
        return Outcome(
            run=self.bench.run,
            outputs={} if self.under is None else {"selection": self.under.selection},
            metrics={"prompts": self.said},
            summary="the model is itself again: an edit lives in the forward pass, not in the weights",
            then=None if self.under is None else self.bench.next("generate", "--interactive"),
            noted=False,
        )

    async def on_event(self, event: events.Event) -> None:
        """As any app does, and note the time of a key."""
        if isinstance(event, events.Key):
            self._typed = time.monotonic()
        await super().on_event(event)

    # ---- screen -----------------------------------------------------------------------------

    def compose(self) -> ComposeResult:
        """What there is to see."""
        yield Static(f"{self.config.model}: loading …", id="title", markup=False)
        with Horizontal(id="answers"):
            with VerticalScroll(id="plain", classes="answer"):
                pass
            with VerticalScroll(id="edited", classes="answer"):
                pass
            yield VerticalScroll(Static(id="fired"), id="latents")
        yield Static(id="said", markup=False)
        yield Input(placeholder="Write here; / begins a command, /help lists them", id="line")
        with Horizontal(id="settings"):
            yield Label("edit")
            yield Switch(value=True, id="on")
            yield Select[str]([], prompt="method", id="method")
            yield Label("scale")
            yield Input(id="scale", restrict=r"[-+0-9.eE]*")
            yield Label("latents")
            yield Input(id="number", restrict=r"[0-9, ]*")
        yield Footer()

    def on_mount(self) -> None:
        """Begin to load, and to show what comes."""
        self.query_one("#plain").border_title = "as it is"
        self.query_one("#edited").border_title = "under the edit"
        self.query_one("#latents").border_title = "latents firing"
        self.query_one("#line", Input).disabled = True
        self.set_interval(1 / PER_SECOND, self.show_written)
        sys.setswitchinterval(SWITCH)
        self.run_worker(self._load, thread=True)

    def on_unmount(self) -> None:
        """Leave the process as it was."""
        gc.unfreeze()

    def _load(self) -> None:
        """In a thread: all that is needed to write, made where it is missing."""
        try:
            self.bench = bench = Bench(self.config, _Loading(self._tell_loading))
            self.under = under = ready(self.config, bench)
            conversation = under.conversation(self.config, compare=True)
        except ForgeError as error:
            self.call_from_thread(self.exit, error)
            return
        # a full collection goes through all that torch and the model are made of: 0.4 s in which no key is shown
        gc.collect()
        gc.freeze()
        self.call_from_thread(self._begin, conversation)

    def _tell_loading(self, line: str) -> None:
        self._loaded = line  # shown at the next look; a line for every step would flood the screen

    def _begin(self, conversation: Conversation) -> None:
        self.conversation = conversation
        materials = conversation.subjects.materials
        self.query_one("#title", Static).update(Text(f"{materials.lm.name} · {materials.selection.sae}"))
        options = [(name, name) for name in conversation.subjects.edits()]
        self.query_one("#method", Select).set_options(options)
        self.query_one("#scale", Input).value = f"{conversation.factor:g}"
        self.query_one("#number", Input).value = str(len(conversation.latents))
        line = self.query_one("#line", Input)
        line.disabled = False
        line.focus()
        self.tell("")
        self._show_standing()

    def tell(self, words: str) -> None:
        """A line above the input."""
        self.query_one("#said", Static).update(words)

    def _show_standing(self) -> None:
        assert self.conversation is not None
        edits = ", ".join(self.conversation.edits) if self.conversation.edited else "the edit is off"
        self.query_one("#edited").border_title = edits
        with self.prevent(Switch.Changed):
            self.query_one("#on", Switch).value = self.conversation.edited

    # ---- writing ----------------------------------------------------------------------------

    def action_send(self) -> None:
        """Answer what was typed, or do as it says."""
        field = self.query_one("#line", Input)
        line = field.value.strip()
        if not line or self.conversation is None:
            return
        if not line.startswith("/"):
            if self.writing:
                self.tell("an answer is being written; Escape stops it")
                return
            field.value = ""
            self._ask(line)
            return
        field.value = ""
        if line in LEAVE:
            self.exit()
            return
        self._obey(line)

    def _obey(self, line: str) -> None:
        assert self.conversation is not None
        try:
            self.tell(self.conversation.obey(line) or "")
        except ForgeError as error:
            self.tell(f"error: {error}")
        self._show_standing()

    def _ask(self, line: str) -> None:
        assert self.conversation is not None
        self.writing = True
        self._stop.clear()
        self.said.append({"prompt": line, "texts": {}})
        for column in ("#plain", "#edited"):
            pane = self.query_one(column, VerticalScroll)
            pane.mount(Static(Text(f"> {line}", style="dim")), Static(Text(""), classes="last"))
        # the titles are fixed now: what is changed meanwhile counts for the next answer
        self.run_worker(self._write(line), thread=True)

    def _write(self, line: str) -> Any:
        conversation = self.conversation
        assert conversation is not None

        def work() -> None:
            end: ForgeError | None = None
            try:
                with _a_core_free(), closing(conversation.answer(line)) as answer:
                    for told in answer:
                        self._written.put(told)
                        if (rest := self._typed + PAUSE - time.monotonic()) > 0:
                            time.sleep(rest)
                        # both are Python, and on busy cores every exchange of its lock waits for one of them
                        self._painted.wait(PAUSE)
                        if self._stop.is_set():
                            break
            except ForgeError as error:
                end = error
            self._written.put(end)

        return work

    def show_written(self) -> None:
        """Everything that was written since the last look."""
        if self.conversation is None:
            self.tell(self._loaded)
            return
        fresh: dict[str, Text] = {}
        latest: Token | None = None
        while True:
            try:
                told = self._written.get_nowait()
            except Empty:
                break
            if not isinstance(told, tuple):
                self.writing = False
                self.tell("" if told is None else f"error: {told}")
                continue
            title, token = told
            latest = token if token.fired else latest
            if token.written:
                self.said[-1]["texts"][title] = self.said[-1]["texts"].get(title, "") + token.piece
                shown = Text(token.piece, style="reverse" if token.edited else "")
                if latents := marks(token):
                    shown.append(f"[{latents}]", style="dim")
                fresh.setdefault(title, Text()).append_text(shown)
        if fresh or latest is not None:
            self._painted.clear()
            self.call_after_refresh(self._painted.set)
        for title, text in fresh.items():
            self._append("#plain" if title == BASELINE else "#edited", title, text)
        if latest is not None:
            self._show_fired(latest)

    def _append(self, column: str, title: str, text: Text) -> None:
        pane = self.query_one(column, VerticalScroll)
        try:
            last = pane.query(".last").last(Static)
        except NoMatches:
            return
        before = getattr(last, "written", Text())
        if getattr(last, "under", title) != title:  # several edits write one below the other
            before = Text.assemble(before, "\n", (title, "bold"), "\n")
        both = before + text
        last.written, last.under = both, title  # pyright: ignore[reportAttributeAccessIssue]
        last.update(both)
        pane.scroll_end(animate=False)

    def _show_fired(self, token: Token) -> None:
        """The latents of the last token on which any fired, strongest first, and what they fire on most."""
        assert self.conversation is not None
        selection = self.conversation.subjects.materials.selection
        snippets = {latent.index: latent.snippets for latent in selection.latents}
        shown = Text(f"on “{token.piece.strip()}”\n", style="bold")
        for one in sorted(token.fired, key=lambda one: (-one.act, one.latent))[:SHOWN]:
            shown.append(f"\n{one.latent}", style="bold cyan").append(f"  {one.act:.2f}\n")
            for snippet in snippets.get(one.latent, ())[:1]:
                shown.append(" ".join(snippet.text.split()) + "\n", style="dim")
        self.query_one("#fired", Static).update(shown)

    # ---- what can be changed ----------------------------------------------------------------

    def action_switch(self) -> None:
        """Switch the edit."""
        if self.conversation is not None:
            self._obey("/edit")

    def action_stop(self) -> None:
        """End the answer under way."""
        self._stop.set()

    @on(Input.Submitted, "#line")
    def _entered(self) -> None:
        self.action_send()

    @on(Switch.Changed, "#on")
    def _switched(self, event: Switch.Changed) -> None:
        if self.conversation is not None:
            self._obey(f"/edit {'on' if event.value else 'off'}")

    @on(Select.Changed, "#method")
    def _chosen(self, event: Select.Changed) -> None:
        if self.conversation is not None and isinstance(event.value, str):
            self._obey(f"/methods {event.value}")

    @on(Input.Submitted, "#scale")
    def _scaled(self, event: Input.Submitted) -> None:
        self._obey(f"/scale {event.value}")

    @on(Input.Submitted, "#number")
    def _numbered(self, event: Input.Submitted) -> None:
        self._obey(f"/latents {event.value}")
