"""``report``: what a run folder holds becomes one self-contained page."""

import json
from pathlib import Path
from typing import Any

from sae_forge.config.report import ReportConfig
from sae_forge.errors import DataError
from sae_forge.features.selection import Selection
from sae_forge.outcome import Outcome
from sae_forge.pipeline.bench import Bench
from sae_forge.results.report import load_report
from sae_forge.show import gallery
from sae_forge.show.html import Section, write_page
from sae_forge.store import files
from sae_forge.store.runs import POINTER
from sae_forge.study.run import REPORT_FILE


def report(config: ReportConfig, bench: Bench) -> Outcome:
    """``report.html`` in the run folder: a section for every SAE, or for the one that was named."""
    named = bench.sae(config.sae) if config.sae else None
    saes = [named.folder] if named else bench.run.saes()
    if not saes:
        raise DataError(f"{bench.run.folder} holds no SAE to report on; make one with: {bench.next('train')}")
    path = bench.run.folder / "report.html"
    model = bench.config.model
    named_for_all = "" if Path(model).expanduser().exists() else model  # a folder's name says nothing to others
    write_page(path, named_for_all, [_section(sae, bench) for sae in saes])
    return Outcome(
        run=bench.run,
        outputs={"page": path},
        metrics={"saes": [str(sae) for sae in saes], "bytes": path.stat().st_size},
        summary=str(path),
        then=None if (saes[-1] / POINTER).exists() else bench.next("push", "you/your-repository", "--dry_run"),
    )


def _section(sae: Path, bench: Bench) -> Section:
    """What is known about one SAE; the newest report and the selection it measured."""
    evaluated, selection = bench.evaluated(sae)
    measured = load_report(evaluated / REPORT_FILE) if evaluated else None
    drawn = {}
    if evaluated and measured:
        drawn = {evaluated / f"{one.name}.png": one.caption for one in gallery.of_report(measured)}
    if selection:
        drawn[selection.with_suffix(".png")] = gallery.FREQUENCIES.caption
    pictures = {caption: path.read_bytes() for path, caption in drawn.items() if path.exists()}
    log = bench.run.logs / f"train-{sae.parent.name}-{sae.name}.jsonl"
    try:
        steps = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    except ValueError as error:
        raise DataError(f"{log} is not a log of training: {error}; delete it to report without its curves") from error
    if gallery.TRAINING.when(steps):
        pictures[gallery.TRAINING.caption] = gallery.TRAINING.draw(steps)
    configs = {"train": sae / "config.json"} | ({"eval": evaluated / "config.json"} if evaluated else {})
    return Section(
        title=f"{sae.parent.name} {sae.name}",
        train=_read(sae / "report.json") if (sae / "report.json").exists() else _read(sae / POINTER),
        selection=Selection.load(selection) if selection else None,
        report=measured,
        pictures=pictures,
        settings={verb: _read(path) for verb, path in configs.items() if path.exists()},
    )


def _read(path: Path) -> Any:
    return files.read_json(path, kind=DataError, what="a part of a run")
