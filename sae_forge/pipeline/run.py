"""``run``: the whole pipeline, for one model or several in turn; an SAE that is named is used instead of trained."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from sae_forge.config.report import ReportConfig
from sae_forge.config.run import RunConfig
from sae_forge.data.texts.corpus import iter_texts
from sae_forge.data.texts.sources import first_tenth_apart
from sae_forge.errors import DataError, RemoteError
from sae_forge.outcome import Outcome
from sae_forge.pipeline.bench import Bench
from sae_forge.pipeline.collect import collect
from sae_forge.pipeline.evaluate import evaluate
from sae_forge.pipeline.features import features
from sae_forge.pipeline.known import texts_of
from sae_forge.pipeline.report import report
from sae_forge.pipeline.several import Each
from sae_forge.pipeline.sheets.published import as_published, published_beside
from sae_forge.pipeline.train import train
from sae_forge.progress import Progress
from sae_forge.results.report import load_report
from sae_forge.settings import presets
from sae_forge.study.sweep import require_possible
from sae_forge.training.architectures.table import architecture_of
from sae_forge.training.tracking import require_tracker

WHY = {
    "collect": "it reads what it is to forget and what it is to keep; what a layer computes is stored",
    "train": "a sparse autoencoder learns to write that as a few of many latents a token",
    "features": "latents are chosen that fire on the text to forget and not on the text to keep",
    "eval": "they are edited while the model runs, and it is asked before and after, beside controls",
    "report": "all of it on one page",
}
"""What each stage does, for who watches."""
WORDS = 4
"""Of a text, as a prompt."""


def run(configs: Sequence[RunConfig], progress: Progress, preset: str | None = None) -> Outcome:
    """Every stage for every model; one whose output is there under the same settings is skipped by its own verb.

    Args:
        preset: Name of the preset the configs were made from, whose published numbers are shown beside the measured.

    Raises:
        DataError: a file that the preset names is not there; says what belongs in it.
    """
    chosen = presets()[preset] if preset else {}
    for config in configs:
        require_files(config, preset, chosen.get("needs", {}))
    said = {config.model: as_published(preset, chosen, config) for config in configs} if preset else {}
    for sheet in said.values():
        progress.say(sheet.title)
        for kind, words in sheet.rows:
            progress.say(f"  {kind}: {words}")
    outcomes: dict[str, Mapping[str, Outcome]] = {}
    told, sheets, tables, failed = [], [], {}, {}
    for config in configs:
        each, bench = Each.of(config), Bench(config, progress)
        if not each.are_several:
            one = replace(config, sae=each.names[0]) if each.names else config
            outcomes[config.model] = _run_one(one, bench.under(one))
            continue
        each.work(config, lambda one, bench=bench: _run_one(one, bench.under(one)), progress)
        outcomes |= {f"{config.model} {name}": stages for name, stages in each.done.items()}
        failed |= {f"{config.model} {name}": {"failed": str(error)} for name, error in each.failed.items()}
        table = each.table(bench.run)
        tables[f"{config.model}/several"] = table.save(bench.run.folder)
        sheets.append(replace(table.sheet(), title=f"{config.model}: {table.sheet().title}"))
    for model, stages in outcomes.items():
        shown = [stages[name].summary for name in ("train", "features", "eval", "report") if name in stages]
        told.append("\n".join([model, *shown]))
        published = published_beside(chosen, load_report(stages["eval"].outputs["report"]))
        sheets += [
            replace(sheet, title=f"{model}: {sheet.title}")
            for sheet in (*stages["eval"].tables, published, *((said[model],) if model in said else ()))
            if sheet.rows
        ]
    last = Bench(configs[-1], progress)
    return Outcome(
        run=last.run,
        outputs={
            f"{model}/{name}": path
            for model, stages in outcomes.items()
            for name, path in stages["report"].outputs.items()
        }
        | tables,
        metrics={model: {stage: done.metrics for stage, done in stages.items()} for model, stages in outcomes.items()}
        | failed,
        summary="\n\n".join(told),
        tables=tuple(sheets),
        then=_then(configs[-1], last),
    )


def _then(config: RunConfig, bench: Bench) -> list[str]:
    """The commands to try next: the opening words of what was to be forgotten, continued; what a sweep would take."""
    words: list[str] = []
    forget = next((text.source for text in texts_of(bench.run) if text.role == "forget"), None)
    config = bench.settle(config)
    if forget is not None:
        with suppress(DataError, RemoteError):  # all is done; this is but advice
            text = next(iter_texts(forget, text_field=config.text_field, split=config.split, limit=1))
            words = [bench.next("generate", " ".join(text.split()[:WORDS]))]
    asked = bench.under(replace(config, spelled=config.spelled - {"methods", "sweep"}))
    asked = asked.next("eval", "--methods", "all", "--sweep", "--dry_run")
    return [*words, asked, bench.next("push", "you/your-repository", "--dry_run")]


def _run_one(config: RunConfig, bench: Bench) -> dict[str, Outcome]:
    """The outcome of each stage, each working on what the one before it made; the model is loaded once.

    Raises:
        CheckpointError: the SAE that was named does not fit the model.
    """
    progress = bench.progress
    if config.sae is not None:  # collect where it reads, once it is known to fit the model
        named = bench.sae(config.sae)
        bench.require_same_model(named)
        progress.say(f"{config.model}: no training, the SAE is {named.name}")
        config = replace(config, sae=str(named.folder), layer=(named.point.layer,), site=named.point.site)
        bench = bench.under(config)
    done: dict[str, Outcome] = {}

    def stage(name: str, work: Callable[[], Outcome]) -> Outcome:
        progress.say(f"{config.model}: {name} – {WHY[name]}")
        started = time.monotonic()
        done[name] = work()
        done[name].log(name, time.monotonic() - started)
        return done[name]

    _ = architecture_of(config)  # what training would refuse after a long collect
    require_tracker(config.track)
    if (apart := held_apart(config, progress)) is not config:
        bench = bench.under(config := apart)
    require_possible(bench.lm, config)
    stage("collect", lambda: collect(config, bench))
    sae = config.sae or str(next(iter(stage("train", lambda: train(config, bench)).outputs.values())))
    on_sae = replace(config, sae=sae)
    selection = stage("features", lambda: features(on_sae, bench)).outputs["selection"]
    stage("eval", lambda: evaluate(replace(on_sae, selection=selection), bench))
    page = ReportConfig(model=config.model, run_dir=config.run_dir, sae=sae)
    stage("report", lambda: report(page, bench))
    return done


def held_apart(config: RunConfig, progress: Progress) -> RunConfig:
    """The config with the first tenth of each text to be measured on, where nothing that could be asked was named.

    The first, since the last of a book may be its licence, and the last of a large dataset is read after all of it.
    """
    if config.tasks or config.forget is None or any(config.items("report").values()):
        return config
    (forget_eval, forget), *kept = map(first_tenth_apart, (config.forget, *config.retain))
    progress.say(
        f"{config.model}: nothing to measure on was named, so the first tenth of every text is kept from training and "
        "selection and the loss measured there (--forget_eval, --retain_eval; --forget_questions asks what is known)"
    )
    return replace(
        config,
        forget=forget,
        retain=tuple(rest for _, rest in kept),
        forget_eval=(forget_eval,),
        retain_eval=tuple(first for first, _ in kept),
        spelled=config.spelled | {"forget", "retain", "forget_eval", "retain_eval"},
    )


def require_files(config: RunConfig, preset: str | None, needs: Mapping[str, str]) -> None:
    """Refuse at once, and not after hours of collecting, what would be missing at the end."""
    named = {source for sources in config.items("report").values() for source in sources}
    for file, content in needs.items():
        if file in named and not Path(file).is_file():
            raise DataError(
                f"preset {preset} asks the records of {file}, which is not here; make it of {content} (in a clone: "
                f"python -m data_scripts.prepare_corpora --preset {preset}), or name another file with its flag"
            )
