"""One repository on the Hub, and the promise about it: files arrive in one commit, never in none and a half or in two.

The commit names the commit it stands on, and after any failure the repository is read back before posting again: an
answer that was lost is told from a commit that never landed by the hashes of the files that lie there.
"""

import os
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from json import JSONDecodeError
from typing import Any, TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_url
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from sae_forge.errors import CheckpointError, ConfigError, ForgeError, RemoteError
from sae_forge.hub.plan import Upload
from sae_forge.hub.wire import TransientError, patience, single_tries, wait_after
from sae_forge.progress import Progress
from sae_forge.store import files, hub_errors
from sae_forge.store.hub_errors import Asked, Trouble, status

_ANOTHER_COMMIT = frozenset({409, 412})
_UNREADABLE = (ValueError, KeyError, TypeError, AttributeError)
"""What the client raises on an answer that is not the Hub's, such as a proxy's page."""
_REFUSALS: Mapping[Trouble, str] = {
    "offline": "HF_HUB_OFFLINE is set, so nothing can be pushed; unset it",
    "gated": "{name} is gated and this token has no access; ask for it at {page}",
    "revision": "{name} has no such revision (404); check --branch",
    "token": "the Hub does not accept this token (401); set HF_TOKEN to a valid one, or: hf auth login",
    "forbidden": (
        "this token may not write to {name} (403{said}); make one with write access at {flag}/settings/tokens, or push "
        "to a name of your own"
    ),
    "missing": "{name} is not on {flag}, or this token may not see it (404); check the name",
    "answer": "the Hub refused the push to {name} ({status}{said})",
    "other": "the Hub refused the push to {name} ({status}: {error})",
}

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Change:
    """What one commit brings about."""

    uploads: tuple[Upload, ...]
    stale: tuple[str, ...]
    """Files to take away."""
    message: str


@dataclass(frozen=True)
class Snapshot:
    """What a revision holds."""

    commit: str
    private: bool
    files: dict[str, str | None]
    """By path, the name under which the Hub knows the content."""

    def shows(self, change: Change) -> bool:
        """Whether nothing of the change is missing."""
        return not any(path in self.files for path in change.stale) and all(
            upload.is_stored_as(self.files.get(upload.path)) for upload in change.uploads
        )


@dataclass(frozen=True)
class Landed:
    """Where the files are now."""

    commit: str
    revision: str
    url: str


