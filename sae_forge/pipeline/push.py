"""``push``: an SAE with all that is known about it goes to the Hub in one commit, under a card made of its numbers."""

import re
from pathlib import Path
from typing import Any

from sae_forge.config.push import PushConfig
from sae_forge.errors import CheckpointError, DataError
from sae_forge.features.selection import Selection
from sae_forge.hub import plan
from sae_forge.hub.licences import require_licence
from sae_forge.hub.push import Parcel, PushReport, require_repo_id
from sae_forge.hub.push import push as send
from sae_forge.outcome import Outcome
from sae_forge.pipeline.bench import Bench
from sae_forge.progress import SILENT, Progress
from sae_forge.results.report import Report
from sae_forge.sae.store import WEIGHTS, load_sae
from sae_forge.show.card import Subject, render
from sae_forge.store import files
from sae_forge.store.weights import require_same

UNPLACED = "sae"
"""Folder of an SAE whose hook point is unknown."""


def push(config: PushConfig, bench: Bench, repo_id: str) -> Outcome:
    """The commit, or with ``dry_run`` its description; the newest report and the selection it measured go along."""
    named = bench.sae(config.sae)
    if (folder := named.origin) is None:
        name = named.folder.name
        raise CheckpointError(f"{name} was made elsewhere and is not ours to publish; push takes a trained SAE")
    evaluation, selection = bench.evaluated(named.folder)
    report = publish(folder, repo_id, config, selection=selection, evaluation=evaluation, progress=bench.progress)
    made = {"sae": folder, "selection": selection, "evaluation": evaluation}
    return Outcome(
        run=bench.run,
        outputs={name: path for name, path in made.items() if path is not None},
        metrics=report.to_json(),
        summary=report.summary(),
    )


def publish(
    folder: Path,
    repo_id: str,
    config: PushConfig,
    *,
    selection: Path | None = None,
    evaluation: Path | None = None,
    progress: Progress = SILENT,
) -> PushReport:
    """Publish an SAE folder, and what was found with it, in one commit.

    Args:
        repo_id: ``name/repository``; made if it is not there.
        selection: A selection file of ``features``.
        evaluation: A report folder of ``eval``: its ``eval.json`` and plots go, its items stay.

    Raises:
        CheckpointError, DataError: what is to be published is missing, damaged, or not of this SAE.
        ConfigError, RemoteError: as :func:`sae_forge.hub.push.push` raises them.
    """
    require_repo_id(repo_id)
    require_licence(config.license)
    parcel = _parcel(folder, repo_id, config, selection=selection, evaluation=evaluation)
    return send(repo_id, parcel, config, progress=progress)


def _parcel(
    folder: Path, repo_id: str, config: PushConfig, *, selection: Path | None, evaluation: Path | None
) -> Parcel:
    """Everything to upload, and the card that says what it is; reads files and touches no network."""
    _, provenance = load_sae(folder)
    inside = provenance.hook_point if re.fullmatch(r"[\w.-]+", provenance.hook_point) else UNPLACED
    cfg, uploads = plan.sae_files(folder, inside, plan.public_name(provenance.model, provenance.weights))
    weights = next(upload.sha256 for upload in uploads if upload.path.endswith(WEIGHTS))
    report, plots = None, ()
    if selection is not None:
        uploads.append(plan.selection_file(selection, inside, weights, contexts=config.include_contexts))
    if evaluation is not None:
        record, measured = plan.report_files(evaluation)
        report = _described(record, evaluation)
        require_same(
            str(report.protocol.get("sae_weights", "")), weights, f"{evaluation} reports on an SAE", "this one",
            kind=DataError, advice="measure this one with: sae-forge eval",
        )  # fmt: skip
        plots = tuple(upload.path for upload in measured[1:])
        uploads += measured
    subject = Subject(
        repo_id=repo_id,
        inside=inside,
        cfg=cfg,
        quality=_quality(folder),
        selection=None if selection is None else Selection.load(selection, weights=weights),
        report=report,
        plots=plots,
        license=config.license,
        contexts=config.include_contexts and selection is not None,
    )
    sizes = {name: cfg[name] for name in ("architecture", "d_in", "d_sae", "k") if name in cfg}
    about = {"library_name": "saelens", "model": subject.model, "sae": {"folder": inside, **sizes}}
    message = f"Publish the SAE on {inside} of {subject.model}"
    return Parcel(uploads=tuple(uploads), card=render(subject), about=about, message=message)


def _described(record: dict[str, Any], evaluation: Path) -> Report:
    """The report as it will be published, paths and all text left out."""
    try:
        return Report.from_json(record)
    except DataError as error:
        raise DataError(f"{evaluation} cannot be described in a card: {error}") from error


def _quality(folder: Path) -> dict[str, Any]:
    """What training measured, where it left a report."""
    path = folder / "report.json"
    record = files.read_json(path, kind=CheckpointError, what="a report of train") if path.is_file() else {}
    return record if isinstance(record, dict) else {}
