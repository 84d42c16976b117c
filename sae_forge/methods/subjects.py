"""What is measured: the model as it is, under an edit of its activations, or with its weights retrained."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sae_forge.hookpoint import HookPoint
from sae_forge.interventions.apply import EditLog, Intervention, applied
from sae_forge.methods.weights.texts import Texts
from sae_forge.methods.weights.training import Recipe, unlearn
from sae_forge.models.loading import LanguageModel
from sae_forge.progress import SILENT, Progress
from sae_forge.sae.dictionary import Dictionary


@dataclass(frozen=True)
class AsItIs:
    """The model, and nothing done to it."""


@dataclass(frozen=True, eq=False)
class Hook:
    """An edit of the running model; taking it away restores everything."""

    dictionary: Dictionary
    """Whose latents are edited."""
    intervention: Intervention


@dataclass(frozen=True, eq=False)
class Retrained:
    """Other weights, trained from the model's own on a copy."""

    recipe: Recipe
    forget: Texts
    retain: Texts
    seed: int


Subject = AsItIs | Hook | Retrained


@contextmanager
def in_force(
    lm: LanguageModel, point: HookPoint, subject: Subject, progress: Progress = SILENT
) -> Iterator[tuple[LanguageModel, EditLog | None]]:
    """Inside the block, the model to ask, and the count of edited tokens where tokens are edited."""
    match subject:
        case AsItIs():
            yield lm, None
        case Hook(dictionary, intervention):
            with applied(lm, dictionary, point, intervention) as log:
                yield lm, log
        case Retrained(recipe, forget, retain, seed):
            yield unlearn(lm, recipe, forget, retain, seed=seed, progress=progress), None
