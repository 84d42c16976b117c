"""The verb ``push``: SAE, selection, report and model card become one commit on the Hub, or a description of it."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import get_token

from sae_forge import __version__
from sae_forge.config.push import PushConfig
from sae_forge.errors import CheckpointError, ConfigError, DataError, RemoteError
from sae_forge.hub import plan
from sae_forge.hub.card import Subject, render
from sae_forge.hub.plan import CARD, MANIFEST, Upload
from sae_forge.hub.repository import Change, Repository, Snapshot
from sae_forge.progress import SILENT, Progress
from sae_forge.sae.store import WEIGHTS, load_sae
from sae_forge.store import files
from sae_forge.store.weights import require_same

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_UNPLACED = "sae"
"""Folder of an SAE whose hook point is unknown."""


@dataclass(frozen=True)
class PushReport:
    """What was published, or would be."""

    repo: str
    revision: str
    """Branch, or reference of the pull request."""
    commit: str | None
    """None for a dry run."""
    files: tuple[tuple[str, int], ...]
    """Paths in the repository, and bytes."""
    dry_run: bool
    card: str = field(repr=False)
    url: str | None = None
    changed: bool = True
    """False when the repository already held exactly these files."""

    def to_json(self) -> dict[str, Any]:
        """The ``push`` metrics of the command line's JSON."""
        listed = [{"path": path, "bytes": size} for path, size in self.files]
        return {
            "repo": self.repo,
            "revision": self.revision,
            "commit": self.commit,
            "files": listed,
            "dry_run": self.dry_run,
        }

    def summary(self) -> str:
        """One line for a person; a dry run shows the files and the card below it."""
        total = f"{len(self.files)} files, {sum(size for _, size in self.files) / 1e6:.1f} MB"
        if self.dry_run:
            listed = "\n".join(f"{size:>14,}  {path}" for path, size in self.files)
            return f"would publish {total}, to {self.repo} ({self.revision}):\n{listed}\n\n{self.card}"
        if not self.changed:
            return f"nothing to do: {self.url} already holds exactly these {total}"
        return f"published {total}, in one commit ({self.commit}): {self.url}"


def push(
    folder: Path,
    repo_id: str,
    config: PushConfig,
    *,
    selection: Path | None = None,
    evaluation: Path | None = None,
    progress: Progress = SILENT,
) -> PushReport:
    """Publish an SAE folder, and what was found with it, in one commit; twice the same is nothing the second time.

    The token is that of HF_TOKEN or of the login store. A dry run asks for none and touches no network.

    Args:
        repo_id: ``name/repository``; made if it is not there.
        selection: A selection file of ``features``.
        evaluation: A report folder of ``eval``: its ``eval.json`` and plots go, its items stay.

    Raises:
        CheckpointError, DataError: what is to be published is missing, damaged, or not of this SAE.
        ConfigError: the name is none, or a file holds a token.
        RemoteError: no token, or the Hub refused, was changed by someone else, or could not be reached.
    """
    if not _REPO_ID.fullmatch(repo_id) or ".." in repo_id or "--" in repo_id:
        raise ConfigError(f"{repo_id[:100]!r} is no name of a Hub repository; write name/repository")
    uploads, card, message = prepare(folder, repo_id, config, selection=selection, evaluation=evaluation)
    sizes = tuple((upload.path, upload.size) for upload in uploads)
    revision = config.branch or "main"
    if config.dry_run:
        return PushReport(repo_id, revision, None, sizes, True, card)
    token = get_token()
    if token is None:
        raise RemoteError("no Hub token; set HF_TOKEN, or log in with: hf auth login")
    plan.refuse_secrets([*uploads, Upload.of("the commit message", message.encode())], token)
    repository = Repository(repo_id, token, progress)
    here = _standing(repository, revision, private=config.private)
    change = Change(tuple(uploads), _stale(repository, here, uploads), message)
    if here.shows(change):
        url = repository.url(revision)
        return PushReport(repo_id, revision, here.commit, sizes, False, card, url, changed=False)
    progress.say(f"publishing {len(sizes)} files, {sum(size for _, size in sizes) / 1e6:.1f} MB, to {repo_id}")
    landed = repository.commit(change, onto=here, revision=revision, pr=config.create_pr)
    return PushReport(repo_id, landed.revision, landed.commit, sizes, False, card, landed.url)


