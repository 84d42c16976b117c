"""The activations a verb stands on: what is collected at a hook point, and what was asked for and is not there yet.

A preset or a default yields to what is there. A setting that the user spelled out does not: it is met, by collecting
a corpus that is missing, or the verb ends naming the setting.
"""

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

from sae_forge import ranks
from sae_forge.collect import collect
from sae_forge.config.collect import CollectConfig
from sae_forge.config.fields import described
from sae_forge.data.shards import Fingerprint, ShardReader, complete, find_shards
from sae_forge.data.texts.sources import corpus_identity, named
from sae_forge.errors import ShardError
from sae_forge.features.selection import Selection
from sae_forge.hookpoint import HookPoint
from sae_forge.methods.materials import Shards
from sae_forge.pipeline.bench import Bench
from sae_forge.store import files, weights
from sae_forge.store.runs import Run
from sae_forge.store.tensors import DTYPES

REFUSAL = "refusal"
"""Role of text in which the model refuses: read for its activations, never trained on."""

_KEPT = {
    name: kept
    for name, said in described(CollectConfig).items()
    if "shards" in said.decides
    and (kept := {"model_batch_size": "batch_size"}.get(name, name)) in Fingerprint.__dataclass_fields__
}
"""Settings that decide what shards hold, and what their fingerprint calls them."""


def readers(run: Run, point: HookPoint) -> list[ShardReader]:
    """Every complete corpus of activations at ``point``; where runs may share a place, those this run asked for."""
    place = run.shards
    if run.elsewhere and (names := run.corpora):  # looked up by name: a listing may be late
        folders = [place / name / str(point) for name in names]
        return [ShardReader(folder) for folder in folders if complete(folder)]
    return [ShardReader(folder) for folder in find_shards(run.folder, str(point), shards=place)]


def shards_of(selection: Selection, run: Run, point: HookPoint) -> Shards | None:
    """The activations that the selection was made from, if the run folder still holds them all."""
    by_manifest = {reader.manifest.sha256: reader for reader in readers(run, point)}
    forget = by_manifest.get(selection.forget_corpus.manifest)
    retain = {name: by_manifest.get(corpus.manifest) for name, corpus in selection.retain_corpora.items()}
    kept = {name: reader for name, reader in retain.items() if reader is not None}
    return None if forget is None or len(kept) < len(retain) else Shards(forget, kept)


def note(run: Run, shards: Sequence[ShardReader]) -> None:
    """Keep to these corpora from here on, where runs may share a place; on the first rank alone."""
    if run.elsewhere and shards:
        run.plan_corpora(reader.folder.parent.name for reader in shards)


def require_same_weights(
    shards: Sequence[ShardReader], weights_as: Callable[[str], str], name: str, advice: str
) -> None:
    """Refuse activations of another model than the one called ``name``, where that is known.

    Args:
        weights_as: That model's weights, named as those of a folder are.

    Raises:
        ShardError: names the folder and both models.
    """
    for reader in shards:
        there = reader.fingerprint
        made = f"{reader.folder} was collected from {there.model}"
        weights.require_same(there.weights, weights_as(there.weights), made, name, kind=ShardError, advice=advice)


def require_spelled(config: CollectConfig, shards: Sequence[ShardReader]) -> None:
    """Refuse shards that contradict a setting the user named.

    Raises:
        ShardError: names the folder, the setting and both values.
    """
    spelled = [name for name in _KEPT if name in config.spelled and getattr(config, name) != "auto"]
    for reader in shards:
        # more tokens than there are is no contradiction: they are collected
        named = [name for name in spelled if name != "max_tokens" or _source_of_more(config, reader) is None]
        kept = [(name, getattr(config, name), getattr(reader.fingerprint, _KEPT[name])) for name in named]
        for name, asked, there in (*kept, *_source(config, reader), *_arithmetic(config, reader)):
            if asked != there:
                raise ShardError(
                    f"{reader.folder} was collected under other settings: --{name} expected {asked!r}, "
                    f"found {there!r}. Leave the flag out to use what is there, choose another --run_dir or "
                    "--shards_dir, or delete that folder if it is this run's and collect again"
                )


