"""The one translation of what the Hub's client raises: what lies deepest decides, and no secret is repeated."""

import errno
from types import SimpleNamespace

import pytest
from huggingface_hub import errors

from sae_forge.errors import CheckpointError, ForgeError, RemoteError, ResourceError
from sae_forge.store.hub_errors import READING, Asked, told

ASKED = Asked(
    name="some/owl",
    page="huggingface.co/some/owl",
    flag="--sae",
    revision="v2",
    instead="; or give a folder",
    words={**READING, "file": "{name} holds no such file"},
    kinds={"name": CheckpointError},
)


def answered(kind: type[Exception], code: int, message: str = "", server: str | None = None) -> Exception:
    error = kind.__new__(kind)
    error.args = (message,)
    error.response = SimpleNamespace(status_code=code, headers={})  # pyright: ignore[reportAttributeAccessIssue]
    error.server_message = server  # pyright: ignore[reportAttributeAccessIssue]
    return error


def wrapped(inner: Exception) -> Exception:
    """As transformers wraps it."""
    try:
        try:
            raise inner
        except type(inner) as error:
            raise OSError("cannot load some/owl") from error
    except OSError as outer:
        return outer


CASES = [
    (answered(errors.GatedRepoError, 403), RemoteError, "is gated: ask for access at huggingface.co/some/owl"),
    (answered(errors.RevisionNotFoundError, 404), RemoteError, "has no revision 'v2' on the Hub; check --sae"),
    (answered(errors.RepositoryNotFoundError, 401), RemoteError, "is not on the Hub, or is private"),
    (answered(errors.EntryNotFoundError, 404), RemoteError, "holds no such file"),
    (answered(errors.HfHubHTTPError, 403), RemoteError, r"refused some/owl \(HTTP 403\); log in"),
    (answered(errors.HfHubHTTPError, 500), RemoteError, r"answered HTTP 500 for some/owl; try again later; or give"),
    (errors.LocalEntryNotFoundError("no copy"), RemoteError, "cannot be reached .*; or give a folder"),
    (errors.OfflineModeIsEnabled("offline"), RemoteError, "cannot be reached"),
    (ConnectionError("reset"), RemoteError, "cannot be reached"),
    (errors.HFValidationError("a b"), CheckpointError, "no.* Hub id of the form owner/name"),
    (OSError(errno.ENOSPC, "No space left on device"), ResourceError, "disk is full"),
    (OSError("strange\nvery"), RemoteError, "could not be fetched: strange; or give a folder"),
]


@pytest.mark.parametrize("outside", [lambda error: error, wrapped])
@pytest.mark.parametrize(("error", "kind", "words"), CASES[:-1])
def test_the_cause_decides_however_it_is_wrapped(error: Exception, kind: type[ForgeError], words: str, outside) -> None:
    with pytest.raises(kind, match=words):
        raise told(outside(error), ASKED)


def test_what_is_unknown_is_told_in_its_own_first_line() -> None:
    error, kind, words = CASES[-1]
    with pytest.raises(kind, match=words) as refused:
        raise told(error, ASKED)
    assert "very" not in str(refused.value)


def test_words_of_the_server_are_repeated_without_the_token() -> None:
    asked = Asked(name="some/owl", page="", flag="", words={"forbidden": "no ({status}{said})"}, token="sesame-open")
    error = answered(errors.HfHubHTTPError, 403, server="sesame-open\nand hf_abcdefghijklmnopqrstuvwxyz may not")
    assert str(told(error, asked)) == "no (403: [secret] and [secret] may not)"
