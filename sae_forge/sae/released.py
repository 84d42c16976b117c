"""SAEs others released, by name: what a Hub reference such as ``google/gemma-scope-2b-pt-res:layer_3/…`` says, and
the one file it stands for.
"""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sae_forge.errors import CheckpointError, ForgeError, RemoteError, ResourceError
from sae_forge.hookpoint import HookPoint
from sae_forge.sae.formats.gemma_scope import PARAMS

_WRITTEN = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?:(?P<path>[\w./-]+)")
_RELEASE = re.compile(r"gemma-scope-(?P<size>2b|9b|27b)-(?P<tuning>pt|it)-(?P<site>\w+)")
_LAYER = re.compile(r"layer_(\d+)")
_LOG_IN = "log in with `hf auth login` or set HF_TOKEN"


@dataclass(frozen=True)
class Reference:
    """A folder of a Hub repository that holds one ``params.npz``."""

    repo: str
    path: str
    revision: str | None = None
    """Branch, tag or commit; None is main."""

    @classmethod
    def parse(cls, text: str) -> "Reference | None":
        """Read ``owner/name:path`` or ``owner/name@revision:path``; None when the text is something else.

        Raises:
            CheckpointError: its path leads out of the repository.
        """
        if (match := _WRITTEN.fullmatch(text)) is None:
            return None
        path = match["path"].removesuffix(PARAMS).strip("/")
        if not path or {".", "..", ""} & set(path.split("/")):
            raise CheckpointError(f"--sae {text}: after the colon comes the folder of a {PARAMS}, as layer_3/width_16k")
        return cls(match["repo"], path, match["revision"])

    @property
    def name(self) -> str:
        """One readable folder name: slashes become ``--``."""
        return f"{self.repo}/{self.path}".replace("/", "--")

    def at(self, revision: str) -> "Reference":
        """The same, pinned."""
        return Reference(self.repo, self.path, revision)

    def __str__(self) -> str:
        return f"{self.repo}{f'@{self.revision}' if self.revision else ''}:{self.path}"


def model_of(text: str) -> str:
    """The model that a Gemma Scope release, named somewhere in ``text``, was trained on; empty when none is named."""
    match = _RELEASE.search(text)
    return f"google/gemma-2-{match['size']}{'-it' if match['tuning'] == 'it' else ''}" if match else ""


def point_of(text: str) -> HookPoint | None:
    """Where an SAE of this path reads: ``layer_3`` is the output of block 3. None when no layer is named.

    Raises:
        CheckpointError: the release reads somewhere else than a block's output.
    """
    release, layers = _RELEASE.search(text), _LAYER.findall(text)
    if release and release["site"] != "res":
        raise CheckpointError(
            f"{text} reads the site {release['site']!r}; of Gemma Scope only -res (blocks' outputs) is supported"
        )
    return HookPoint(int(layers[-1]), "resid_post") if layers else None


def fetch(reference: Reference) -> tuple[Path, str | None]:
    """The local copy of the reference's ``params.npz`` and the commit it is of; downloaded once, by the Hub's client.

    Raises:
        RemoteError: the Hub refused, does not have it, or cannot be reached.
        ResourceError: the disk is full.
    """
    from huggingface_hub import hf_hub_download

    with _hub_told(reference), _no_bars():
        path = Path(hf_hub_download(reference.repo, f"{reference.path}/{PARAMS}", revision=reference.revision))
    parts = path.parts
    return path, parts[parts.index("snapshots") + 1] if "snapshots" in parts else None


@contextmanager
def _no_bars() -> Iterator[None]:
    """The library never prints; the Hub's client would."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    drew_bars = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if drew_bars:
            enable_progress_bars()


@contextmanager
def _hub_told(reference: Reference) -> Iterator[None]:
    """Turn what the Hub client raises into one line; the order matters, as its errors are subclasses."""
    from huggingface_hub import errors

    repo = reference.repo
    try:
        yield
    except errors.GatedRepoError as error:
        raise RemoteError(f"{repo} is gated: ask for access at huggingface.co/{repo}, then {_LOG_IN}") from error
    except errors.RevisionNotFoundError as error:
        raise RemoteError(f"{repo} has no revision {reference.revision!r} on the Hub; check --sae") from error
    except errors.RepositoryNotFoundError as error:
        raise RemoteError(f"{repo} is not on the Hub, or is private; check --sae, or {_LOG_IN}") from error
    except errors.LocalEntryNotFoundError as error:
        raise _unreached(reference) from error
    except errors.EntryNotFoundError as error:
        raise RemoteError(
            f"{repo} holds no {reference.path}/{PARAMS}; look up the folders at huggingface.co/{repo}/tree/main"
        ) from error
    except errors.HFValidationError as error:
        raise CheckpointError(f"--sae {reference}: {repo!r} is no Hub id of the form owner/name") from error
    except errors.OfflineModeIsEnabled as error:
        raise _unreached(reference) from error
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        hint = _LOG_IN if status in (401, 403) else "try again later"
        raise RemoteError(f"the Hub answered HTTP {status} for {repo}; {hint}") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(f"the disk is full while fetching {reference}; free some, or set HF_HOME") from error
        raise _unreached(reference) from error
    except errors.HTTPError as error:  # pyright: ignore[reportPrivateImportUsage]
        raise _unreached(reference) from error


def _unreached(reference: Reference) -> ForgeError:
    return RemoteError(
        f"{reference} is not in the local cache and the Hub cannot be reached (no network?); "
        f"give --sae a local folder that holds its {PARAMS}"
    )