def prepare(
    folder: Path, repo_id: str, config: PushConfig, *, selection: Path | None, evaluation: Path | None
) -> tuple[list[Upload], str, str]:
    """Everything to upload, the card among it, and the commit's subject; reads files and touches no network."""
    _, provenance = load_sae(folder)
    inside = provenance.hook_point if re.fullmatch(r"[\w.-]+", provenance.hook_point) else _UNPLACED
    cfg, uploads = plan.sae_files(folder, inside)
    weights = next(upload.sha256 for upload in uploads if upload.path.endswith(WEIGHTS))
    chosen = report = None
    if selection is not None:
        chosen, upload = plan.selection_file(selection, inside, weights, contexts=config.include_contexts)
        uploads.append(upload)
    plots: tuple[str, ...] = ()
    if evaluation is not None:
        report, shown = plan.report_files(evaluation)
        measured_on = str(report.get("protocol", {}).get("sae_weights", ""))
        measure_it, about = "measure this one with: sae-forge eval", f"{evaluation} reports on an SAE"
        require_same(measured_on, weights, about, "this one", kind=DataError, advice=measure_it)
        plots = tuple(upload.path for upload in shown[1:])
        uploads += shown
    subject = Subject(
        repo_id=repo_id,
        inside=inside,
        cfg=cfg,
        quality=_quality(folder),
        selection=chosen,
        report=report,
        plots=plots,
        license=config.license,
        contexts=config.include_contexts and chosen is not None,
    )
    try:
        card = render(subject)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(f"{evaluation or selection or folder} cannot be described in a card: {error!r}") from error
    uploads.append(Upload.of(CARD, card.encode()))
    uploads.append(Upload.of(MANIFEST, plan.encoded(_manifest(subject, uploads))))
    plan.refuse_secrets(uploads, get_token())
    return uploads, card, config.commit_message or f"Publish the SAE on {inside} of {subject.model}"


def _manifest(subject: Subject, uploads: list[Upload]) -> dict[str, Any]:
    """What lies in the repository, with hashes; at its root so that downloads count."""
    sizes = {name: subject.cfg[name] for name in ("architecture", "d_in", "d_sae", "k")}
    return {
        "library_name": "saelens",
        "model": subject.model,
        "sae": {"folder": subject.inside, **sizes},
        "sae_forge": {"version": __version__, "files": {upload.path: upload.sha256 for upload in uploads}},
    }


def _quality(folder: Path) -> dict[str, Any]:
    """What training measured, where it left a report."""
    path = folder / "report.json"
    report = files.read_json(path, kind=CheckpointError, what="a report of train") if path.is_file() else {}
    return report if isinstance(report, dict) else {}


def _standing(repository: Repository, revision: str, *, private: bool) -> Snapshot:
    """The revision as it is, after making the repository and the branch where they are missing."""
    here = repository.look(revision)
    if here is None:
        repository.create(private=private)
        if revision != "main":
            repository.create_branch(revision)
        here = repository.look(revision)
    if here is None:
        raise RemoteError(f"{repository.id} was made and is not there; try again later")
    if private and not here.private:
        raise RemoteError(
            f"{repository.id} is public already, and --private only makes new repositories private; "
            "change it in its settings, or push to another name"
        )
    return here


def _stale(repository: Repository, here: Snapshot, uploads: list[Upload]) -> tuple[str, ...]:
    """Files that an earlier push of the same SAE left and this one does not bring.

    Raises:
        RemoteError: the repository holds someone else's files under our names.
    """
    planned = {upload.path for upload in uploads}
    listed = _listed(repository, here)
    if listed is None:
        taken = sorted(planned & set(here.files) - {CARD})
        if taken:
            raise RemoteError(
                f"{repository.id} holds a {taken[0]} that sae-forge did not write; push to another repository"
            )
        return ()
    folders = {upload.path.rpartition("/")[0] for upload in uploads} | {"", "plots"}
    left = (path for path in listed if path in here.files and path not in planned)
    return tuple(sorted(path for path in left if path.rpartition("/")[0] in folders))


def _listed(repository: Repository, here: Snapshot) -> list[str] | None:
    """The files an earlier push says it wrote; None when there was none."""
    if MANIFEST not in here.files:
        return None
    manifest = repository.read_json(MANIFEST, here.commit)
    try:
        return [str(path) for path in manifest["sae_forge"]["files"]]
    except (KeyError, TypeError):
        return None
