"""``features``: an SAE and the shards it can judge become ranked selections of latents, one for each method."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sae_forge import ranks
from sae_forge.config.features import FeaturesConfig
from sae_forge.data.shards import ShardReader
from sae_forge.data.sinks import census
from sae_forge.data.texts.sources import corpus_identity, told_apart
from sae_forge.errors import DataError
from sae_forge.features.choices import answers
from sae_forge.features.identity import file_name, method_names
from sae_forge.features.methods.method import Found, adapted, table_of
from sae_forge.features.scores import Measured
from sae_forge.features.select import choose, measure
from sae_forge.features.selection import Selection
from sae_forge.features.sparsity_files import write_sparsity
from sae_forge.features.tables import COMPARED, comparison, table
from sae_forge.outcome import Outcome
from sae_forge.pipeline.asking.attribution import asking
from sae_forge.pipeline.bench import Bench
from sae_forge.pipeline.collected import REFUSAL, gather, missing, readers, require_same_weights, require_spelled
from sae_forge.results.sheets import Sheet
from sae_forge.sae.named import NamedSAE
from sae_forge.show.gallery import FREQUENCIES, Frequencies
from sae_forge.store import files

SHOWN = 20
"""Rows of the printed table; the file holds them all."""


@dataclass(frozen=True)
class _Corpora:
    """What the SAE is judged on."""

    forget: ShardReader
    retain: dict[str, ShardReader]
    refusal: ShardReader | None


def features(config: FeaturesConfig, bench: Bench) -> Outcome:
    """A selection file for each method, a picture of what it chose among all latents, and a table of them.

    Of several methods the first is the newest afterwards, so that is what eval takes.
    """
    config, team = bench.settle(config), ranks.here()
    with team.led():  # a pointer to an SAE made elsewhere has one writer
        named = bench.sae(config.sae)
    corpora = _corpora(config, bench, named)
    with team.led() as first:
        if first:
            bench.run.note_shards()
    paths = _paths(config, bench, named, corpora)
    is_there = all(path.exists() for path in paths.values()) and not config.starts_over
    team.agree("selections", {"names": [path.name for path in paths.values()], "is_there": is_there})
    if is_there:
        bench.progress.say(f"{', '.join(map(str, paths.values()))}: there under the same settings")
        selections = {method: Selection.load(path, weights=named.weights) for method, path in paths.items()}
    else:
        selections = _make(config, bench, named, corpora, paths)
    made = {method: paths[method] for method in selections}
    if team.leads:  # the newest is what eval takes, so the first method is noted last
        bench.run.note(*reversed(made.values()))
    return _outcome(bench, selections, made)


def selected(config: FeaturesConfig, bench: Bench) -> Path | None:
    """The selection that ``features`` finds there under these settings and eval takes; None where it would make one.

    Nothing is written.

    Raises:
        CheckpointError, DataError, ShardError: as ``features``, before it collects or counts.
    """
    config = bench.settle(config)
    named = bench.sae(config.sae, keeps=False)
    if config.starts_over or _wanted(config, bench, readers(bench.run, named.point)):
        return None
    paths = _paths(config, bench, named, _corpora(config, bench, named))
    return next(iter(paths.values())) if all(path.exists() for path in paths.values()) else None


def _paths(config: FeaturesConfig, bench: Bench, named: NamedSAE, corpora: _Corpora) -> dict[str, Path]:
    """The file of each method's selection."""
    decided = (config, corpora.forget, corpora.retain, named.weights)
    folder = bench.run.selections(named.folder)
    return {name: folder / file_name(name, *decided, refusal=corpora.refusal) for name in method_names(config)}


def _make(
    config: FeaturesConfig, bench: Bench, named: NamedSAE, corpora: _Corpora, paths: Mapping[str, Path]
) -> dict[str, Selection]:
    """Every selection, saved with its picture; all are chosen from one measurement, which ranks share out."""
    norm = None
    if not config.keep_sinks:
        sinks = census([corpora.forget, *corpora.retain.values()], named.provenance.sink_norm)
        norm = sinks.norm
        if sinks.sinks:
            bench.progress.say(sinks.said(bench.decode))
    answered = answers(config, named.sae, lambda: asking(config, bench, named, norm), bench.progress)
    measured = measure(
        corpora.forget, corpora.retain, named.sae, config, bench.progress,
        refusal=corpora.refusal, answered=answered, sink_norm=norm, decode=bench.decode,
    )  # fmt: skip
    with ranks.here().led() as first:
        selections = _choose(measured, answered, config, bench, named, corpora, paths) if first else {}
    chosen = ranks.here().tell([*selections])[0]  # a method that finds no latent is left out
    return selections or {method: Selection.load(paths[method], weights=named.weights) for method in chosen}


