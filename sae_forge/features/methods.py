"""Which latents each method admits and in which order it takes them: pure functions of counts.

Frequencies are of real tokens only, in counts and denominators alike. Against several retain corpora every method
looks at the one that knows a latent best. No method admits a latent that never fires on the forget corpus, but for
``random``: to edit it would edit nothing there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import assert_never

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_forge.config.features import FeaturesConfig, SelectionMethod
from sae_forge.errors import ConfigError
from sae_forge.features.scores import Measured, ranked, sieve
from sae_forge.features.stats import LatentStats
from sae_forge.rng import generator

UNSCORED: tuple[SelectionMethod, ...] = ("random_matched", "random")
"""Methods that draw latents instead of ranking them; their latents carry INLP's score."""

RETAIN_THRESHOLDS: Mapping[str, float] = {"frequency": 0.01, "conditional": 1e-4}
"""What ``retain_threshold`` is where it was left open."""

CRISP_POOL = 10
"""Candidates that ``crisp`` looks at for each latent it takes."""
CRISP_RATIO = 3.0
"""Least forget over retain activation of a latent that ``crisp`` takes."""
IMPORTANCE_PERCENTILE = 5.0
"""Percentile of all latents that the forget importance of ``dsg_ratio`` must reach."""
IMPORTANCE_EPS = 1e-21
"""Added to the retain importance, so that a latent which never fires there has a finite ratio."""


@dataclass(frozen=True)
class Ranking:
    """What a method makes of every latent."""

    filters: dict[str, Bool[Tensor, "d_sae"]]
    """Which latents pass each filter, by the setting that moves it; a latent must pass all of them."""
    by: Float[Tensor, "d_sae"]
    """What orders the valid latents, highest first."""

    def best(self, n: int) -> Int[Tensor, "chosen"]:
        """The ``n`` best valid latents, or all there are."""
        return ranked(sieve(self.filters)[0], self.by, n)


def may_be_chosen(method: SelectionMethod, forget: LatentStats, config: FeaturesConfig) -> Bool[Tensor, "d_sae"]:
    """Latents that a method may yet take, by what the forget corpus alone says."""
    match method:
        case "inlp":
            return sieve(inlp_forget_filters(forget, config))[0]
        case "random":
            return torch.ones_like(forget.fires, dtype=torch.bool)
        case _:
            return forget.fires > 0


def rank(method: SelectionMethod, measured: Measured, config: FeaturesConfig, n: int) -> Ranking:
    """The latents as ``method`` sees them.

    Args:
        n: Latents that will be taken; the pool of ``crisp`` and the draw of ``random_matched`` depend on it.

    Raises:
        ConfigError: the method needs a model.
    """
    match method:
        case "inlp":
            return inlp(measured, config)
        case "frequency":
            return frequency(measured, config)
        case "dsg_ratio":
            return dsg_ratio(measured, config)
        case "conditional":
            return conditional(measured, config)
        case "crisp":
            return crisp(measured, n)
        case "top_mean":
            return Ranking({"never_fires_on_forget": measured.forget.fires > 0}, measured.forget.mean)
        case "random_matched":
            return random_matched(measured, config, n)
        case "random":
            draw = generator(config.seed, "random latents").random(measured.d_sae)
            return Ranking({"never_fires": measured.alive}, torch.from_numpy(draw))
        case "attribution":
            raise needs_model()
        case _:
            assert_never(method)


def inlp(measured: Measured, config: FeaturesConfig) -> Ranking:
    """The statistic that ``sort_by`` names, within five bounds; all are strict but ``min_target_fires``."""
    found = measured.selectivity(config)
    filters = inlp_forget_filters(measured.forget, config) | {
        "max_neutral_freq": found.retain_frequency < config.max_neutral_freq,
        "min_ratio": found.ratio > config.min_ratio,
    }
    return Ranking(filters, getattr(found, config.sort_by))


def inlp_forget_filters(forget: LatentStats, config: FeaturesConfig) -> dict[str, Bool[Tensor, "d_sae"]]:
    """INLP's bounds on the forget corpus alone."""
    return {
        "min_target_fires": forget.fires >= config.min_target_fires,
        "min_freq": forget.frequency > config.min_freq,
        "max_freq": forget.frequency < config.max_freq,
    }


def frequency(measured: Measured, config: FeaturesConfig) -> Ranking:
    """Forget frequency, among latents whose retain frequency stays below the threshold (arXiv 2410.19278)."""
    filters = {
        "never_fires_on_forget": measured.forget.fires > 0,
        "retain_threshold": measured.worst(lambda stats: stats.frequency) < retain_threshold("frequency", config),
    }
    return Ranking(filters, measured.forget.frequency)


