"""VERB: shards and an SAE to selections of latents, in one pass a corpus for any number of methods.

The forget corpus goes first, so that the pass over each retain corpus knows which latents can still be chosen and
remembers where those fire, and only those. Measuring and choosing are apart: one measurement serves several settings,
and the frequency plot, which shows all latents, is drawn from it. A second pass, over a sample, analyses the choice.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from sae_forge.config.features import FeaturesConfig
from sae_forge.data.shards import ShardReader
from sae_forge.errors import ConfigError, DataError
from sae_forge.features.analysis import Analysis, jaccard, separations
from sae_forge.features.choices import Choice, answers, choices
from sae_forge.features.forms import looked_at
from sae_forge.features.identity import requested, settings
from sae_forge.features.methods.flags import ClearSettings, part_of
from sae_forge.features.methods.method import Ask, Found, adapted, asked_of, ranking, table_of
from sae_forge.features.scores import Measured, Selectivity
from sae_forge.features.selection import Corpus, CorpusStats, SelectedLatent, Selection
from sae_forge.features.snippets import Snippet, read_snippets
from sae_forge.features.stats import LatentStats, firing_rates, sequence_stride, survey
from sae_forge.progress import SILENT, Progress
from sae_forge.sae.dictionary import Dictionary

Decode = Callable[[list[int]], str]

COMMON = 0.05
"""Share of retain tokens from which on a refusal latent that was found deserves a warning."""


def select(
    forget: ShardReader,
    retain: Mapping[str, ShardReader],
    sae: Dictionary,
    config: FeaturesConfig,
    decode: Decode | None = None,
    progress: Progress = SILENT,
    *,
    name: str,
    weights: str,
    refusal: ShardReader | None = None,
    ask: Callable[[], Ask] | None = None,
    sink_norm: float | None = None,
) -> dict[str, Selection]:
    """:func:`answers`, then :func:`measure`, then :func:`choose`.

    Args:
        ask: Makes what asks a model, for methods that do.
        sink_norm: Length beyond which an activation is a sink's and left out.
    """
    answered = answers(config, sae, ask, progress)
    measured = measure(
        forget, retain, sae, config, progress, refusal=refusal, answered=answered, sink_norm=sink_norm, decode=decode
    )  # fmt: skip
    what = {"name": name, "weights": weights}
    return choose(measured, forget, retain, sae, config, decode, progress, answered=answered, **what)


def measure(
    forget: ShardReader,
    retain: Mapping[str, ShardReader],
    sae: Dictionary,
    config: FeaturesConfig,
    progress: Progress = SILENT,
    *,
    refusal: ShardReader | None = None,
    answered: Mapping[str, Found] | None = None,
    sink_norm: float | None = None,
    decode: Decode | None = None,
) -> Measured:
    """Read every corpus once, for all methods asked for.

    Args:
        refusal: Text where the model refuses.
        answered: What the methods found that ask a model.
        sink_norm: Length beyond which an activation is a sink's and left out.
        decode: Token ids to text, to compare the forms of the corpora and mark tokens; None: neither is done.

    Raises:
        DataError: there is no retain corpus.
        ConfigError: a latent given by ``config`` is not one of the SAE's.
        ShardError: a corpus was collected elsewhere than the SAE reads.
    """
    if not retain:
        raise DataError("features compares against text to keep, and no retain corpus is collected; give --retain")
    _check(config, sae.d_sae)
    threshold = part_of(config, ClearSettings).fire_threshold
    how: dict[str, Any] = {"fire_threshold": threshold, "sink_norm": sink_norm, "progress": progress}
    forms, marks = looked_at(forget, retain, decode) if decode else (None, None)
    for line in forms.lines() if forms else ():
        progress.say(line)
    of_forget = survey(forget, sae, title="forget", keep_top=config.snippets, marks=marks, **how)
    config = adapted(config, of_forget, _shortest(forget, retain))
    watch = _may_be_chosen(of_forget, config, answered or {})
    of_retain = {
        corpus: survey(reader, sae, title=f"retain {corpus}", watch=watch, **how) for corpus, reader in retain.items()
    }
    of_refusal = survey(refusal, sae, title="refusal", **how) if refusal else None
    return Measured(of_forget, of_retain, of_refusal, sink_norm, forms)


def choose(
    measured: Measured,
    forget: ShardReader,
    retain: Mapping[str, ShardReader],
    sae: Dictionary,
    config: FeaturesConfig,
    decode: Decode | None = None,
    progress: Progress = SILENT,
    *,
    name: str,
    weights: str,
    answered: Mapping[str, Found] | None = None,
) -> dict[str, Selection]:
    """The best valid latents by each method asked for, or the list that was given, with every statistic and analysed.

    Of several methods, one that finds no valid latent is told and left out.

    Args:
        measured: What :func:`measure` found with a config of the same ``method``, filters and ``latents``.
        decode: Token ids to text, for snippets; None leaves them out.
        name: The SAE's folder relative to the run's ``saes``.
        weights: sha256 of its weights file.
        answered: What the methods found that ask a model.

    Raises:
        DataError: no latent passes the filters of any method; says how many each removed.
    """
    config = adapted(config, measured.forget, _shortest(forget, retain))
    selectivity = measured.selectivity(config)
    taken = choices(measured, selectivity, config, answered or {}, progress)
    refusal = _refusal_latent(measured, config, progress)
    snippets = _snippets(measured, forget, taken, config, decode)
    analyses = _analyses(measured, forget, retain, sae, config, taken, progress)
    corpora = {corpus: _corpus(reader) for corpus, reader in retain.items()}
    dead = tuple((~measured.alive).nonzero()[:, 0].tolist())
    return {
        method: Selection(
            sae=name,
            weights=weights,
            d_sae=measured.d_sae,
            method=method,
            settings=settings(method, config) | choice.settings,
            forget_corpus=_corpus(forget),
            retain_corpora=corpora,
            requested=requested(config),
            candidates=choice.candidates,
            filtered=choice.filtered,
            latents=tuple(
                _record(latent, measured, selectivity, choice, snippets[latent]) for latent in choice.latents.tolist()
            ),
            retain_rates={
                corpus: firing_rates(stats.firings, choice.latents) for corpus, stats in measured.retain.items()
            },
            dead=dead,
            refusal_latent=refusal,
            analysis=analyses[method],
            sink_norm=measured.sink_norm,
            forms=measured.forms,
        )
        for method, choice in taken.items()
    }


def _shortest(forget: ShardReader, retain: Mapping[str, ShardReader]) -> int:
    """Tokens of the shortest corpus."""
    return min(reader.rows for reader in (forget, *retain.values()))


def _check(config: FeaturesConfig, d_sae: int) -> None:
    latents = config.latents or ()
    given = {"latents": latents, "refusal_latent": () if config.refusal_latent is None else (config.refusal_latent,)}
    for flag, indices in given.items():
        if outside := [latent for latent in indices if latent >= d_sae]:
            raise ConfigError(f"--{flag} names {outside[0]}, but the SAE has latents 0 to {d_sae - 1}")
    if len(set(latents)) < len(latents):
        raise ConfigError(f"--latents {','.join(map(str, latents))} names a latent twice; name each once")


def _may_be_chosen(forget: LatentStats, config: FeaturesConfig, answered: Mapping[str, Found]) -> Bool[Tensor, "d_sae"]:
    known = torch.zeros(len(forget.fires), dtype=torch.bool)
    if config.latents is not None:
        known[list(config.latents)] = True
        return known
    for one in answered.values():
        known[list(one.scores)] = True
    counted = [method.may_be_chosen(forget, config) for method in asked_of(config) if method.rank]
    return torch.stack([known, *counted]).any(0)


def _refusal_latent(measured: Measured, config: FeaturesConfig, progress: Progress) -> int | None:
    """The latent that was named, else the one that fires on most tokens of the refusal text, if there is one."""
    if measured.refusal is None:
        return config.refusal_latent
    fires = measured.refusal.clear_fires
    latent = int(fires.argmax())
    if not fires[latent]:
        raise DataError(f"no latent fires on the refusal text {config.refusal}; name another --refusal")
    share = float(measured.worst(lambda stats: stats.clear_frequency)[latent])
    if share > COMMON:
        progress.say(
            f"refusal latent {latent} also fires on {share:.1%} of the tokens of a retain corpus: it may stand for "
            "something common; read what it fires on, or name another with --refusal_latent"
        )
    return latent


def _snippets(
    measured: Measured,
    forget: ShardReader,
    taken: Mapping[str, Choice],
    config: FeaturesConfig,
    decode: Decode | None,
) -> dict[int, tuple[Snippet, ...]]:
    """The snippets of every chosen latent."""
    latents = torch.cat([choice.latents for choice in taken.values()]).unique().tolist()
    if decode is None or not config.snippets:
        return dict.fromkeys(latents, ())
    return dict(zip(latents, read_snippets(forget, measured.forget.top, latents, decode), strict=True))


def _analyses(
    measured: Measured,
    forget: ShardReader,
    retain: Mapping[str, ShardReader],
    sae: Dictionary,
    config: FeaturesConfig,
    taken: Mapping[str, Choice],
    progress: Progress,
) -> dict[str, Analysis]:
    chosen = {method: choice.latents for method, choice in taken.items()}
    others = [method for method in table_of(config) if method.rank and method.rival]
    rivals = {
        n: {rival.name: ranking(rival, measured, config, n).best(n) for rival in others}
        for n in {choice.rivals_take for choice in taken.values()}
    }
    apart = separations(forget, retain, sae, chosen, sink_norm=measured.sink_norm, progress=progress)
    return {
        method: Analysis(
            separation=apart[method],
            overlap={
                rival: jaccard(choice.latents, theirs)
                for rival, theirs in rivals[choice.rivals_take].items()
                if rival != method
            },
        )
        for method, choice in taken.items()
    }


def _corpus(reader: ShardReader) -> Corpus:
    return Corpus(
        name=reader.manifest.fingerprint.corpus,
        tokens=reader.rows,
        manifest=reader.manifest.sha256,
        rates_every=sequence_stride(reader),
    )


def _record(
    latent: int, measured: Measured, selectivity: Selectivity, choice: Choice, snippets: tuple[Snippet, ...]
) -> SelectedLatent:
    return SelectedLatent(
        index=latent,
        score=float(choice.scores[latent]),
        ratio=float(selectivity.ratio[latent]),
        diff=float(selectivity.diff[latent]),
        act_ratio=float(selectivity.act_ratio[latent]),
        forget_frequency=float(selectivity.forget_frequency[latent]),
        retain_frequency=float(selectivity.retain_frequency[latent]),
        forget=_stats(measured.forget, latent),
        retain={corpus: _stats(stats, latent) for corpus, stats in measured.retain.items()},
        snippets=snippets,
        marks={kind: round(float(share[latent]), 4) for kind, share in measured.marks.items()},
    )


def _stats(stats: LatentStats, latent: int) -> CorpusStats:
    return CorpusStats(
        fires=int(stats.fires[latent]),
        mean=float(stats.mean[latent]),
        mean_square=float(stats.mean_square[latent]),
        peak=float(stats.peaks[latent]),
    )
