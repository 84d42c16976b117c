"""VERB: shards and an SAE to a selection of latents, in one pass a corpus.

The forget corpus goes first, so that the pass over each retain corpus knows which latents can still be chosen and
remembers where those fire, and only those. Measuring and choosing are apart: one measurement serves several settings,
and the frequency plot, which shows all latents, is drawn from it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sae_forge.config import FeaturesConfig
from sae_forge.data.shards import ShardReader
from sae_forge.errors import ConfigError, DataError
from sae_forge.features import scores
from sae_forge.features.selection import (
    Corpus,
    CorpusStats,
    SelectedLatent,
    Selection,
    method_name,
    requested,
    settings,
)
from sae_forge.features.snippets import Snippet, read_snippets
from sae_forge.features.stats import LatentStats, firing_rates, sequence_stride, survey
from sae_forge.progress import SILENT, Progress
from sae_forge.sae.topk import TopKSAE


@dataclass(frozen=True)
class Measured:
    """Every latent's statistics on the forget corpus and on each retain corpus."""

    forget: LatentStats
    retain: dict[str, LatentStats]

    def selectivity(self, config: FeaturesConfig) -> scores.Selectivity:
        """INLP's statistics in the form that ``config.formula`` names."""
        return scores.selectivity(
            self.forget,
            list(self.retain.values()),
            formula=config.formula,
            smoothing=config.ratio_smoothing,
            eps=config.activation_eps,
        )


def select(
    forget: ShardReader,
    retain: Mapping[str, ShardReader],
    sae: TopKSAE,
    config: FeaturesConfig,
    decode: Callable[[list[int]], str] | None = None,
    progress: Progress = SILENT,
    *,
    name: str,
    weights: str,
) -> Selection:
    """:func:`measure`, then :func:`choose`."""
    measured = measure(forget, retain, sae, config, progress)
    return choose(measured, forget, retain, config, decode, progress, name=name, weights=weights)


def measure(
    forget: ShardReader,
    retain: Mapping[str, ShardReader],
    sae: TopKSAE,
    config: FeaturesConfig,
    progress: Progress = SILENT,
) -> Measured:
    """Read every corpus once.

    Raises:
        DataError: there is no retain corpus.
        ConfigError: a latent given by ``config.latents`` is not one of the SAE's.
        ShardError: a corpus was collected elsewhere than the SAE reads.
    """
    if not retain:
        raise DataError("features compares against text to keep, and no retain corpus is collected; give --retain")
    _check(config, sae.d_sae)
    of_forget = survey(forget, sae, title="forget", keep_top=config.snippets, progress=progress)
    watch = _may_be_chosen(of_forget, config)
    of_retain = {
        corpus: survey(reader, sae, title=f"retain {corpus}", watch=watch, progress=progress)
        for corpus, reader in retain.items()
    }
    return Measured(of_forget, of_retain)


def choose(
    measured: Measured,
    forget: ShardReader,
    retain: Mapping[str, ShardReader],
    config: FeaturesConfig,
    decode: Callable[[list[int]], str] | None = None,
    progress: Progress = SILENT,
    *,
    name: str,
    weights: str,
) -> Selection:
    """The best valid latents, or the list that was given, with every statistic.

    Args:
        measured: What :func:`measure` found with a config of the same ``method``, filters and ``latents``.
        decode: Token ids to text, for snippets; None leaves them out.
        name: The SAE's folder relative to the run's ``saes``.
        weights: sha256 of its weights file.

    Raises:
        DataError: no latent passes the filters; says how many each removed.
    """
    selectivity = measured.selectivity(config)
    latents, candidates, filtered = _chosen(measured, selectivity, config)
    if len(latents) < requested(config):
        progress.say(
            f"{requested(config)} latents were asked for and {len(latents)} are valid; taking those "
            f"(removed: {_counts(filtered)})"
        )
    snippets = [()] * len(latents)
    if decode is not None and config.snippets:
        snippets = read_snippets(forget, measured.forget.top, latents.tolist(), decode)
    return Selection(
        sae=name,
        weights=weights,
        d_sae=len(measured.forget.fires),
        method=method_name(config),
        settings=settings(config),
        forget_corpus=_corpus(forget),
        retain_corpora={corpus: _corpus(reader) for corpus, reader in retain.items()},
        requested=requested(config),
        candidates=candidates,
        filtered=filtered,
        latents=tuple(
            _record(latent, measured, selectivity, config, found)
            for latent, found in zip(latents.tolist(), snippets, strict=True)
        ),
        retain_rates={corpus: firing_rates(stats.firings, latents) for corpus, stats in measured.retain.items()},
    )


