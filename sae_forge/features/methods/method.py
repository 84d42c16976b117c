"""What a way of selecting latents says of itself.

The command line reads flags and choices off the table of methods, so none of their files loads torch at its top. What
a method asks of its config beside its own settings are those of ``FeaturesConfig``.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from sae_forge.config.model import ModelConfig
from sae_forge.errors import ConfigError
from sae_forge.progress import Progress

if TYPE_CHECKING:
    from torch import Tensor

    from sae_forge.features.scores import Measured
    from sae_forge.features.stats import LatentStats
    from sae_forge.sae.dictionary import Dictionary


@dataclass(frozen=True)
class Ranking:
    """What a method makes of every latent."""

    filters: "Mapping[str, Tensor]"
    """Which latents ``[d_sae]`` pass each filter, by the setting that moves it; a latent must pass all of them."""
    by: "Tensor"
    """What orders the valid latents ``[d_sae]``, highest first."""

    def best(self, n: int) -> "Tensor":
        """The ``n`` best valid latents, or all there are."""
        from sae_forge.features.scores import ranked, sieve

        return ranked(sieve(self.filters)[0], self.by, n)


@dataclass(frozen=True, kw_only=True)
class Found:
    """The latents that a model's answers name."""

    scores: Mapping[int, float]
    """Of each latent that passed every test; best first."""
    removed: dict[str, int]
    """Latents that each test removed; with those that passed they sum to the SAE's."""
    settings: dict[str, Any]
    """What decided the result, JSON-ready, and what it rests on."""


@runtime_checkable
class Ask(Protocol):
    """A model that is asked questions, as it is or with one latent clamped; a method is handed one and knows no more.

    It is asked only what it is sure of: right in every order of the options while nothing is clamped.
    """

    @property
    def questions(self) -> int:
        """Questions on what is forgotten, numbered from 0."""
        ...

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the questions and texts, JSON-ready."""
        ...

    def gradients(self) -> "Iterator[tuple[int, Tensor, Tensor]]":
        """Of each forget question its number, the activations ``[places, d_in]`` under its words, and what moving
        them would do to the margin of the right answer, per unit of activation."""
        ...

    def clamped(self, latent: int, value: float) -> AbstractContextManager[Any]:
        """The model with a latent set to ``value`` where it fires, for what is asked meanwhile."""
        ...

    def turned(self, number: int) -> bool:
        """Whether it now gets a forget question wrong in some order of the options."""
        ...

    def broken(self) -> int:
        """Questions on what is kept that it now gets wrong."""
        ...

    def loss(self) -> float:
        """Nats per token of text to keep."""
        ...


def fires_on_forget(forget: "LatentStats", config: Any) -> "Tensor":
    """Latents that fire on the forget corpus at all: to edit another would edit nothing there."""
    del config
    return forget.fires > 0


def _as_it_is(forget: "LatentStats", config: Any) -> dict[str, Any]:
    del forget, config
    return {}


def _nothing(config: Any) -> dict[str, Any]:
    del config
    return {}


@dataclass(frozen=True, kw_only=True)
class SelectionMethod:
    """A way of selecting latents, by what the shards count or by what a model answers."""

    name: str
    """What ``--method`` calls it."""
    words: str
    """Which latents it takes."""
    rank: "Callable[[Measured, Any, int], Ranking] | None" = None
    """The latents as it sees them, from counts, config and how many will be taken."""
    find: "Callable[[Ask, Dictionary, Any, Progress], Found] | None" = None
    """Instead of ``rank``: the latents that it finds by asking a model."""
    settings: type[ModelConfig] | None = None
    """The config class of its own flags."""
    may_be_chosen: "Callable[[LatentStats, Any], Tensor]" = fires_on_forget
    """Latents ``[d_sae]`` that it may yet take, by what the forget corpus alone says."""
    adapted: "Callable[[LatentStats, Any], Mapping[str, Any]]" = _as_it_is
    """Values of its own settings that follow from the forget corpus, for those that nobody set."""
    thresholds: Callable[[Any], Mapping[str, float]] = _nothing
    """Bounds on frequencies, by the setting that moves them: lines of the picture, and part of what decides."""
    decides: Callable[[Any], Mapping[str, Any]] = _nothing
    """What decides its choice beside settings and shards, JSON-ready."""
    draws: bool = False
    """Whether it draws latents instead of ranking them: a control, which none is matched to."""
    inlp_score: bool = False
    """Whether its latents carry INLP's score instead of what it ranks by."""
    rival: bool = True
    """Whether the analysis of other selections says what it would have taken."""
    in_all: bool = True
    """Whether ``--method all`` takes it."""


def table_of(config: Any) -> tuple[SelectionMethod, ...]:
    """The methods that a config was composed with."""
    return type(config).catalogue.selections


def ranking(method: SelectionMethod, measured: "Measured", config: Any, n: int) -> Ranking:
    """What a method that ranks makes of the latents; those that mark form alone pass where the config takes them."""
    assert method.rank is not None
    ranks = method.rank(measured, config, n)
    if config.keep_form or method.draws or measured.forget.marked is None:
        return ranks
    return Ranking({**ranks.filters, "keep_form": ~measured.only_form}, ranks.by)


def adapted(config: Any, forget: "LatentStats", shortest: int) -> Any:
    """The config with numbers for all that nobody set, as follow from the length of the corpora and the SAE's L0.

    Args:
        shortest: Tokens of the shortest corpus.
    """
    derived: dict[str, Any] = {"ratio_smoothing": min(16.0, max(1.0, shortest / 4000))}
    for method in table_of(config):
        derived |= method.adapted(forget, config)
    return replace(config, **{name: value for name, value in derived.items() if getattr(config, name, 0) is None})


def asked_of(config: Any) -> tuple[SelectionMethod, ...]:
    """The methods that a config names, in order, each once.

    Raises:
        ConfigError: there is none of a name.
    """
    table = {method.name: method for method in table_of(config)}
    named: list[SelectionMethod] = []
    for name in config.method:
        if name != "all" and name not in table:
            raise ConfigError(f"--method {name}: choose one of {', '.join((*table, 'all'))}")
        named += [method for method in table.values() if method.in_all] if name == "all" else [table[name]]
    return tuple(dict.fromkeys(named))


def reference_of(config: Any) -> SelectionMethod:
    """The method whose latents a matched draw matches: the first one asked for that ranks counts, else the first."""
    ranks: Sequence[SelectionMethod] = [*asked_of(config), *table_of(config)]
    return next(method for method in ranks if method.rank and not method.draws)
