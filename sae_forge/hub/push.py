"""The verb ``push``: named files become one commit on the Hub, or a description of it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import get_token

from sae_forge import __version__
from sae_forge.config.push import PushConfig
from sae_forge.errors import ConfigError, RemoteError
from sae_forge.hub import plan
from sae_forge.hub.plan import CARD, MANIFEST, Upload
from sae_forge.hub.repository import Change, Repository, Snapshot
from sae_forge.progress import SILENT, Progress
from sae_forge.store.seal import readable_json

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


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


@dataclass(frozen=True, kw_only=True)
class Parcel:
    """What one push publishes."""

    uploads: tuple[Upload, ...]
    """Every file but the card and the list of files."""
    card: str
    """The README."""
    about: Mapping[str, Any]
    """What the list of files says beside them; it lies at the root, and the Hub counts downloads by it."""
    message: str
    """Subject of the commit, unless the config gives one."""

    def files(self) -> list[Upload]:
        """All that is uploaded."""
        known = [*self.uploads, Upload.of(CARD, self.card.encode())]
        listed = {"version": __version__, "files": {upload.path: upload.sha256 for upload in known}}
        return [*known, Upload.of(MANIFEST, readable_json({**self.about, "sae_forge": listed}))]


def require_repo_id(repo_id: str) -> None:
    """Raise ConfigError for what is no name of a Hub repository."""
    if not _REPO_ID.fullmatch(repo_id) or ".." in repo_id or "--" in repo_id:
        raise ConfigError(f"{repo_id[:100]!r} is no name of a Hub repository; write name/repository")


def push(repo_id: str, parcel: Parcel, config: PushConfig, *, progress: Progress = SILENT) -> PushReport:
    """Publish a parcel in one commit; twice the same is nothing the second time.

    The token is that of HF_TOKEN or of the login store. A dry run asks for none and touches no network.

    Args:
        repo_id: ``name/repository``; made if it is not there.

    Raises:
        ConfigError: the name is none, or a file holds a token.
        RemoteError: no token, or the Hub refused, was changed by someone else, or could not be reached.
    """
    require_repo_id(repo_id)
    uploads, message, token = parcel.files(), config.commit_message or parcel.message, get_token()
    plan.refuse_secrets(uploads, token)
    sizes = tuple((upload.path, upload.size) for upload in uploads)
    revision = config.branch or "main"
    if config.dry_run:
        return PushReport(repo_id, revision, None, sizes, True, parcel.card)
    if token is None:
        raise RemoteError("no Hub token; set HF_TOKEN, or log in with: hf auth login")
    plan.refuse_secrets([Upload.of("the commit message", message.encode())], token)
    repository = Repository(repo_id, token, progress)
    here = _standing(repository, revision, private=config.private)
    change = Change(tuple(uploads), _stale(repository, here, uploads), message)
    if here.shows(change):
        url = repository.url(revision)
        return PushReport(repo_id, revision, here.commit, sizes, False, parcel.card, url, changed=False)
    progress.say(f"publishing {len(sizes)} files, {sum(size for _, size in sizes) / 1e6:.1f} MB, to {repo_id}")
    landed = repository.commit(change, onto=here, revision=revision, pr=config.create_pr)
    return PushReport(repo_id, landed.revision, landed.commit, sizes, False, parcel.card, landed.url)


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


def _stale(repository: Repository, here: Snapshot, uploads: Sequence[Upload]) -> tuple[str, ...]:
    """Files that an earlier push of the same SAE left and this one does not bring.

    Raises:
        RemoteError: the repository holds someone else's files under our names.
    """
    planned = {upload.path for upload in uploads}
    manifest: Any = repository.read_json(MANIFEST, here.commit) if MANIFEST in here.files else None
    try:
        listed = [str(path) for path in manifest["sae_forge"]["files"]]
    except (KeyError, TypeError):  # no push of ours was ever here; the names are free unless somebody took one
        taken = sorted(planned & set(here.files) - {CARD})
        if taken:
            raise RemoteError(
                f"{repository.id} holds a {taken[0]} that sae-forge did not write; push to another repository"
            ) from None
        return ()
    # only beside what is uploaded now: other SAEs may lie in the same repository
    folders = {upload.path.rpartition("/")[0] for upload in uploads} | {"", "plots"}
    left = (path for path in listed if path in here.files and path not in planned)
    return tuple(sorted(path for path in left if path.rpartition("/")[0] in folders))
