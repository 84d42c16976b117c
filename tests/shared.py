"""What is made once in a run of the suite, however many workers it has; processes that do not begin from nothing."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that the first worker to come makes, while the others wait; nobody writes into it after that."""
    root = factory.getbasetemp().parent if "PYTEST_XDIST_WORKER" in os.environ else factory.getbasetemp()
    folder, whole = root / f"made-{name}", root / f"made-{name}.whole"
    with (root / f"made-{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not whole.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            whole.touch()
    return folder


def forked(work: Callable[[], object], said: Path) -> int:
    """The id of a fork that does this work, in which all is imported; ``said`` gets what it says on both streams."""
    if pid := os.fork():
        return pid
    code = 1
    with said.open("w") as sys.stdout:
        sys.stderr = sys.stdout
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        try:
            work()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:  # noqa: BLE001 (the parent reads it)
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(code)


def commanded(arguments: Sequence[str], said: Path) -> int:
    """The id of a process that is this command line: threads that load a model would race for the pool a fork lost."""
    with said.open("w") as told:
        command = [sys.executable, "-m", "sae_forge", *arguments]
        process = subprocess.Popen(command, cwd=Path(__file__).parents[1], stdout=told, stderr=told)
    process.returncode = 0  # it is waited for by ``ended`` and not by its object
    return process.pid


def ended(pid: int) -> int:
    """The exit code of a fork once it ends; -n for a death by signal n."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
