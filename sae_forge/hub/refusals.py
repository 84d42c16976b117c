"""What the Hub says no to, each in one line with the way out, and never with the token in it."""

import re

from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RevisionNotFoundError

from sae_forge.errors import RemoteError
from sae_forge.hub.wire import TransientError

_TOKEN = re.compile(r"hf_[A-Za-z0-9]{20,}")


def no_token() -> RemoteError:
    """Nobody is logged in."""
    return RemoteError("no Hub token; set HF_TOKEN, or log in with: hf auth login")


def refusal(error: Exception, repo_id: str, endpoint: str, token: str) -> RemoteError:
    """An answer that will not change by asking again."""
    code = status(error)
    said = _said(error, token)
    if isinstance(error, OfflineModeIsEnabled):
        return RemoteError("HF_HUB_OFFLINE is set, so nothing can be pushed; unset it")
    if isinstance(error, GatedRepoError):
        return RemoteError(f"{repo_id} is gated and this token has no access; ask for it at {endpoint}/{repo_id}")
    if isinstance(error, RevisionNotFoundError):
        return RemoteError(f"{repo_id} has no such revision (404); check --branch")
    if code == 401:
        return RemoteError("the Hub does not accept this token (401); set HF_TOKEN to a valid one, or: hf auth login")
    if code == 403:
        hint = f"make one with write access at {endpoint}/settings/tokens, or push to a name of your own"
        return RemoteError(f"this token may not write to {repo_id} (403{said}); {hint}")
    if code == 404:
        return RemoteError(f"{repo_id} is not on {endpoint}, or this token may not see it (404); check the name")
    return RemoteError(f"the Hub refused the push to {repo_id} ({code or type(error).__name__}{said})")


def exhausted(failure: TransientError, tries: int, endpoint: str) -> RemoteError:
    """Tried often enough."""
    if failure.unreached:
        return RemoteError(f"cannot reach {endpoint}: it {failure}; check the network and HF_ENDPOINT")
    again = "try again later" if failure.wait is None else f"try again in {failure.wait:.0f} s"
    return RemoteError(f"the Hub at {endpoint} {failure}, {tries} times; nothing was published: {again}")


def status(error: Exception) -> int | None:
    """The HTTP status behind an error of ``huggingface_hub``."""
    return getattr(getattr(error, "response", None), "status_code", None)


def _said(error: Exception, token: str) -> str:
    """The server's own words, on one line, without any token."""
    words = getattr(error, "server_message", None) or ("" if status(error) else str(error))
    text = " ".join(str(words).replace(token, "[token]").split())
    text = _TOKEN.sub("[token]", text)
    return f": {text[:160]}" if text else ""