class Repository:
    """A model repository, seen with one token."""

    def __init__(self, repo_id: str, token: str, progress: Progress) -> None:
        self.id = repo_id
        self.endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"
        if not self.endpoint.startswith(("http://", "https://")):
            raise ConfigError(f"HF_ENDPOINT={self.endpoint[:80]} is no address; it starts with https://, or unset it")
        self._token = token
        self._progress = progress
        self._api = HfApi(endpoint=self.endpoint, token=token)

    def look(self, revision: str) -> Snapshot | None:
        """The revision now; None when there is no such repository or revision."""
        try:
            info = self._ask(lambda: self._api.model_info(self.id, revision=revision, files_metadata=True))
        except (RepositoryNotFoundError, RevisionNotFoundError) as error:
            if status(error) == 404:
                return None
            raise self._refusal(error) from None
        stored = {file.rfilename: file.lfs.sha256 if file.lfs else file.blob_id for file in info.siblings or ()}
        return Snapshot(str(info.sha), bool(info.private), stored)

    def create(self, *, private: bool) -> None:
        """See to it that there is the repository; unless ``private``, an organisation's own default holds."""
        self._settle(lambda: self._api.create_repo(self.id, private=private or None, exist_ok=True))

    def create_branch(self, branch: str) -> None:
        """See to it that there is the branch, made from main."""
        self._settle(lambda: self._api.create_branch(self.id, branch=branch, exist_ok=True))

    def read_json(self, path: str, commit: str) -> Any:
        """A small JSON file as that commit holds it; None when it is not JSON."""

        def fetch() -> bytes:
            url = hf_hub_url(self.id, path, revision=commit, endpoint=self.endpoint)
            response = get_session().get(url, headers=build_hf_headers(token=self._token))
            hf_raise_for_status(response)
            return response.content

        content = self._settle(fetch)
        try:
            return files.parse_json(content)
        except (ValueError, RecursionError):
            return None

    def commit(self, change: Change, *, onto: Snapshot, revision: str, pr: bool) -> Landed:
        """Bring the change about in exactly one commit on top of ``onto``.

        Raises:
            RemoteError: the Hub refused or kept failing, or someone else changed one of these files meanwhile.
        """
        left = patience()
        others = 0
        while True:
            try:
                return self._post(change, onto=onto, revision=revision, pr=pr)
            except TransientError as error:
                failure, outdated = error, False
            except OSError as error:
                if status(error) not in _ANOTHER_COMMIT:
                    raise self._refusal(error) from None
                failure, outdated = TransientError("has a newer commit than was read", wait=0.0), True
            wait = wait_after(failure, left, self._progress)
            time.sleep(wait or 0.0)
            # read before posting again, also after the last try: a commit may have landed though its answer did not
            if landed := self._find(change, revision=revision, pr=pr):
                return landed
            if wait is None:
                raise self._exhausted(failure, left.failed)
            now = self._unclaimed(change, onto, revision)
            # another's commit to files of theirs is built upon once; who loses that race twice is told
            others += outdated or now.commit != onto.commit
            if others > 1:
                raise RemoteError(f"someone else keeps committing to {self.id}; nothing was published: push again")
            onto = now

    def _post(self, change: Change, *, onto: Snapshot, revision: str, pr: bool) -> Landed:
        """One try.

        Raises:
            CheckpointError: a file is no longer what was planned.
        """
        # made anew for each try: the client notes in an operation what it has uploaded
        adding = [CommitOperationAdd(upload.path, upload.content) for upload in change.uploads]
        for operation, upload in zip(adding, change.uploads, strict=True):
            if operation.upload_info.sha256.hex() != upload.sha256:
                raise CheckpointError(f"{upload.content} changed while it was being published; push again")
        with single_tries(sum(upload.size for upload in change.uploads)), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the server's remarks on a card are no news to who pushes
            try:
                info = self._api.create_commit(
                    self.id,
                    [*adding, *(CommitOperationDelete(path) for path in change.stale)],
                    commit_message=change.message,
                    revision=None if pr else revision,
                    create_pr=pr,
                    parent_commit=onto.commit,
                )
            except (*_UNREADABLE, RuntimeError) as error:
                # RuntimeError: the store of large files failed; nothing is committed before it has them all.
                if isinstance(error.__cause__, TransientError):
                    raise error.__cause__ from None
                if isinstance(error.__cause__, OSError) and status(error.__cause__):
                    raise self._refusal(error.__cause__) from None
                if _is_refusal(error) or str(error).startswith("Invalid metadata"):
                    raise self._refusal(error) from None
                raise _unreadable(error) from None
        return Landed(info.oid, info.pr_revision or revision, self.url(info.pr_revision or revision))

    def _find(self, change: Change, *, revision: str, pr: bool) -> Landed | None:
        """Where the change landed, if it did though we were not told."""
        revisions = [revision]
        if pr:  # its number is in the answer that was lost, so it is one of the five newest that are open
            discussions = self._settle(lambda: list(self._api.get_repo_discussions(self.id)))
            numbers = sorted(one.num for one in discussions if one.is_pull_request and one.status in ("open", "draft"))
            revisions = [f"refs/pr/{number}" for number in numbers[:-6:-1]]
        for name in revisions:
            now = self.look(name)
            if now and now.shows(change):
                return Landed(now.commit, name, self.url(name))
        return None

    def _unclaimed(self, change: Change, before: Snapshot, revision: str) -> Snapshot:
        """The revision now, in which nobody else changed a file of ours since ``before``."""
        now = self.look(revision)
        if now is None:
            raise RemoteError(f"{self.id} vanished while pushing to it; nothing was published")
        for path in (*(upload.path for upload in change.uploads), *change.stale):
            if now.files.get(path) != before.files.get(path):
                raise RemoteError(
                    f"someone else changed {path} in {self.id} meanwhile; nothing was published: push again"
                )
        return now

    def _ask(self, request: Callable[[], Answer]) -> Answer:
        """The answer to what may be asked again; whether a missing thing matters is for the caller to say."""
        left = patience()
        while True:
            try:
                with single_tries():
                    return request()
            except TransientError as error:
                failure = error
            except (RepositoryNotFoundError, RevisionNotFoundError):
                raise
            except (OSError, *_UNREADABLE) as error:
                if _is_refusal(error):
                    raise self._refusal(error) from None
                failure = _unreadable(error)
            if (wait := wait_after(failure, left, self._progress)) is None:
                raise self._exhausted(failure, left.failed)
            time.sleep(wait)

    def _settle(self, request: Callable[[], Answer]) -> Answer:
        """The same where nothing may be missing."""
        try:
            return self._ask(request)
        except OSError as error:
            raise self._refusal(error) from None

    def _refusal(self, error: Exception) -> ForgeError:
        """An answer that will not change by asking again, never with the token in it."""
        page = f"{self.endpoint}/{self.id}"
        asked = Asked(name=self.id, page=page, flag=self.endpoint, words=_REFUSALS, token=self._token)
        return hub_errors.told(error, asked)

    def _exhausted(self, failure: TransientError, tries: int) -> RemoteError:
        if failure.unreached:
            return RemoteError(f"cannot reach {self.endpoint}: it {failure}; check the network and HF_ENDPOINT")
        again = "try again later" if failure.wait is None else f"try again in {failure.wait:.0f} s"
        return RemoteError(f"the Hub at {self.endpoint} {failure}, {tries} times; nothing was published: {again}")

    def url(self, revision: str) -> str:
        """Where a person looks at it."""
        pull = revision.removeprefix("refs/pr/")
        place = f"/discussions/{pull}" if pull != revision else "" if revision == "main" else f"/tree/{revision}"
        return f"{self.endpoint}/{self.id}{place}"


def _is_refusal(error: Exception) -> bool:
    """Whether the Hub itself answered with an error, or the machine could not do its part."""
    return isinstance(error, OSError) and not isinstance(error, JSONDecodeError)  # requests' own is both


def _unreadable(error: Exception) -> TransientError:
    return TransientError(f"sent what cannot be read ({type(error).__name__})")