def conditional(measured: Measured, config: FeaturesConfig) -> Ranking:
    """As ``frequency``, of activations above ``fire_threshold`` and with a stricter bound (arXiv 2503.11127)."""
    filters = {
        "never_fires_on_forget": measured.forget.fires > 0,
        "fire_threshold": measured.forget.clear_fires > 0,
        "retain_threshold": measured.worst(lambda stats: stats.clear_frequency)
        < retain_threshold("conditional", config),
    }
    return Ranking(filters, measured.forget.clear_frequency)


def dsg_ratio(measured: Measured, config: FeaturesConfig) -> Ranking:
    """Forget importance, among latents where it is high beside the retain importance (arXiv 2504.08192).

    Importance is a moment of the activation over all tokens. Percentiles are over all latents, dead ones included.
    """
    forget = _importance(measured.forget, config)
    ratio = forget / (measured.worst(lambda stats: _importance(stats, config)) + IMPORTANCE_EPS)
    filters = {
        "never_fires_on_forget": measured.forget.fires > 0,
        "importance": forget >= _percentile(forget, IMPORTANCE_PERCENTILE),
        "p_ratio": ratio >= _percentile(ratio, config.p_ratio),
    }
    return Ranking(filters, forget)


def crisp(measured: Measured, n: int) -> Ranking:
    """Forget fires minus retain fires, among the first ``CRISP_POOL * n`` by it that are active enough.

    Fires and activations are those of as many tokens as the shortest corpus holds (arXiv 2508.13650, section 2).
    """
    common = min(stats.tokens for stats in (measured.forget, *measured.retain.values()))
    excess = (measured.forget.frequency - measured.worst(lambda stats: stats.frequency)) * common
    relative = measured.forget.mean * common / (measured.worst(lambda stats: stats.mean) * common + 1)
    pool = torch.zeros_like(measured.forget.fires, dtype=torch.bool)
    pool[ranked(torch.ones_like(pool), excess, CRISP_POOL * n)] = True
    return Ranking({"crisp_pool": pool, "crisp_ratio": relative >= CRISP_RATIO}, excess)


def random_matched(measured: Measured, config: FeaturesConfig, n: int) -> Ranking:
    """For each latent of the reference method, best first, another drawn from its decile of forget frequency.

    Deciles are those of the latents that fire on the forget corpus. The first m drawn match the first m of the
    reference, unless a decile had no latent left to draw.
    """
    fires = measured.forget.fires > 0
    reference = rank(matched_to(config), measured, config, n).best(n)
    others = fires.clone()
    others[reference] = False
    decile = _deciles(measured.forget.frequency, fires)
    shuffled = generator(config.seed, "matched latents").permutation(others.nonzero()[:, 0].numpy())
    pools: dict[int, list[int]] = {}
    for latent in shuffled.tolist():
        pools.setdefault(int(decile[latent]), []).append(latent)
    drawn = [pool.pop() for latent in reference.tolist() if (pool := pools.get(int(decile[latent])))]
    order = torch.full((measured.d_sae,), -torch.inf, dtype=torch.double)
    order[drawn] = -torch.arange(len(drawn)).double()
    filters = {"never_fires_on_forget": fires, f"chosen_by_{matched_to(config)}": others, "not_drawn": order.isfinite()}
    return Ranking(filters, order)


def matched_to(config: FeaturesConfig) -> SelectionMethod:
    """The method whose latents ``random_matched`` matches: the first one asked for that ranks counts, else ``inlp``."""
    for method in config.selection_methods:
        if method not in (*UNSCORED, "attribution"):
            return method
    return "inlp"


def needs_model() -> ConfigError:
    """What is wrong with asking counts for ``attribution``."""
    return ConfigError(
        "--method attribution asks the model questions, so counts cannot decide it; "
        "use sae-forge features --method attribution, or sae_forge.study.attribution.attribute"
    )


def retain_threshold(method: str, config: FeaturesConfig) -> float:
    """What the retain frequency must stay below under ``method``."""
    return RETAIN_THRESHOLDS[method] if config.retain_threshold is None else config.retain_threshold


def _importance(stats: LatentStats, config: FeaturesConfig) -> Float[Tensor, "d_sae"]:
    return stats.mean.square() if config.moment == "sq_mean" else stats.mean_square


def _percentile(values: Float[Tensor, "d_sae"], percentile: float) -> float:
    """Linear between the two nearest ranks; numpy's, since torch's refuses more than 2^24 values."""
    return float(np.percentile(values.numpy(), percentile))


def _deciles(frequency: Float[Tensor, "d_sae"], among: Bool[Tensor, "d_sae"]) -> Int[Tensor, "d_sae"]:
    """The decile, 0 to 9, of each latent's frequency among those of ``among``; equal frequencies share one."""
    if not among.any():
        return torch.zeros(len(frequency), dtype=torch.long)
    edges = np.percentile(frequency[among].numpy(), np.arange(10, 100, 10))
    return torch.from_numpy(np.searchsorted(edges, frequency.numpy(), side="right"))