def _choose(
    measured: Measured,
    answered: Mapping[str, Found],
    config: FeaturesConfig,
    bench: Bench,
    named: NamedSAE,
    corpora: _Corpora,
    paths: Mapping[str, Path],
) -> dict[str, Selection]:
    selections = choose(
        measured, corpora.forget, corpora.retain, named.sae, config, bench.decode, bench.progress,
        name=named.name, weights=named.weights, answered=answered,
    )  # fmt: skip
    shortest = min(reader.rows for reader in (corpora.forget, *corpora.retain.values()))
    config = adapted(config, measured.forget, shortest)
    thresholds = {method.name: method.thresholds(config) for method in table_of(config)}
    selectivity = measured.selectivity(config)
    sides = selectivity.forget_frequency.tolist(), selectivity.retain_frequency.tolist()
    write_sparsity(next(iter(paths.values())).parent / "saebench", *sides)
    for method, selection in selections.items():
        shown = Frequencies(
            selectivity.forget_frequency.numpy(),
            selectivity.retain_frequency.numpy(),
            selection.indices,
            thresholds.get(method, {}),
        )
        files.publish_bytes(paths[method].with_suffix(".png"), FREQUENCIES.draw(shown, "png"))
        selection.save(paths[method])
    return selections


def _corpora(config: FeaturesConfig, bench: Bench, named: NamedSAE) -> _Corpora:
    """The corpora at the SAE's hook point; those that were asked for and are missing are collected now."""
    point = named.point
    shards = readers(bench.run, point)
    if wanted := _wanted(config, bench, shards):
        if not shards:  # as after training on windows, which leaves none: text is packed as it was for the SAE
            known = {"ctx_len": named.provenance.ctx_len or None, "bos": named.provenance.bos or None}
            given = {name: value for name, value in known.items() if value is not None and name not in config.spelled}
            config = replace(config, **given)
        names = ", ".join(f"{role} {source}" for role, source in wanted)
        bench.progress.say(f"not all that was asked for of {names} is collected at {point}: collecting first")
        gather(wanted, point, config, bench, shards)
        shards = readers(bench.run, point)
    trained_on, advice = named.provenance.weights, "collect with that model, or name an SAE of this one"
    require_same_weights(shards, lambda _: trained_on, f"the model of {named.name}", advice)
    forget = _in_role("forget", shards)
    if not forget:
        raise DataError(
            f"no forget activations at {point} in {bench.run.folder}; name the text to forget with --forget, "
            f"or collect it: {bench.next('collect')} --layer {point.layer} --forget FILE"
        )
    if len(forget) > 1:
        names = ", ".join(forget)
        raise DataError(f"{bench.run.folder} holds several forget corpora at {point} ({names}); keep one a run folder")
    refusal = _refusal(config.refusal_text, shards) if config.refusal_text else None
    return _Corpora(next(iter(forget.values())), _in_role("retain", shards), refusal)


def _wanted(config: FeaturesConfig, bench: Bench, shards: Sequence[ShardReader]) -> list[tuple[str, str]]:
    """Role and source of what was asked for and is not collected."""
    require_spelled(config, shards)
    wanted = missing(config, shards)
    if config.forget and not _in_role("forget", shards):
        wanted = [*wanted, ("forget", config.forget)]
    # text to keep is collected unasked where no activations are there, or where that was begun
    begun = set(bench.run.corpora) - {reader.folder.parent.name for reader in shards}
    sources = [source for source in config.retain if source]
    for source, name in zip(sources, told_apart(sources), strict=True):
        if not shards or f"retain-{name}" in begun:
            wanted.append(("retain", source))
    if config.refusal_text and _refusal(config.refusal_text, shards) is None:
        wanted = [*wanted, (REFUSAL, config.refusal_text)]
    return list(dict.fromkeys(wanted))


def _in_role(role: str, shards: Sequence[ShardReader]) -> dict[str, ShardReader]:
    """Readers of one role, by the name of their corpus."""
    return {reader.fingerprint.corpus: reader for reader in shards if reader.fingerprint.role == role}


def _refusal(source: str, shards: Sequence[ShardReader]) -> ShardReader | None:
    identity = corpus_identity(source)
    held = (reader for reader in shards if reader.fingerprint.role == REFUSAL)
    return next((reader for reader in held if reader.fingerprint.source == identity), None)


def _outcome(bench: Bench, selections: Mapping[str, Selection], paths: Mapping[str, Path]) -> Outcome:
    """What is told of the selections: latent by latent of one, side by side of several."""
    first = next(iter(selections))
    picture = paths[first].with_suffix(".png")
    outputs = {"selection": paths[first]} | ({"plot": picture} if picture.exists() else {})
    metrics = selections[first].metrics()
    if len(selections) > 1:
        outputs |= paths
        metrics |= {"selections": {method: selection.metrics() for method, selection in selections.items()}}
        sheet = Sheet(f"selections side by side; eval takes {first}", COMPARED, tuple(comparison(selections)))
    else:
        heads, rows = table(selections[first])
        title = f"{len(rows[:SHOWN])} of {len(rows)} chosen latents, {selections[first].order}"
        sheet = Sheet(title, heads, tuple(rows[:SHOWN]))
    return Outcome(
        run=bench.run,
        outputs=outputs,
        metrics=metrics,
        summary="\n".join(f"{selection.summary()}\n{paths[method]}" for method, selection in selections.items()),
        tables=(sheet,),
        then=bench.next("eval"),
    )
