"""The latents each method takes, and what it says of those it leaves."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_forge.config.features import FeaturesConfig, SelectionMethod
from sae_forge.errors import DataError
from sae_forge.features import methods
from sae_forge.features.identity import requested
from sae_forge.features.scores import Measured, Selectivity, sieve
from sae_forge.progress import Progress


@dataclass(frozen=True)
class Choice:
    """What one method takes, before its record is made."""

    latents: Int[Tensor, "chosen"]
    """Best first."""
    scores: Float[Tensor, "d_sae"]
    candidates: int
    filtered: dict[str, int]


def choices(
    measured: Measured, selectivity: Selectivity, config: FeaturesConfig, progress: Progress
) -> dict[str, Choice]:
    """What each method takes, in the order they were asked for."""
    if config.latents is not None:
        given = torch.tensor(config.latents)
        return {"given": Choice(given, selectivity.score, len(given), {})}
    found, refused = {}, []
    for method in config.selection_methods:
        choice = _chosen(method, measured, selectivity, config)
        if not choice.candidates:
            refused.append(f"none of the {measured.d_sae} latents is valid for --method {method}: {_counts(choice)}")
            continue
        found[method] = choice
        if len(choice.latents) < requested(config):
            progress.say(
                f"{method}: {requested(config)} latents were asked for and {len(choice.latents)} are valid; taking "
                f"those (removed: {_counts(choice)})"
            )
    if not found:
        raise DataError(f"{'; '.join(refused)}; loosen the filter that removed most, or collect more forget text")
    for line in refused:
        progress.say(f"{line}; left out")
    return found


def _chosen(method: SelectionMethod, measured: Measured, selectivity: Selectivity, config: FeaturesConfig) -> Choice:
    ranking = methods.rank(method, measured, config, requested(config))
    valid, removed = sieve(ranking.filters)
    told = selectivity.score if method in ("inlp", *methods.UNSCORED) else ranking.by
    return Choice(ranking.best(requested(config)), told, int(valid.sum()), removed)


def _counts(choice: Choice) -> str:
    return ", ".join(f"{name} removed {count}" for name, count in choice.filtered.items() if count)
