"""Ctrl-C and SIGTERM that wait for the step to end, so that a checkpoint is never half a step."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

HELD = (signal.SIGINT, signal.SIGTERM)


@dataclass
class Pending:
    """Whether a signal has come; ask between steps."""

    signum: int | None = None


@contextmanager
def held_signals() -> Iterator[Pending]:
    """Within the block a first SIGINT or SIGTERM is only noted; on leaving it is raised as if it came then.

    A second one is not held. One that the process was started to ignore, as a shell does for its background jobs, stays
    ignored. Outside the main thread, where Python allows no handlers, nothing is held.
    """
    pending = Pending()
    if threading.current_thread() is not threading.main_thread():
        yield pending
        return
    handlers = {signum: signal.getsignal(signum) for signum in HELD}
    previous = {signum: handler for signum, handler in handlers.items() if handler is not signal.SIG_IGN}

    def release() -> None:
        for signum, handler in previous.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)

    def hold(signum: int, frame: FrameType | None) -> None:
        del frame
        if pending.signum is not None:
            release()
            signal.raise_signal(signum)
        pending.signum = signum

    for signum in previous:
        signal.signal(signum, hold)
    try:
        yield pending
    finally:
        release()
    if pending.signum is not None:
        signal.raise_signal(pending.signum)
