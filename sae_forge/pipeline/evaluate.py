"""``eval``: an SAE and a selection become a report of forgetting and side effects beside their controls."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_forge import ranks
from sae_forge.config.evaluate import EvalConfig
from sae_forge.config.fields import described
from sae_forge.data.texts.sources import corpus_identity
from sae_forge.errors import ConfigError
from sae_forge.features.selection import Selection
from sae_forge.interventions.edit import Edit
from sae_forge.interventions.steering_csv import read_steering_csv, steering_table, write_steering_csv
from sae_forge.methods.method import Wrapper
from sae_forge.outcome import Outcome
from sae_forge.pipeline.bench import Bench
from sae_forge.pipeline.collected import shards_of
from sae_forge.pipeline.sheets.single_latents import single_latents
from sae_forge.progress import Progress
from sae_forge.results.claims import headlines
from sae_forge.results.open_unlearning import beside, read_summary, summaries
from sae_forge.results.report import Report, load_report
from sae_forge.results.saebench import saebench_result
from sae_forge.results.sheets import Sheet, overview
from sae_forge.results.verdict import verdict_sheet
from sae_forge.sae.named import NamedSAE
from sae_forge.sae.store import Provenance
from sae_forge.show import gallery
from sae_forge.store import files
from sae_forge.study.kept import discard
from sae_forge.study.run import REPORT_FILE, EvalReport
from sae_forge.study.run import evaluate as measure
from sae_forge.study.settings import catalogue_of
from sae_forge.study.shares import Elsewhere
from sae_forge.tasks.choice import Door, choices
from sae_forge.training.report import load_report as load_training
from sae_forge.training.verdict import Verdict


def evaluate(config: EvalConfig, bench: Bench) -> Outcome:
    """A report folder: eval.json, items.parquet and the pictures."""
    asked, team = looked_at(config, bench), ranks.here()
    config, named, selection, folder = asked.config, asked.named, asked.selection, asked.folder
    team.agree("evaluations", {"folder": folder.name, "report": (folder / REPORT_FILE).exists()})
    if (folder / REPORT_FILE).exists() and not config.starts_over:
        bench.progress.say(f"{folder} is there under the same settings")
    else:
        bench.require_same_model(named)
        bench.progress.say(bench.lm.opening.sentence())
        try:
            measured = measure(
                bench.lm, named.sae, selection, config, named.point, bench.progress,
                collected=shards_of(selection, bench.run, named.point), also=asked.also,
                rivals=asked.rivals, folder=folder, table=catalogue_of(config).methods, verdict=_verdict(named),
            )  # fmt: skip
            _publish(measured, named, selection, config, folder)
        except Elsewhere as said:
            if config.part is not None:
                return _part(str(said), folder, config, bench)
        team.meet()
    report = load_report(folder / REPORT_FILE)
    if team.leads:
        bench.run.note(folder)
    return Outcome(
        run=bench.run,
        outputs={"report": folder / REPORT_FILE, "folder": folder},
        metrics=report.to_json(),
        summary="\n".join(headlines(report)[0]) + f"\n{folder}",
        tables=(overview(report), verdict_sheet(report), *_beside(config, report), *single_latents(report, selection)),
        then=bench.next("report"),
    )


@dataclass(frozen=True, kw_only=True)
class Looked:
    """What an eval stands on, and where its report goes."""

    config: EvalConfig
    named: NamedSAE
    selection: Selection
    rivals: list[Selection]
    also: list[Edit]
    folder: Path


def looked_at(config: EvalConfig, bench: Bench, *, keeps: bool = True) -> Looked:
    """All that is named, opened and checked before the model is asked anything.

    Args:
        keeps: An SAE made elsewhere leaves a pointer in the run; else nothing is written.
    """
    config = bench.settle(config)
    with ranks.here().led():  # a pointer to an SAE made elsewhere has one writer
        named = bench.sae(config.sae, partly=True, keeps=keeps)
    selection = Selection.load(bench.selection(config.selection, named.folder), weights=named.weights)
    for name in getattr(config, "tofu_summaries", ()):
        read_summary(Path(name))  # refused before the work
    rivals: list[Selection] = []
    also: list[Edit] = []
    if config.compare_selections:  # with every one made for this SAE
        paths = sorted(bench.run.selections(named.folder).glob("*.json"))
        rivals = [Selection.load(path, weights=named.weights) for path in paths]
    if config.steering is not None:
        also = [_steered(config.steering, config, named, selection, bench.progress)]
    identity = identity_of(config, [selection, *rivals], named.provenance)
    folder = bench.run.evals(named.folder) / files.short_hash(identity)
    return Looked(config=config, named=named, selection=selection, rivals=rivals, also=also, folder=folder)


def _publish(measured: EvalReport, named: NamedSAE, selection: Selection, config: EvalConfig, folder: Path) -> None:
    """Fill the report's folder."""
    report = measured.report
    files.publish_json(folder / "config.json", config.deciding("report"))
    for picture in gallery.of_report(report):
        files.publish_bytes(folder / f"{picture.name}.png", picture.draw(report, "png"))
    _export(measured, named, folder)
    for number, row in enumerate(report.rows):
        for file, told in ({} if row.is_control else summaries(row)).items():
            files.publish_json(folder / "open-unlearning" / f"{number}-{row.name}" / file, told)
    if (result := saebench_result(report, eval_id=folder.name)) is not None:
        files.publish_json(folder / "saebench_unlearning.json", result)
    for sheet in single_latents(report, selection):
        records = [dict(zip(sheet.columns, row, strict=True)) for row in sheet.rows]
        files.publish_json(folder / "each_latent.json", records)
    # the report last, since its presence says that the rest is whole; what it was made of may go only then
    measured.save(folder)
    discard(folder)


