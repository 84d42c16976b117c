"""``train``: an SAE at every hook point, on shards that are collected first where they are missing, or on windows."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sae_forge import ranks
from sae_forge.config.train import TrainConfig
from sae_forge.data.held_out import HELD_OUT, held_out
from sae_forge.data.shards import Fingerprint, ShardReader
from sae_forge.data.sinks import census
from sae_forge.data.stream import require_pools
from sae_forge.data.texts.sources import corpus_identity
from sae_forge.data.windows import Stream
from sae_forge.errors import CheckpointError, DataError, RemoteError
from sae_forge.hookpoint import HookPoint
from sae_forge.outcome import Outcome
from sae_forge.pipeline import collected
from sae_forge.pipeline.bench import Bench, device_of
from sae_forge.pipeline.collect import collect
from sae_forge.pipeline.streaming import training_stream, windowed
from sae_forge.sae.store import Provenance, load_sae
from sae_forge.store import weights
from sae_forge.store.runs import Run
from sae_forge.study.recovered import ce_recovered
from sae_forge.tasks.engines.losses import Corpus, load_corpus
from sae_forge.training.architectures.table import architecture_of
from sae_forge.training.plan import stored_settings
from sae_forge.training.report import TrainReport, load_report, save_report
from sae_forge.training.tracking import require_tracker
from sae_forge.training.trainer import Place, train_saes


def train(config: TrainConfig, bench: Bench) -> Outcome:
    """One SAE or several at every hook point.

    The shards are collected first where they are missing; with ``max_disk_gb`` they come and go, one window at a time.
    """
    _ = architecture_of(config)  # what training would refuse after a long collect
    require_tracker(config.track)
    config = bench.settle(config)
    if config.max_disk_gb is None:
        _collect_missing(config, bench)
    else:
        require_sizes(config, bench)
    with ranks.here().led() as first:
        if first:
            bench.run.open(bench.config.model, bench.lm.weights, opening=bench.lm.opening.to_json())
            if config.max_disk_gb is None:
                collected.note(bench.run, [reader for point in bench.points for reader in shards_of(bench.run, point)])
    train_at = _train_at if config.max_disk_gb is None else _train_in_windows
    trained = {name: done for point in bench.points for name, done in train_at(point, config, bench).items()}
    metrics = {name: report.to_json() for name, (_, report) in trained.items()}
    return Outcome(
        run=bench.run,
        outputs={name: folder for name, (folder, _) in trained.items()},
        metrics=next(iter(metrics.values())) if len(metrics) == 1 else metrics,
        summary="\n".join(f"{folder}: {report.summary()}" for folder, report in trained.values()),
        then=bench.next("features"),
    )


def _collect_missing(config: TrainConfig, bench: Bench) -> None:
    """Have every corpus that was named at every hook point."""
    if absent := absent_points(config, bench):
        require_sizes(config, bench)
        bench.progress.say(f"no activations at {', '.join(absent)} in {bench.run.folder}: collecting first")
        bench.progress.say(collect(config, bench).summary)
    for point in bench.points:
        shards = shards_of(bench.run, point)
        if named := collected.missing(config, shards):
            require_sizes(config, bench, shards)
            sources = ", ".join(source for _, source in named)
            bench.progress.say(f"not all that was asked for of {sources} is collected at {point}: collecting")
            collected.gather(named, point, config, bench, shards)


def absent_points(config: TrainConfig, bench: Bench) -> list[str]:
    """Hook points where nothing is collected, or a collect was stopped before its last corpus.

    Raises:
        ShardError: what is there is another model's, or contradicts a setting that was named.
    """
    for point in bench.points:
        shards = shards_of(bench.run, point)
        collected.require_spelled(config, shards)
        advice = "name that model, or another --run_dir and --shards_dir"  # a place that runs share may hold others'
        collected.require_same_weights(shards, bench.lm.weights_as, bench.lm.name, advice)
    wanted = {name for name in bench.run.corpora if not name.startswith(f"{collected.REFUSAL}-")}
    there = {point: {reader.folder.parent.name for reader in shards_of(bench.run, point)} for point in bench.points}
    return [str(point) for point, names in there.items() if not names or not names >= wanted]


def require_sizes(config: TrainConfig, bench: Bench, shards: Sequence[ShardReader] = ()) -> None:
    """Refuse before a long collect what training would refuse after it; further corpora are stored as those found."""
    d_in = bench.lm.width(bench.points[0])
    _ = config.saes(d_in)
    stored = shards[0].fingerprint.storage_dtype if shards else config.storage_dtype
    require_pools(config.shuffle_gb, d_in=d_in, storage_dtype=stored, batch_size=config.batch_size)


def _train_at(point: HookPoint, config: TrainConfig, bench: Bench) -> "_Trained":
    """Train on the shards that are there."""
    config, readers, unseen = readied(shards_of(bench.run, point), point, config, bench)
    if not config.keep_sinks and (sinks := census(readers)).sinks:
        bench.progress.say(sinks.said(bench.decode))
    return _train_on(
        training_stream(config, readers), provenance_of(readers, unseen, bench), point, config, bench, unseen
    )


def readied(
    readers: Sequence[ShardReader], point: HookPoint, config: TrainConfig, bench: Bench
) -> tuple[TrainConfig, list[ShardReader], dict[str, int]]:
    """The settings that fit these shards, and what of them is trained on; nothing is written.

    The third is, of each corpus by its identity, how many sequences come before those held out.
    """
    if not config.include_forget:
        readers = [reader for reader in readers if reader.fingerprint.role != "forget"]
    if not readers:
        raise DataError(f"--no_include_forget leaves no activations at {point}; collect text to keep with --retain")
    begun = _begun(point, readers[0].d_in, config, bench)
    # the rows decide the steps, so an SAE that is there keeps to what it began on, whatever it is measured on now
    holds_out = not config.retain_eval if begun is None else begun["data"].get("held_out") is not None
    beyond = held_out(readers) if holds_out else {}
    readers = [reader.only(beyond[reader].blocks) if reader in beyond else reader for reader in readers]
    unseen = {reader.fingerprint.source: part.sequences for reader, part in beyond.items()}
    fitted = config.fitted(rows := sum(reader.rows for reader in readers))
    if begun is not None and "batch_size" not in config.spelled and isinstance(batch := begun.get("batch_size"), int):
        fitted = config if batch == config.batch_size else replace(fitted, batch_size=batch)
    if fitted is not config:
        bench.progress.say(
            f"{rows:,} tokens are few: trained on {fitted.epochs} times in batches of {fitted.batch_size:,} "
            "(--epochs, --batch_size)"
        )
        config = fitted
    return config, readers, unseen


def provenance_of(readers: Sequence[ShardReader], unseen: Mapping[str, int], bench: Bench) -> Provenance:
    """What an SAE that is trained on these may be used for."""
    shards = {reader.manifest.sha256: reader.fingerprint for reader in readers}
    return replace(_provenance(shards, bench), held_out=HELD_OUT if unseen else None)


def _begun(point: HookPoint, d_in: int, config: TrainConfig, bench: Bench) -> dict[str, Any] | None:
    """The settings of the first SAE among those asked for that is there already, finished or not."""
    shapes = () if config.starts_over else config.saes(d_in)
    folders = (bench.run.sae(point, **one._asdict(), architecture=config.other_architecture) for one in shapes)
    return next((stored for folder in folders if (stored := stored_settings(folder)) is not None), None)


def _train_in_windows(point: HookPoint, config: TrainConfig, bench: Bench) -> "_Trained":
    """Train on shards that come and go."""
    with windowed(point, config, bench) as (stream, plan):
        shards = {f"{plan.sha256} {name}": cut.fingerprint for name, cut in plan.cuts.items()}
        return _train_on(stream, _provenance(shards, bench), point, config, bench)


_Trained = dict[str, tuple[Path, TrainReport]]
"""Folder and report of each SAE at a hook point, by the point's name and, of several, the SAE's."""


def _train_on(
    stream: Stream,
    provenance: Provenance,
    point: HookPoint,
    config: TrainConfig,
    bench: Bench,
    unseen: Mapping[str, int] = MappingProxyType({}),
) -> _Trained:
    """Every SAE asked for, trained and measured.

    Args:
        unseen: For corpora, by their identity, how many of their sequences come before those held out.
    """
    places = {}
    for shape in config.saes(stream.d_in):
        folder = bench.run.sae(point, **shape._asdict(), architecture=config.other_architecture)
        places[shape] = Place(folder=folder, log=bench.run.logs / f"train-{point}-{folder.name}.jsonl")

    def note() -> None:
        with ranks.here().led() as first:
            if first:  # what was asked for last is the newest, and an SAE that does not come to its end is none
                bench.run.note(*(place.folder for place in places.values()))

    before = [None if config.starts_over else load_report(place.folder) for place in places.values()]
    # opened before hours of training, where the loss of some SAE is still to be measured
    texts = _texts(config, bench, unseen) if any(one is None or one.ce_recovered is None for one in before) else []
    reports = train_saes(stream, config, places, provenance, progress=bench.progress, opened=note)
    trained = {}
    for shape, report in reports.items():
        folder = places[shape].folder
        with ranks.here().led() as first:
            if first and report.ce_recovered is None:  # also of an SAE that was measured and is trained further now
                texts = texts or _texts(config, bench, unseen)
            if first and report.ce_recovered is None and texts:
                sae, known = load_sae(folder, device=device_of(config.sae_device))
                live = ce_recovered(bench.lm, sae, point, texts, known.sink_norm, bench.progress)
                report = replace(
                    report, fvu=live.fvu, fvu_stored=report.fvu, l0=live.l0, fvu_pca=live.fvu_pca,
                    fvu_with_sinks=live.fvu_with_sinks, ce_recovered=live.share,
                    ce_recovered_with_sinks=live.share_with_sinks,
                )  # fmt: skip
                save_report(folder, report)
        trained[str(point) if len(reports) == 1 else f"{point}/{folder.name}"] = (folder, report)
    return trained


def shards_of(run: Run, point: HookPoint) -> list[ShardReader]:
    """Every complete corpus of activations at ``point`` that may be trained on."""
    return [reader for reader in collected.readers(run, point) if reader.fingerprint.role != collected.REFUSAL]


def _provenance(shards: Mapping[str, Fingerprint], bench: Bench) -> Provenance:
    """What an SAE may be used for; shards of two models or two ways of reading are refused.

    Args:
        shards: Settings of each corpus by what names its content.
    """
    first, *others = shards.values()
    for other in others:
        for name in ("weights", "tokenizer", "ctx_len", "bos"):
            expected, its = getattr(first, name), getattr(other, name)
            # weights that one of two versions did not record may be the same, so only a clear no refuses
            if weights.same(expected, its) is False if name == "weights" else expected != its:
                raise CheckpointError(
                    f"the corpora {first.corpus} and {other.corpus} were collected apart: {name} expected "
                    f"{expected}, found {its}; collect both again with --fresh"
                )
    point = HookPoint.parse(first.hook_point)
    return Provenance(
        model=first.model,
        hook_point=first.hook_point,
        hf_hook_name=f"{bench.lm.family.layers}.{point.layer}" if point.site == "resid_post" else None,
        ctx_len=first.ctx_len,
        bos=first.bos,
        datasets=tuple(corpus.source for corpus in shards.values()),
        tokenizer=first.tokenizer,
        weights=first.weights,
        shards=tuple(shards),
    )


def _texts(config: TrainConfig, bench: Bench, unseen: Mapping[str, int]) -> list[Corpus]:
    """Text for the loss with an SAE spliced in; what nobody named may be missing."""
    texts = []
    sources = config.retain_eval or [each for each in config.retain if corpus_identity(each) in unseen] or config.retain
    if not config.retain_eval:
        where = f"the last {HELD_OUT:.0%} of the retain text, which is held out"
        where = where if unseen else "text the SAE was trained on: there is too little to hold some out, or it began so"
        bench.progress.say(f"no --retain_eval: FVU and spliced loss are measured on {where}")
    for source in sources:
        try:
            beyond = 0 if config.retain_eval else unseen.get(corpus_identity(source), 0)
            texts.append(load_corpus(bench.lm, source, "retain", config, beyond=beyond))
        except (DataError, RemoteError) as error:
            if config.retain_eval or "retain" in config.spelled:
                raise
            bench.progress.say(f"FVU and spliced loss are not measured on {source}: {error}")
    if not texts:
        bench.progress.say("there is no text to measure FVU and spliced loss on; name some with --retain_eval")
    return texts
