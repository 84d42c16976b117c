"""``run``: the whole pipeline, for one model or several in turn; an SAE that is named is used instead of trained."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from sae_forge.config import ReportConfig, RunConfig
from sae_forge.outcome import Outcome, Sheet
from sae_forge.pipeline.bench import Bench
from sae_forge.pipeline.collect import collect
from sae_forge.pipeline.evaluate import evaluate
from sae_forge.pipeline.features import features
from sae_forge.pipeline.report import report
from sae_forge.pipeline.train import train
from sae_forge.progress import Progress


def run(configs: Sequence[RunConfig], progress: Progress) -> Outcome:
    """Every stage for every model; one whose output is there under the same settings is skipped by its own verb."""
    found = {config.model: _run_one(config, progress) for config in configs}
    last = Bench(configs[-1], progress)
    return Outcome(
        run=last.run,
        outputs={
            f"{model}/{name}": path
            for model, stages in found.items()
            for name, path in stages["report"].outputs.items()
        },
        metrics={model: {stage: done.metrics for stage, done in stages.items()} for model, stages in found.items()},
        summary="\n\n".join(_summary(model, stages) for model, stages in found.items()),
        tables=tuple(_titled(table, model) for model, stages in found.items() for table in stages["eval"].tables),
        then=last.next('generate "The young wizard"'),
    )


def _run_one(config: RunConfig, progress: Progress) -> dict[str, Outcome]:
    """The outcome of each stage, each working on what the one before it made; the model is loaded once."""
    if config.sae is not None:
        config = _around(config, progress)
    bench = Bench(config, progress)
    done: dict[str, Outcome] = {}

    def stage(name: str, work: Callable[[], Outcome]) -> Outcome:
        progress.say(f"{config.model}: {name}")
        started = time.monotonic()
        done[name] = work()
        done[name].log(name, time.monotonic() - started)
        return done[name]

    stage("collect", lambda: collect(config, bench))
    sae = config.sae or str(next(iter(stage("train", lambda: train(config, bench)).outputs.values())))
    on_sae = replace(config, sae=sae)
    selection = stage("features", lambda: features(on_sae, bench)).outputs["selection"]
    stage("eval", lambda: evaluate(replace(on_sae, selection=selection), bench))
    page = ReportConfig(model=config.model, run_dir=config.run_dir, sae=sae)
    stage("report", lambda: report(page, bench))
    return done


def _around(config: RunConfig, progress: Progress) -> RunConfig:
    """The config that collects where its SAE reads, once that SAE is known to fit the model.

    Raises:
        CheckpointError: it does not fit.
    """
    bench = Bench(config, progress)
    named = bench.sae(config.sae)
    bench.require_same_model(named)
    progress.say(f"{config.model}: no training, the SAE is {named.name}")
    return replace(config, sae=str(named.folder), layer=(named.point.layer,), site=named.point.site)


def _titled(table: Sheet, model: str) -> Sheet:
    return replace(table, title=f"{model}: {table.title}")


def _summary(model: str, stages: dict[str, Outcome]) -> str:
    return "\n".join(
        [model, *(stages[name].summary for name in ("train", "features", "eval", "report") if name in stages)]
    )
