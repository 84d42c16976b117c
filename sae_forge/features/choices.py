"""The latents each method takes, and what it says of those it leaves."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_forge import ranks
from sae_forge.config.features import FeaturesConfig
from sae_forge.errors import ConfigError, DataError
from sae_forge.features.identity import requested
from sae_forge.features.methods.method import Ask, Found, SelectionMethod, asked_of, ranking
from sae_forge.features.scores import Measured, Selectivity, sieve
from sae_forge.progress import Progress
from sae_forge.sae.dictionary import Dictionary


@dataclass(frozen=True)
class Choice:
    """What one method takes, before its record is made."""

    latents: Int[Tensor, "chosen"]
    """Best first."""
    scores: Float[Tensor, "d_sae"]
    candidates: int
    filtered: dict[str, int]
    rivals_take: int
    """How many latents the methods it is compared with take."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What decided it beside what decides every selection."""


def answers(
    config: FeaturesConfig, sae: Dictionary, ask: Callable[[], Ask] | None, progress: Progress
) -> dict[str, Found]:
    """What the methods find that ask a model; nothing is read and no model loaded where there is none of them.

    Raises:
        ConfigError: there is one, and no model to ask.
    """
    finding = [] if config.latents is not None else [method for method in asked_of(config) if method.find]
    if finding and ask is None:
        raise ConfigError(
            f"--method {finding[0].name} asks the model questions, so counts cannot decide it; use sae-forge features, "
            "or hand select what asks: sae_forge.pipeline.asking.attribution.asking"
        )
    handed, team = ask() if finding and ask else None, ranks.here()
    found = {}
    for method in finding:
        assert method.find is not None and handed is not None
        own = method.find(handed, sae, config, progress) if team.leads else None
        # the model is asked on the first rank alone; pairs, since JSON has no whole numbers for keys
        scores, removed, decided = team.tell(own and [[*own.scores.items()], own.removed, own.settings])[0]
        found[method.name] = own or Found(scores=dict(scores), removed=removed, settings=decided)
    return found


def choices(
    measured: Measured,
    selectivity: Selectivity,
    config: FeaturesConfig,
    answered: Mapping[str, Found],
    progress: Progress,
) -> dict[str, Choice]:
    """What each method takes, in the order they were asked for."""
    n = requested(config)
    if config.latents is not None:
        given = torch.tensor(config.latents)
        return {"given": Choice(given, selectivity.score, n, {}, n)}
    made, refused = {}, []
    for method in asked_of(config):
        choice = _chosen(method, measured, selectivity, config, answered.get(method.name))
        told = ", ".join(f"{name} removed {count}" for name, count in choice.filtered.items() if count)
        if not choice.candidates:
            way_out = _way_out(method, measured, config, n) if method.rank else ""
            way_out = "; --keep_form takes those that mark form" if choice.filtered.get("keep_form") else way_out
            refused.append(f"none of the {measured.d_sae} latents is valid for --method {method.name}: {told}{way_out}")
            continue
        made[method.name] = choice
        if len(choice.latents) < n:
            progress.say(
                f"{method.name}: {n} latents were asked for and {len(choice.latents)} are valid; taking those "
                f"(removed: {told})"
            )
    if not made:
        raise DataError(f"{'; '.join(refused)}; loosen the filter that removed most, or collect more forget text")
    for line in refused:
        progress.say(f"{line}; left out")
    return made


def _way_out(method: SelectionMethod, measured: Measured, config: FeaturesConfig, n: int) -> str:
    """The one filter that, were it looser, would let most latents pass, and the value that would admit ``n`` of them.

    Found by trying: a filter is named after the setting that moves it, whichever way that is.
    """
    assert method.rank is not None
    rank = method.rank

    def admitted(name: str, value: float) -> int:
        tried = replace(config, **{name: type(getattr(config, name))(value)})
        return int(sieve(rank(measured, tried, n).filters)[0].sum())

    ends = {}
    for name in rank(measured, config, n).filters:
        now = getattr(config, name, None)
        if isinstance(now, int | float):
            for end in (0.0, 1.0 if now <= 1 else now * 1e6):
                with suppress(ConfigError):  # a bound that would contradict another setting
                    ends[name, end] = admitted(name, end)
    if not (most := max(ends.values(), default=0)):
        return "" if not ends else "; no one of these filters alone stands in the way"
    name, loose = next(place for place, count in ends.items() if count == most)
    tight, wanted = float(getattr(config, name)), min(n, most)
    for _ in range(50):
        middle = (tight + loose) / 2
        tight, loose = (tight, middle) if admitted(name, middle) >= wanted else (middle, loose)
    further = loose * (1.05 if loose > getattr(config, name) else 0.95)  # a rounder number may lie beyond
    tried = (float(f"{value:.{digits}g}") for digits in (2, 3, 4, 6) for value in (loose, further))
    value = next((value for value in tried if admitted(name, value) >= wanted), loose)
    value = type(getattr(config, name))(value)  # of whole numbers no other is taken
    return f"; --{name} {value:.12g} instead of {getattr(config, name):g} would admit {wanted}"


def _chosen(
    method: SelectionMethod, measured: Measured, selectivity: Selectivity, config: FeaturesConfig, answer: Found | None
) -> Choice:
    n = requested(config)
    if answer is not None:
        latents = torch.tensor([*answer.scores][:n], dtype=torch.long)
        scores = torch.full((measured.d_sae,), torch.nan, dtype=torch.double)
        scores[[*answer.scores]] = torch.tensor([*answer.scores.values()], dtype=torch.double)
        return Choice(latents, scores, len(answer.scores), answer.removed, len(latents), answer.settings)
    assert method.rank is not None
    ranks = ranking(method, measured, config, n)
    valid, removed = sieve(ranks.filters)
    told = selectivity.score if method.inlp_score else ranks.by
    return Choice(ranks.best(n), told, int(valid.sum()), removed, n)
