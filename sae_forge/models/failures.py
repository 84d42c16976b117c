"""What can go wrong while a model is fetched and loaded, each as one line with the right exit code."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from sae_forge import builtin
from sae_forge.errors import ForgeError, RemoteError, ResourceError, UnsupportedModelError

USE_BUILT_IN = f"or use --model {builtin.MODELS[0]}, which needs no network"
_LOG_IN = "log in with `hf auth login` or set HF_TOKEN"


@contextmanager
def one_line(name: str, *, local: bool) -> Iterator[None]:
    """Turn what transformers and the Hub client raise while loading into one line and the right exit code."""
    drew_bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    except ForgeError:
        raise
    except torch.OutOfMemoryError as error:
        raise ResourceError(f"{name} does not fit on its device; try --quantize 4bit or --device_map auto") from error
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, SafetensorError) as error:
        raise (_folder_error(name, error) if local else _remote_error(name, error)) from error
    finally:
        if drew_bars:
            transformers_logging.enable_progress_bar()


def _folder_error(name: str, error: Exception) -> ForgeError:
    return UnsupportedModelError(
        f"{name} cannot be loaded as a safetensors causal language model: {_first_line(error)}"
    )


def _remote_error(name: str, error: Exception) -> ForgeError:
    """The cause below transformers' wrapping decides; the order matters, as the Hub's errors are subclasses."""
    causes = _chain(error)

    def caused_by(*kinds: type[Exception]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    if caused_by(GatedRepoError):
        return RemoteError(f"{name} is gated: ask for access at huggingface.co/{name}, then {_LOG_IN}; {USE_BUILT_IN}")
    if caused_by(RevisionNotFoundError):
        return RemoteError(f"{name} has no such revision on the Hub; check --revision")
    if caused_by(RepositoryNotFoundError):
        return RemoteError(f"{name} is not on the Hub, or is private; check the name, or {_LOG_IN}; {USE_BUILT_IN}")
    if caused_by(HFValidationError):
        return UnsupportedModelError(
            f"{name!r} is neither a folder nor a Hub id of the form owner/name; {USE_BUILT_IN}"
        )
    answers = [cause.response for cause in causes if isinstance(cause, HfHubHTTPError)]
    status = next((answer.status_code for answer in answers if answer is not None), None)
    if status in (401, 403):
        return RemoteError(f"the Hub refused {name} (HTTP {status}); {_LOG_IN}; {USE_BUILT_IN}")
    if status is not None and status != 404:
        return RemoteError(f"the Hub answered HTTP {status} for {name}; try again later; {USE_BUILT_IN}")
    if caused_by(OfflineModeIsEnabled, LocalEntryNotFoundError, ConnectionError) or _could_not_connect(causes):
        return RemoteError(
            f"{name} is not in the local cache and the Hub cannot be reached (no network?); {USE_BUILT_IN}"
        )
    return _folder_error(name, error)


def _could_not_connect(causes: list[BaseException]) -> bool:
    """Network failures of whichever HTTP client the installed Hub library stands on."""
    return any(type(cause).__module__.split(".")[0] in ("httpx", "httpx2", "httpcore", "requests") for cause in causes)


def _chain(error: BaseException | None) -> list[BaseException]:
    chain = []
    while error is not None:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return chain


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
