"""``collect``: every corpus the config names becomes shards."""

from sae_forge.collect import collect as store_activations
from sae_forge.config.collect import CollectConfig
from sae_forge.outcome import Outcome
from sae_forge.pipeline.bench import Bench


def corpora(config: CollectConfig) -> list[tuple[str, str]]:
    """Role and source of every corpus the config names."""
    forget = [("forget", config.forget)] if config.forget else []
    return [*forget, *(("retain", source) for source in config.retain)]


def collect(config: CollectConfig, bench: Bench) -> Outcome:
    """Shards of every corpus the config names, at every hook point, in one pass a corpus."""
    config = bench.settle(config)
    if not config.forget:
        bench.progress.say("no --forget: collecting text to keep alone")
    report = store_activations(config, bench.lm, corpora(config), bench.progress)
    return Outcome(
        run=bench.run,
        outputs={f"{folder.parent.name}/{folder.name}": folder for folder in report.folders},
        metrics=report.to_json(),
        summary=report.summary(),
        then=bench.next("train"),
    )
