"""A person and a model in turns, and an edit that is switched and changed between them."""

from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Literal

from sae_forge.errors import ConfigError
from sae_forge.live.session import Session, Token
from sae_forge.live.subjects import BASELINE, Subjects
from sae_forge.methods.subjects import AsItIs, Subject, in_force
from sae_forge.models.chat import render
from sae_forge.progress import SILENT, Progress
from sae_forge.tasks.engines.generation import Sampling


@dataclass(frozen=True)
class Command:
    """What a line that begins with a slash does."""

    words: str
    """How it is written, for the list of them."""
    does: str
    run: Callable[["Conversation", str], str]
    """Takes what follows its name; says what is so afterwards."""


@dataclass(eq=False)
class Conversation:
    """What was said so far, and what the next answer is written under.

    A model with a chat template reads all turns in it; without one every line is a text to continue by itself.
    """

    subjects: Subjects
    sampling: Sampling
    chat: bool = False
    """Read turns through the model's chat template."""
    progress: Progress = SILENT
    edits: dict[str, Subject] = field(default_factory=dict)
    """By title; what the model is asked under while ``edited``."""
    edited: bool = True
    compare: bool = False
    """Answer as the model is, too, before the edits."""
    latents: tuple[int, ...] = ()
    """Those of the edit that ``/scale`` and ``/latents`` make."""
    factor: float = -3.0
    turns: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.latents = self.latents or self.subjects.materials.selection.indices
        self.edits = self.edits or self.subjects.scaled(self.latents, self.factor)

    @property
    def titles(self) -> tuple[str, ...]:
        """What the next answer is written under, one after the other."""
        edits = tuple(self.edits) if self.edited else ()
        return (BASELINE, *edits) if self.compare or not edits else edits

    def standing(self) -> str:
        """What is in force, for a prompt line."""
        return ", ".join(self.titles)

    def answer(self, line: str) -> Generator[tuple[str, Token], None, None]:
        """What the model writes after the line, under each title in turn, token by token as it is written.

        In a chat the last of the answers is the one that the conversation goes on from. An answer that is not taken to
        its end leaves no turn behind and no edit in force.

        Raises:
            DataError: the prompt leaves no room to write, or the chat template refuses the turns.
        """
        asked, model = [*self.turns, {"role": "user", "content": line}], self.subjects.materials.lm
        prompt = render(model, asked, to_go_on=True) if self.chat else line
        said = ""
        for title in self.titles:
            said, subject = "", AsItIs() if title == BASELINE else self.edits[title]
            # the stream is closed before the edit is taken off: left open it would write on without one
            with (
                in_force(model, subject, self.progress) as (lm, log),
                closing(Session(lm, log).stream([prompt], self.sampling)) as tokens,
            ):
                for token in tokens:
                    if token.written:
                        said += token.piece
                    yield title, token
        if self.chat:
            self.turns = [*asked, {"role": "assistant", "content": said}]

    def obey(self, line: str) -> str | None:
        """What a line that begins with a slash changed, in words; None where the line is no command.

        Raises:
            ConfigError: there is no such command, or it cannot be done.
        """
        if not line.startswith("/"):
            return None
        name, _, rest = line[1:].partition(" ")
        if name not in COMMANDS:
            raise ConfigError(f"/{name} is no command; /help lists them")
        return COMMANDS[name].run(self, rest.strip())

    def rescale(self) -> str:
        """Put negative scaling of the latents at hand in force."""
        self.edits, self.edited = self.subjects.scaled(self.latents, self.factor), True
        return f"next: {self.standing()}"


def _switch(name: str, field: Literal["edited", "compare"]) -> Callable[[Conversation, str], str]:
    def run(conversation: Conversation, rest: str) -> str:
        if rest not in ("", "on", "off"):
            raise ConfigError(f"/{name} {rest}: give on, off or nothing, which switches")
        setattr(conversation, field, rest == "on" if rest else not getattr(conversation, field))
        return f"next: {conversation.standing()}"

    return run


def _scale(conversation: Conversation, rest: str) -> str:
    try:
        factor = float(rest)
    except ValueError:
        raise ConfigError(f"/scale {rest}: give a number, as in /scale -5") from None
    if not abs(factor) < float("inf"):  # so that NaN is caught too
        raise ConfigError(f"/scale {rest}: give a finite number, as in /scale -5")
    conversation.factor = factor
    return conversation.rescale()


def _latents(conversation: Conversation, rest: str) -> str:
    chosen = conversation.subjects.materials.selection.indices
    try:
        numbers = tuple(int(part) for part in rest.replace(",", " ").split())
    except ValueError:
        numbers = ()
    if not numbers:
        raise ConfigError(f"/latents {rest}: give how many of the {len(chosen)} selected, or some by number: 12,55,")
    if len(numbers) == 1 and "," not in rest:
        (size,) = numbers
        if not 1 <= size <= len(chosen):
            raise ConfigError(f"/latents {rest}: {len(chosen)} are selected; for latent {size} alone: {size},")
        numbers = chosen[:size]
    # a line that is refused changes nothing: the next answer is written under what stood before it
    before, conversation.latents = conversation.latents, numbers
    try:
        return conversation.rescale()
    except ConfigError:
        conversation.latents = before
        raise


def _methods(conversation: Conversation, rest: str) -> str:
    names = [name.strip() for name in rest.split(",") if name.strip()]
    if not names:
        raise ConfigError("/methods: name some, as in /methods scale,clamp")
    conversation.edits, conversation.edited = conversation.subjects.named(names), True
    return f"next: {conversation.standing()}"


def _tokens(conversation: Conversation, rest: str) -> str:
    if not rest.isdecimal() or not 1 <= int(rest) <= 10**6:
        raise ConfigError(f"/tokens {rest}: give how many to write at most, as in /tokens 100")
    settings = {**vars(conversation.sampling), "max_new_tokens": int(rest)}
    conversation.sampling = Sampling(**settings)
    return f"at most {int(rest)} tokens are written"


def _new(conversation: Conversation, rest: str) -> str:
    del rest
    conversation.turns = []
    return "the conversation begins anew"


def _help(conversation: Conversation, rest: str) -> str:
    del conversation, rest
    width = max(len(command.words) for command in COMMANDS.values())
    return "\n".join(f"{command.words:{width}}  {command.does}" for command in COMMANDS.values())


COMMANDS = {
    "help": Command("/help", "these lines", _help),
    "edit": Command("/edit [on|off]", "switch the edit", _switch("edit", "edited")),
    "compare": Command("/compare [on|off]", "answer without the edit, too", _switch("compare", "compare")),
    "scale": Command("/scale X", "scale the latents by X", _scale),
    "latents": Command("/latents N or I,J,…", "edit the first N of the selection, or these", _latents),
    "methods": Command("/methods A,B", "edit by these methods instead, as they were measured", _methods),
    "tokens": Command("/tokens N", "write at most N tokens", _tokens),
    "new": Command("/new", "forget what was said", _new),
}
"""By name; whoever shows a conversation adds how it is left."""