def _check(config: FeaturesConfig, d_sae: int) -> None:
    config.require(
        ratio_smoothing=(config.ratio_smoothing > 0, "give more than 0 fires"),
        activation_eps=(config.activation_eps > 0, "give more than 0"),
    )
    latents = config.latents or ()
    if outside := [latent for latent in latents if latent >= d_sae]:
        raise ConfigError(f"--latents names {outside[0]}, but the SAE has latents 0 to {d_sae - 1}")
    if len(set(latents)) < len(latents):
        raise ConfigError(f"--latents {','.join(map(str, latents))} names a latent twice; name each once")


def _may_be_chosen(forget: LatentStats, config: FeaturesConfig) -> Bool[Tensor, "d_sae"]:
    if config.latents is None:
        return scores.sieve(scores.forget_filters(forget, config))[0]
    given = torch.zeros(len(forget.fires), dtype=torch.bool)
    given[list(config.latents)] = True
    return given


def _chosen(
    measured: Measured, selectivity: scores.Selectivity, config: FeaturesConfig
) -> tuple[Int[Tensor, "chosen"], int, dict[str, int]]:
    """The latents best first, how many were valid, and how many each filter removed."""
    if config.latents is not None:
        return torch.tensor(config.latents), len(config.latents), {}
    filters = scores.forget_filters(measured.forget, config) | scores.retain_filters(selectivity, config)
    valid, removed = scores.sieve(filters)
    if not valid.any():
        raise DataError(
            f"none of the {len(valid)} latents is valid for --method {config.method}: {_counts(removed)}; "
            "loosen the filter that removed most, or collect more forget text"
        )
    return scores.ranked(valid, scores.rank_by(selectivity, config), requested(config)), int(valid.sum()), removed


def _counts(removed: Mapping[str, int]) -> str:
    return ", ".join(f"{name} removed {count}" for name, count in removed.items() if count)


def _corpus(reader: ShardReader) -> Corpus:
    return Corpus(
        name=reader.manifest.fingerprint.corpus,
        tokens=reader.rows,
        manifest=reader.manifest.sha256,
        rates_every=sequence_stride(reader),
    )


def _record(
    latent: int,
    measured: Measured,
    selectivity: scores.Selectivity,
    config: FeaturesConfig,
    snippets: tuple[Snippet, ...],
) -> SelectedLatent:
    score = selectivity.forget_frequency if method_name(config) == "frequency" else selectivity.score
    return SelectedLatent(
        index=latent,
        score=float(score[latent]),
        ratio=float(selectivity.ratio[latent]),
        diff=float(selectivity.diff[latent]),
        act_ratio=float(selectivity.act_ratio[latent]),
        forget_frequency=float(selectivity.forget_frequency[latent]),
        retain_frequency=float(selectivity.retain_frequency[latent]),
        forget=_stats(measured.forget, latent),
        retain={corpus: _stats(stats, latent) for corpus, stats in measured.retain.items()},
        snippets=snippets,
    )


def _stats(stats: LatentStats, latent: int) -> CorpusStats:
    return CorpusStats(
        fires=int(stats.fires[latent]),
        mean=float(stats.mean[latent]),
        mean_square=float(stats.mean_square[latent]),
        peak=float(stats.peaks[latent]),
    )
