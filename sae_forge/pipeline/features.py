"""``features``: an SAE and the shards it can judge become a ranked selection of latents."""

from typing import Any

from sae_forge import files
from sae_forge.config import CollectConfig, FeaturesConfig
from sae_forge.data.shards import ShardReader, find_shards
from sae_forge.errors import DataError
from sae_forge.features.select import Measured, choose, measure
from sae_forge.features.selection import COLUMNS, Selection, file_name, table
from sae_forge.hookpoint import HookPoint
from sae_forge.outcome import Outcome, Sheet
from sae_forge.pipeline.bench import Bench
from sae_forge.pipeline.collect import collect
from sae_forge.report.plots import frequency_scatter

SHOWN = 20
"""Rows of the printed table; the file holds them all."""


def features(config: FeaturesConfig, bench: Bench) -> Outcome:
    """A selection file, the picture of what was chosen among all latents, and the table of the best."""
    named = bench.sae(config.sae)
    forget, retain = _corpora(config, bench, named.point)
    path = bench.run.selections(named.folder) / file_name(config, forget, retain, named.weights)
    picture = path.with_suffix(".png")
    if path.exists() and not config.starts_over:
        bench.progress.say(f"{path} is there under the same settings")
        selection = Selection.load(path, weights=named.weights)
        path.touch()  # what was asked for last is the newest
    else:
        measured = measure(forget, retain, named.sae, config, bench.progress)
        selection = choose(
            measured, forget, retain, config, bench.decode, bench.progress, name=named.name, weights=named.weights
        )
        files.publish_bytes(picture, _picture(measured, selection, config))
        selection.save(path)
    shown = tuple(table(selection)[:SHOWN])
    title = f"{len(shown)} of {len(selection.latents)} chosen latents, best first"
    return Outcome(
        run=bench.run,
        outputs={"selection": path} | ({"plot": picture} if picture.exists() else {}),
        metrics=selection.metrics(),
        summary=f"{selection.summary()}\n{path}",
        tables=(Sheet(title, COLUMNS, shown),),
        then=bench.next("eval"),
    )


def _corpora(config: FeaturesConfig, bench: Bench, point: HookPoint) -> tuple[ShardReader, dict[str, ShardReader]]:
    """The forget corpus and the retain corpora at the SAE's hook point, collected now if the forget one is missing."""
    found = _by_role(bench, point)
    if not found["forget"] and config.forget:
        bench.progress.say(f"no forget activations at {point}: collecting first")
        collect(_at(config, point), bench)
        found = _by_role(bench, point)
    if not found["forget"]:
        raise DataError(
            f"no forget activations at {point} in {bench.run.folder}; name the text to forget with --forget, "
            f"or collect it: {bench.next('collect')} --layer {point.layer} --forget FILE"
        )
    if len(found["forget"]) > 1:
        names = ", ".join(found["forget"])
        raise DataError(f"{bench.run.folder} holds several forget corpora at {point} ({names}); keep one a run folder")
    return next(iter(found["forget"].values())), found["retain"]


def _by_role(bench: Bench, point: HookPoint) -> dict[str, dict[str, ShardReader]]:
    found: dict[str, dict[str, ShardReader]] = {"forget": {}, "retain": {}}
    for folder in find_shards(bench.run.folder, str(point)):
        reader = ShardReader(folder)
        found[reader.fingerprint.role][reader.fingerprint.corpus] = reader
    return found


def _at(config: FeaturesConfig, point: HookPoint) -> CollectConfig:
    """The settings that collect the forget corpus alone, at one hook point."""
    values: dict[str, Any] = {name: getattr(config, name) for name in CollectConfig.__dataclass_fields__}
    return CollectConfig(
        **(values | {"layer": (point.layer,), "site": point.site, "retain": (), "fresh": False, "resume": True})
    )


def _picture(measured: Measured, selection: Selection, config: FeaturesConfig) -> bytes:
    selectivity = measured.selectivity(config)
    drawn = {
        "inlp": ("min_freq", "max_freq", "max_neutral_freq"),
        "frequency": ("retain_threshold",),
    }.get(selection.method, ())
    return frequency_scatter(
        selectivity.forget_frequency.numpy(),
        selectivity.retain_frequency.numpy(),
        selection.indices,
        thresholds={name: getattr(config, name) for name in drawn},
    )