def missing(config: CollectConfig, shards: Sequence[ShardReader]) -> list[tuple[str, str]]:
    """Role and source of each corpus of which the user asks for more than is collected: all of it, or more tokens."""
    there = {(reader.fingerprint.role, reader.fingerprint.source) for reader in shards}
    named = [(role, source) for role in ("forget", "retain") if role in config.spelled for source in _of(config, role)]
    absent = [(role, source) for role, source in named if (role, corpus_identity(source)) not in there]
    short = [(reader.fingerprint.role, source) for reader in shards if (source := _source_of_more(config, reader))]
    return [*absent, *short]


def _source_of_more(config: CollectConfig, reader: ShardReader) -> str | None:
    """Where to read on, if the user asks for more tokens of a corpus than there are."""
    most = reader.fingerprint.max_tokens
    if "max_tokens" not in config.spelled or most is None or (config.max_tokens or most + 1) <= most:
        return None
    sources = _of(config, reader.fingerprint.role) if reader.fingerprint.role != REFUSAL else ()
    return next((source for source in sources if corpus_identity(source) == reader.fingerprint.source), None)


def gather(
    corpora: Sequence[tuple[str, str]],
    point: HookPoint,
    config: CollectConfig,
    bench: Bench,
    shards: Sequence[ShardReader],
) -> None:
    """Collect further corpora at one hook point, in the way of those that are there but for what was spelled out."""
    with ranks.here().led() as first:
        if first:
            note(bench.run, shards)
    bench.progress.say(collect(further(point, config, shards), bench.lm, corpora, bench.progress).summary())


def further(point: HookPoint, config: CollectConfig, shards: Sequence[ShardReader]) -> CollectConfig:
    """The settings by which further corpora are collected beside these."""
    values: dict[str, Any] = {entry.name: getattr(config, entry.name) for entry in fields(CollectConfig)}
    for name in _KEPT:
        if shards and name not in config.spelled and name not in ("split", "text_field"):  # these are the new text's
            values[name] = getattr(shards[0].fingerprint, _KEPT[name])
    here = {"layer": (point.layer,), "site": point.site, "fresh": False, "resume": True}
    return CollectConfig(**(values | here))


def _of(config: CollectConfig, role: str) -> tuple[str, ...]:
    """Sources of a role; an empty name is none."""
    return tuple(filter(None, (config.forget,) if role == "forget" else config.retain))


def _source(config: CollectConfig, reader: ShardReader) -> list[tuple[str, Any, Any]]:
    """Flag, sources asked for, and the folder's own, where it is none of them."""
    role, source = reader.fingerprint.role, reader.fingerprint.source
    if role not in config.spelled or role == REFUSAL:
        return []
    asked = [corpus_identity(named) for named in _of(config, role)]
    if source in asked:
        return []
    for place in _of(config, role):
        named(place)  # what is not there is told as that, not as another text
    name, hashed, _ = source.partition(" xxh3:")
    if hashed and name in [identity.partition(" xxh3:")[0] for identity in asked]:
        raise ShardError(
            f"the text of {name} has changed since it was collected in {reader.folder}; collect --fresh starts "
            "over; else restore it, or choose another --run_dir"
        )
    return [(role, ", ".join(asked), source)]


def _arithmetic(config: CollectConfig, reader: ShardReader) -> list[tuple[str, Any, Any]]:
    """Flag, value asked for and value noted beside the shards: a fingerprint does not say what computed them."""
    named = [name for name in ("dtype", "quantize") if name in config.spelled and getattr(config, name) != "auto"]
    if not named:
        return []
    record = files.read_json(reader.folder / "config.json", kind=ShardError, what="the settings of a shard folder")
    model = record.get("model") if isinstance(record, dict) else None
    if not isinstance(model, dict):
        raise ShardError(f"{reader.folder / 'config.json'} does not say what computed the shards; collect them again")
    asked = {"quantize": config.quantize, "dtype": str(DTYPES.get(config.dtype)).removeprefix("torch.")}
    return [(name, asked[name], model.get(name)) for name in named]
