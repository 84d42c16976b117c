"""``generate --interactive``: lines in, answers out as they are written, and commands between them."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import closing

from rich.console import Console
from rich.text import Text

from cli.screen import Screen, Writing
from sae_forge.config.generate import GenerateConfig
from sae_forge.errors import ForgeError
from sae_forge.live.conversation import Conversation
from sae_forge.outcome import Outcome
from sae_forge.pipeline.bench import Bench
from sae_forge.pipeline.generate import opened

LEAVE = ("/quit", "/exit")


def talk(config: GenerateConfig, bench: Bench, first: Sequence[str], screen: Screen) -> Outcome:
    """Answer line after line until the end of the input or ``/quit``; what was said is what the outcome holds.

    Where stdout is for one JSON object, the conversation is shown on stderr.
    """
    config = bench.settle(config)
    under = opened(config, bench, any_method=True)
    conversation = under.conversation(config, bench.progress, compare=config.compare)
    console = Console(highlight=False, soft_wrap=True, stderr=screen.machine)
    screen.stop()
    console.print(f"{bench.lm.name}; /help lists the commands, /quit leaves", style="dim")
    said = []
    for line in _lines(console, conversation, first):
        try:
            if (answer := conversation.obey(line)) is not None:
                console.print(answer, markup=False, style="dim")
                continue
            writing = Writing(console)
            with closing(conversation.answer(line)) as answer:  # stopped half-way, it leaves no edit in force
                for title, token in answer:
                    writing.take(line, title, token)
            said.append({"prompt": line, "texts": writing.texts})
        except ForgeError as error:
            console.print(f"error: {error}", markup=False)
        except KeyboardInterrupt:  # ends the answer under way, not the conversation
            console.print(Text("\n(stopped)", style="dim"))
    return Outcome(
        run=bench.run,
        outputs={"selection": under.selection},
        metrics={"prompts": said},
        summary="the model is itself again: an edit lives in the forward pass, not in the weights",
        then=bench.next("report"),
    )


def _lines(console: Console, conversation: Conversation, first: Sequence[str]) -> Iterator[str]:
    """What is typed, line by line, after what was given on the command line."""
    yield from first
    while True:
        try:
            line = console.input(Text(f"\n[{conversation.standing()}] > ", style="bold"), stream=None)
        except (EOFError, KeyboardInterrupt):
            return
        if line.strip() in LEAVE:
            return
        if not sys.stdin.isatty():
            console.print(line, markup=False)
        if line.strip():
            yield line
