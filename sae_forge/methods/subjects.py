"""What is asked: the model as it is, under edits of its activations, or with other weights; wrappers make more of them.

A subject says two things of itself, and whatever wraps it changes one and keeps the other: which weights the model has
and which edits are in force while it runs.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from sae_forge.interventions.apply import EditLog, attached
from sae_forge.interventions.edit import Edit
from sae_forge.methods.weights.texts import Texts
from sae_forge.methods.weights.training import Recipe, unlearn
from sae_forge.models.loading import LanguageModel
from sae_forge.progress import SILENT, Progress


@runtime_checkable
class Subject(Protocol):
    """A model to ask: its weights, and what edits its activations."""

    @property
    def edits(self) -> tuple[Edit, ...]:
        """In force while it is asked; taking them away restores everything."""
        ...

    @property
    def changes_weights(self) -> bool:
        """Whether its weights are others than the given model's."""
        ...

    def weights(self, lm: LanguageModel, progress: Progress = SILENT) -> LanguageModel:
        """The model before edits; ``lm`` itself where no weight changes, and ``lm`` keeps every bit either way."""
        ...


@dataclass(frozen=True)
class AsItIs:
    """The model, and nothing done to it."""

    edits: tuple[Edit, ...] = ()
    changes_weights: bool = False

    def weights(self, lm: LanguageModel, progress: Progress = SILENT) -> LanguageModel:
        """The given model."""
        del progress
        return lm


@dataclass(frozen=True, eq=False)
class Edited:
    """Edits of the running model, at one place or at several."""

    edits: tuple[Edit, ...]
    changes_weights: bool = False

    def weights(self, lm: LanguageModel, progress: Progress = SILENT) -> LanguageModel:
        """The given model."""
        del progress
        return lm


@dataclass(frozen=True, eq=False)
class Retrained:
    """Other weights, trained from the model's own on a copy."""

    recipe: Recipe
    forget: Texts
    retain: Texts
    seed: int
    edits: tuple[Edit, ...] = ()
    changes_weights: bool = True

    def weights(self, lm: LanguageModel, progress: Progress = SILENT) -> LanguageModel:
        """What the recipe makes of the given model; trained anew at each call."""
        return unlearn(lm, self.recipe, self.forget, self.retain, seed=self.seed, progress=progress)


@contextmanager
def in_force(
    lm: LanguageModel, subject: Subject, progress: Progress = SILENT
) -> Iterator[tuple[LanguageModel, EditLog | None]]:
    """Inside the block, the model to ask, and the count of edited tokens where tokens are edited.

    The model is ``lm`` itself where no weight changes.
    """
    # weights first: edits hook the model that is asked
    changed = subject.weights(lm, progress)
    with attached(changed, subject.edits) if subject.edits else nullcontext() as log:
        yield changed, log
