"""Requests that end: ``huggingface_hub`` waits for ever on a silent server, and retries some requests and not others.

Inside :func:`single_tries` every request tries once, within a time limit, so that one place alone decides to try again.
"""

import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from importlib import import_module
from threading import Thread
from typing import Any

from huggingface_hub.utils import get_session

from sae_forge.progress import Progress
from sae_forge.store.hub_errors import without_bars
from sae_forge.store.retry import Patience

CONNECT, SILENCE = 15.0, 120.0
"""Seconds a server may take to accept a connection, and stay silent on one, before a request counts as failed."""
SLOWEST = 2**16
"""Bytes a second below which an upload counts as failed, however steadily it creeps."""
TRIES = 6
TRIES_UNREACHED = 3
"""Tries when not even a connection came about."""
PATIENCE = 300.0
"""Seconds from the first failure after which nothing is tried anew."""
FIRST_WAIT, LONGEST_WAIT = 1.0, 16.0
"""Seconds between tries: doubled each time, unless the server names them."""

_RETRIED = frozenset({408, 429, 500, 502, 503, 504})
_UNREACHED = frozenset({"ConnectError", "ConnectTimeout", "MaxRetryError"})
"""What httpx and, inside its own error, requests call a connection that did not come about."""


class TransientError(Exception):
    """A request that failed for now; whether the server acted on it is unknown."""

    def __init__(self, reason: str, *, wait: float | None = None, unreached: bool = False) -> None:
        super().__init__(reason)
        self.wait = wait
        """Seconds the server asked for."""
        self.unreached = unreached
        """No connection came about."""


def patience() -> Patience:
    """How often and how long one request of the Hub is tried; from the first failure, as an upload may take an hour."""
    return Patience(tries=TRIES, first=FIRST_WAIT, longest=LONGEST_WAIT, seconds=PATIENCE)


def wait_after(failure: TransientError, left: Patience, progress: Progress) -> float | None:
    """Seconds to wait before the next try, which is said; None when enough was tried."""
    wait = left.next_wait(asked=failure.wait, tries=TRIES_UNREACHED if failure.unreached else None)
    if wait is not None:
        progress.say(f"the Hub {failure}; trying again in {wait:.0f} s")
    return wait


@contextmanager
def single_tries(carrying: int = 0) -> Iterator[None]:
    """Inside, each request of ``huggingface_hub`` tries once and raises TransientError where trying anew may help.

    Wraps the session there is, so a proxy or certificate that the user configured keeps working. The session is of
    httpx2 (hub 2), httpx (hub 1) or requests (hub 0).

    Args:
        carrying: Bytes that the requests may have to upload; each ends within ``SILENCE`` seconds and the time that
            these take at ``SLOWEST``, even when a server sends a byte now and then.
    """
    session: Any = get_session()
    names = [kind.__module__.partition(".")[0] for kind in type(session).__mro__]
    library = import_module(next(name for name in names if name in ("httpx2", "httpx", "requests")))
    session.send = _once(session.send, library, SILENCE + carrying / SLOWEST)
    try:
        with without_bars():
            yield
    finally:
        del session.send  # set on the instance, so the method of its class is back


def _once(send: Callable[..., Any], library: Any, seconds: float) -> Callable[..., Any]:
    """``send`` with time limits, whose passing failures no retry of ``huggingface_hub`` recognises."""
    failures = getattr(library, "RequestError", None) or library.RequestException

    def once(request: Any, **options: Any) -> Any:
        # Set on each request, because some calls of the client say "no limit" themselves.
        if hasattr(request, "extensions"):
            request.extensions = {**request.extensions, "timeout": library.Timeout(SILENCE, connect=CONNECT).as_dict()}
        else:
            options["timeout"] = (CONNECT, SILENCE)
        try:
            response = _within(seconds, lambda: send(request, **options))
        except TimeoutError:
            raise TransientError(f"gave no answer within {seconds:.0f} s") from None
        except failures as error:
            names = {type(part).__name__ for part in (error, *error.args)}
            raise TransientError(
                f"gave no answer ({type(error).__name__})", unreached=bool(names & _UNREACHED)
            ) from None
        if response.status_code in _RETRIED:
            response.close()
            raise TransientError(f"answered {response.status_code}", wait=_asked_wait(response.headers))
        return response

    return once


def _within(seconds: float, request: Callable[[], Any]) -> Any:
    """The answer, or TimeoutError: no HTTP client bounds a whole answer, only the silence between two of its bytes."""
    answer: Future[Any] = Future()

    def ask() -> None:
        try:
            answer.set_result(request())
        except BaseException as error:  # noqa: BLE001 (raised again where it is waited for)
            answer.set_exception(error)

    Thread(target=ask, daemon=True).start()  # given up when late; its connection ends with the process
    return answer.result(seconds)


def _asked_wait(headers: Any) -> float | None:
    """Seconds the server asks to wait, if it does."""
    asked = headers.get("Retry-After", "").strip()
    if asked.isdigit():
        return float(asked)
    if limit := re.search(r"\br=0\s*;\s*t=(\d+)", headers.get("RateLimit", "")):
        return float(limit[1])
    try:
        return max(0.0, parsedate_to_datetime(asked).timestamp() - time.time())
    except (TypeError, ValueError):
        return None