def _part(said: str, folder: Path, config: EvalConfig, bench: Bench) -> Outcome:
    """What is told of a part of an evaluation: no number of it means anything before the others are there."""
    return Outcome(
        run=bench.run,
        outputs={"folder": folder},
        metrics={"part": config.part, "measured": said},
        summary=f"part {config.part}: {said}. When all parts are, the same command without --part makes the report",
    )


def _beside(config: EvalConfig, report: Report) -> list[Sheet]:
    """open-unlearning's numbers under ours, where summaries of it were named."""
    paths = [Path(name) for name in getattr(config, "tofu_summaries", ())]
    return [beside(report, paths)] if paths else []


def _verdict(named: NamedSAE) -> Verdict | None:
    """Whether an SAE that was trained here is fit to be used."""
    trained = load_training(named.origin) if named.origin else None
    return None if trained is None or not trained.steps else trained.verdict


def _steered(path: Path, config: EvalConfig, named: NamedSAE, selection: Selection, progress: Progress) -> Edit:
    """The edit that a steering CSV says."""
    table = read_steering_csv(path)
    table.require_sae(named.name)
    norm = None if config.keep_sinks else selection.sink_norm
    if "tokens" in config.spelled:
        return Edit(named.point, named.sae, table.intervention(config.tokens), norm)
    progress.say(f"{path} edits special tokens too, as the tool it is from; --tokens real spares them")
    return Edit(named.point, named.sae, table.intervention(), norm)


def _export(report: EvalReport, named: NamedSAE, folder: Path) -> None:
    """Write every edit that other tools can say as a steering CSV; in that table the SAE's error is always kept."""
    for number, edit in enumerate(report.edits):
        if not edit.intervention.keep_error:
            continue
        try:
            written = steering_table(edit.intervention, sae_id=named.name)
        except ConfigError:  # scaling, gates of whole texts and projections have no words in that table
            continue
        write_steering_csv(folder / "steering" / f"{edit.intervention.name}-{number}.csv", written)


def identity_of(config: EvalConfig, selections: Sequence[Selection], provenance: Provenance) -> dict[str, Any]:
    """All that decides the numbers: settings, the files they name, the selections and the model by their content."""
    parts = [task.settings for task in catalogue_of(config).tasks]
    brought = [part for part in parts if part is not None and not issubclass(EvalConfig, part)]
    items = config.items("report")
    # what tasks bring in the order of the table, then the command's own: a new task changes the order of no other's
    names = dict.fromkeys((*(name for part in brought for name in sorted(described(part))), *sorted(items)))
    asked = {}
    if config.tasks:  # a task that a file describes counts by the content of that file and of those it names
        chosen = zip(dict.fromkeys(config.tasks), choices(config.tasks, catalogue_of(config).tasks), strict=True)
        asked["tasks"] = [[corpus_identity(name), *map(corpus_identity, one.items)] for name, one in chosen]
        doors = [one for one in catalogue_of(config).tasks if isinstance(one, Door)]
        if read := [corpus_identity(source) for one in doors for source in one.reads(config)]:
            asked["read"] = read
    return {
        "settings": _deciding(config),
        "items": [corpus_identity(source) for name in names for source in items.get(name, ())],
        "selections": [selection.without_snippets().to_json() for selection in selections],
        "steering": None if config.steering is None else files.file_sha256(config.steering),
        "model": provenance.weights,
        **asked,
        **({"plugins": plugins} if (plugins := catalogue_of(config).plugins) else {}),
    }


def _deciding(config: EvalConfig) -> dict[str, Any]:
    """The settings that decide the report; those of wrappers and of younger tasks decide nothing unless named.

    So a report is found again by a version that has more of these than the one that made it.
    """
    known, idle, counted = catalogue_of(config), set(), set(described(EvalConfig))
    for one in (*known.methods, *known.tasks):
        if (part := one.settings) is None:
            continue
        own = described(part)
        if isinstance(one, Wrapper):
            is_idle = one.name not in config.methods
        else:
            match getattr(part, "decides_when", "always"):
                case "named":
                    items = [name for name, said in own.items() if said.setting.names_items]
                    is_idle = not any(getattr(config, name) for name in items)
                case "chosen":
                    is_idle = not config.tasks
                case "method":
                    is_idle = not {one.name, "all"} & set(config.methods)
                case _:
                    is_idle = False
        (idle if is_idle else counted).update(own)
    said = described(type(config))
    idle -= counted
    idle |= {name for name, one in said.items() if one.setting.younger and getattr(config, name) == one.default}
    return {name: value for name, value in config.deciding("report").items() if name not in idle}
