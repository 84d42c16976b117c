"""A model that writes while one watches: each token with its text, the latents that fired on it, and if it was edited.

A session knows no method: it takes a model and the log of whatever edits are in force on it, so any subject that edits
will do, or none. It draws as ``tasks.engines.generation`` draws, and writes the same text for the same seed.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch

from sae_forge.interventions.apply import EditLog
from sae_forge.live.pieces import Pieces
from sae_forge.models.chat import Rendered
from sae_forge.models.loading import LanguageModel
from sae_forge.tasks.engines.generation import Sampling, Step, steps


@dataclass(frozen=True)
class Fired:
    """A latent that an edit watches or writes, as it was on one token before the edit."""

    edit: int
    """Which of the edits in force, in their order."""
    latent: int
    act: float
    """Above zero."""


@dataclass(frozen=True)
class Token:
    """A token of one text, after the model has read it."""

    text: int
    """Which prompt it belongs to."""
    id: int
    piece: str
    """The text that is complete with this token. The pieces of a prompt, and those of what was written after it, join
    to exactly the decoded text; special tokens have none, and a character of several tokens comes with its last."""
    written: bool
    """By the model; else it is of the prompt."""
    fired: tuple[Fired, ...] = ()
    """Empty on a last token at the limit: the model never read it."""
    edited: bool = False
    """Whether any edit changed the activation of this token."""


@dataclass(frozen=True, eq=False)
class Session:
    """A model as it stands, to be watched while it continues prompts."""

    lm: LanguageModel
    log: EditLog | None = None
    """Of the edits in force, as ``attached`` yields it; None: there are none."""

    def stream(
        self, prompts: Sequence[str | Rendered], sampling: Sampling, *, first: int = 0
    ) -> Generator[Token, None, None]:
        """The tokens of the prompts, then those written after each, as soon as the model has read them.

        All prompts go through the model together, with its cache; tokens of one text come in their order.

        Args:
            first: Place of the first of them among all prompts that are drawn for.

        Raises:
            NumericalError: the model gave logits that are not numbers.
        """
        pieces = [Pieces(self.lm) for _ in prompts]
        unread: dict[int, int] = {}
        passes = steps(self.lm, prompts, sampling, sampling.draws(first + len(prompts))[first:]) if prompts else ()
        for number, step in enumerate(passes):
            watched = self._watched(step)
            for row, attended in enumerate(step.attended.tolist()):
                places = [place for place, there in enumerate(attended) if there]
                for place in places:
                    index = int(step.read[row, place])
                    ends = place == places[-1] and (number == 0 or not step.alive[row])
                    piece = pieces[row].take(index, last=ends)
                    yield Token(row, index, piece, number > 0, *watched[row][place])
                if number == 0:  # the prompt was the whole first pass: what is written is a text of its own
                    pieces[row] = Pieces(self.lm)
            unread = {row: int(step.drawn[row]) for row in step.alive.nonzero()[:, 0].tolist()}
        # drawn last, at the limit on tokens, and never given to the model: so nothing is known to have fired
        for row, index in unread.items():
            yield Token(row, index, pieces[row].take(index, last=True), written=True)

    def _watched(self, step: Step) -> list[list[tuple[tuple[Fired, ...], bool]]]:
        """For each token of a pass the latents that fired on it and whether it was edited."""
        calls = [part.latest for part in self.log.each] if self.log is not None else []
        edited = torch.zeros_like(step.read, dtype=torch.bool)
        fired: list[list[list[Fired]]] = [[[] for _ in row] for row in step.read.tolist()]
        for number, call in enumerate(calls):
            if call is None:  # the log of no edit at all
                continue
            edited |= call.edited.cpu()
            acts = call.acts.cpu()
            for row, place, column in ((acts > 0) & (step.attended[..., None] > 0)).nonzero().tolist():
                fired[row][place].append(Fired(number, call.latents[column], float(acts[row, place, column])))
        return [
            list(zip(map(tuple, those), flags, strict=True))
            for those, flags in zip(fired, edited.tolist(), strict=True)
        ]
