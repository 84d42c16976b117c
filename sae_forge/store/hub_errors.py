"""What the Hub's client raises, in one line with the way out: for models, SAEs, data sets and pushes alike.

The client's errors are subclasses of one another, wrapped by the libraries above it, and differ between its versions;
this is the one file that knows them.
"""

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from sae_forge.errors import ForgeError, RemoteError, ResourceError
from sae_forge.store.secrets import scrubbed

Trouble = Literal[
    "offline", "gated", "revision", "repository", "file", "name", "token", "forbidden", "missing", "answer", "disk",
    "network", "other",
]  # fmt: skip
"""``token``, ``forbidden``, ``missing`` and ``answer`` are the statuses 401, 403, 404 and all others."""

LOG_IN = "log in with `hf auth login` or set HF_TOKEN"
_REFUSED = f"the Hub refused {{name}} (HTTP {{status}}); {LOG_IN}{{instead}}"
READING: Mapping[Trouble, str] = {
    "gated": f"{{name}} is gated: ask for access at {{page}}, then {LOG_IN}{{instead}}",
    "revision": "{name} has no revision {revision!r} on the Hub; check {flag}",
    "repository": f"{{name}} is not on the Hub, or is private; check {{flag}}, or {LOG_IN}{{instead}}",
    "name": "{name!r} is neither a folder nor a Hub id of the form owner/name{instead}",
    "token": _REFUSED,
    "forbidden": _REFUSED,
    "answer": "the Hub answered HTTP {status} for {name}; try again later{instead}",
    "disk": "the disk is full while fetching {name}; free some, or set HF_HOME",
    "network": "{name} is not in the local cache and the Hub cannot be reached (no network?){instead}",
    "other": "{name} could not be fetched: {error}{instead}",
}
"""What is said of something that was to be fetched."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What was asked of the Hub, in the words of a message."""

    name: str
    page: str
    """Where a person looks at it, or asks for access."""
    flag: str
    """The setting that names it, or its revision."""
    revision: str = "main"
    instead: str = ""
    """What else could be done, beginning with "; "."""
    words: Mapping[Trouble, str] = field(default_factory=lambda: READING)
    """A sentence for each trouble that has one of its own; ``other`` stands for the rest."""
    kinds: Mapping[Trouble, type[ForgeError]] = field(default_factory=dict)
    """Errors of another kind than RemoteError."""
    token: str = field(default="", repr=False)
    """Taken out of what is repeated."""


def told(error: BaseException, asked: Asked, trouble: Trouble | None = None) -> ForgeError:
    """The error to raise in its place.

    Args:
        trouble: What the trouble is, where the caller knows better.
    """
    trouble = trouble or next(each for each in _troubles(error) if each in asked.words)
    code = next(filter(None, map(status, _chain(error))), None)
    server = scrubbed(str(getattr(error, "server_message", None) or ""), asked.token)
    first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    text = asked.words[trouble].format(
        name=asked.name,
        page=asked.page,
        flag=asked.flag,
        revision=asked.revision,
        instead=asked.instead,
        status=code or type(error).__name__,
        said=f": {server}" if server else "",
        error=scrubbed(first, asked.token),
    )
    usual = ResourceError if trouble == "disk" else RemoteError
    return asked.kinds.get(trouble, usual)(text)


def status(error: BaseException) -> int | None:
    """The HTTP status behind an error of the client."""
    return getattr(getattr(error, "response", None), "status_code", None)


@contextmanager
def without_bars() -> Iterator[None]:
    """The library never prints; the client would, for large files."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    drew_bars = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if drew_bars:
            enable_progress_bars()


def _troubles(error: BaseException) -> Iterator[Trouble]:
    """Everything that may be said of an error, the most telling first; what lies below its wrapping decides."""
    from huggingface_hub import errors

    causes = _chain(error)

    def caused_by(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    # in this order: a gated repository and a missing revision are to the client repositories that are not found
    by_class: tuple[tuple[type[BaseException], Trouble], ...] = (
        (errors.OfflineModeIsEnabled, "offline"),
        (errors.GatedRepoError, "gated"),
        (errors.RevisionNotFoundError, "revision"),
        (errors.RepositoryNotFoundError, "repository"),
        (errors.HFValidationError, "name"),
    )
    for kind, trouble in by_class:
        if caused_by(kind):
            yield trouble
    # to the client a copy that is not in the cache is a missing file as well; it says that the network failed
    no_copy = caused_by(errors.LocalEntryNotFoundError)
    if caused_by(errors.EntryNotFoundError) and not no_copy:
        yield "file"
    code = next(filter(None, map(status, causes)), None)
    if code is not None:
        named: dict[int, Trouble] = {401: "token", 403: "forbidden", 404: "missing"}
        yield named.get(code, "answer")
    if any(isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT) for cause in causes):
        yield "disk"
    # by name, since which of them the client speaks through hangs on its version, and none need be installed
    clients = ("httpx", "httpx2", "httpcore", "requests")
    cut_off = code is None and any(type(cause).__module__.split(".")[0] in clients for cause in causes)
    if no_copy or cut_off or caused_by(ConnectionError, TimeoutError):
        yield "network"
    yield "other"


def _chain(error: BaseException | None) -> list[BaseException]:
    chain = []
    while error is not None:
        chain.append(error)
        error = error.__cause__ or error.__context__  # some wrap without ``from``
    return chain
