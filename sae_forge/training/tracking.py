"""Figures of training for a tracker: trackio or wandb, by one flag.

The client runs in a process of its own, which is handed a JSON line a point. So whatever becomes of it (no network, no
login, a crash) is one warning, and training neither waits nor ends; nor does what it prints reach stdout. A point for
which the pipe has no room is left out. The process ends when the pipe does, even if this one is killed.

What a tracked run is called is kept beside the log, so that a training that is resumed goes on in the same one.
"""

import importlib
import importlib.util
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TextIO

from sae_forge.errors import BackendError, ConfigError, DataError, did_you_mean
from sae_forge.progress import Progress
from sae_forge.store import files
from sae_forge.store.secrets import scrubbed

if TYPE_CHECKING:  # the client's process needs no torch
    from sae_forge.training.plan import Plan

PROJECT = "sae-forge"
POINTS = 2000
"""About as many points are sent of a training; more show nothing in a curve."""
MAX_LINE = 4096
"""Bytes that a pipe takes whole or not at all."""
PATIENCE = 20.0
"""Seconds to wait at the end for what is still to be sent; after that it goes on by itself."""


@dataclass(frozen=True, kw_only=True)
class Tracked:
    """What a client is told of a run before its first point."""

    project: str
    name: str
    identity: str
    """The same for a training that was resumed; a new one for one that was started over."""
    folder: str
    """Where the client may keep files of its own."""
    settings: Mapping[str, Any]


def _trackio(client: ModuleType, told: Tracked) -> Any:
    # it finds a run again by its name, and on this disk without a network
    name = f"{told.name}-{told.identity}"
    return client.init(project=told.project, name=name, resume="allow", config=dict(told.settings))


def _wandb(client: ModuleType, told: Tracked) -> Any:
    how = {"project": told.project, "name": told.name, "id": told.identity, "resume": "allow"}
    return client.init(**how, dir=told.folder, config=dict(told.settings))


CLIENTS: Mapping[str, Callable[[ModuleType, Tracked], Any]] = {"trackio": _trackio, "wandb": _wandb}
"""How each opens a run, which then has ``log(figures, step)`` and ``finish()``."""


def require_tracker(named: str | None) -> None:
    """Refuse before any work a tracker that is unknown or not installed.

    Raises:
        ConfigError: there is no such tracker.
        BackendError: it is not installed.
    """
    if named is None:
        return
    client, project = _parsed(named)
    if client not in CLIENTS or not project:
        near = did_you_mean(client, list(CLIENTS))
        raise ConfigError(f"--track {named}: unknown{near}; give {' or '.join(CLIENTS)}, and :PROJECT behind it or not")
    package = importlib.util.find_spec(client)
    if package is None or package.origin is None:  # a folder that wandb left here is no package
        raise BackendError(
            f"--track {client} needs {client}, which is not installed: pip install 'sae-forge[{client}]'"
        )


def _parsed(named: str) -> tuple[str, str]:
    client, colon, project = named.partition(":")
    return client, project if colon else PROJECT


class Tracker:
    """A tracked run that is open; without one to send to, what is added goes nowhere."""

    def __init__(
        self, process: "subprocess.Popen[bytes] | None", every: int, tell: Callable[[str], None], progress: Progress
    ) -> None:
        self._process, self._every, self._tell, self._progress = process, every, tell, progress

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        """A step's figures, if it is one of those that are sent."""
        if step % self._every == 0:
            self.send({"step": step, "figures": dict(figures)})

    def send(self, line: Mapping[str, Any]) -> None:
        """Hand a line to the client's process, if there is room for it."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        encoded = (json.dumps(line) + "\n").encode()
        if len(encoded) > MAX_LINE:
            return
        try:
            with suppress(BlockingIOError):  # it is busy: a point less
                os.write(self._process.stdin.fileno(), encoded)
        except BrokenPipeError:
            self._process = None
            self._tell("it ended")

    def close(self) -> None:
        """Nothing more will come; what was handed over may still be on its way."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            with self._progress.task("let the tracker finish", None, ""):
                code = self._process.wait(PATIENCE)
            if code:
                self._tell("it ended")
        except subprocess.TimeoutExpired:
            self._tell("it is still sending, which goes on by itself")


def tracked(plan: "Plan", log: TextIO | None, done: int, stack: ExitStack, progress: Progress) -> Tracker:
    """A run of the tracker that the config names, closed with the stack.

    Args:
        log: The training's own, beside which the run's name is kept; None: nothing is tracked.
        done: Steps taken before: where there are some the training goes on, and with it the run.
    """
    named = plan.config.track
    if named is None or log is None:
        return Tracker(None, 1, progress.say, progress)
    client, project = _parsed(named)
    path = Path(log.name)
    place, said = path.with_suffix(".tracked.json"), path.with_suffix(f".{client}.log")
    told = {
        "project": project,
        "name": f"{path.parent.parent.name}-{path.stem.removeprefix('train-')}",
        "identity": _identity(place, named, anew=not done),
        "folder": str(path.parent),
        "settings": plan.decided,
    }

    def tell(what: str) -> None:
        lines = said.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
        progress.say(f"--track {client}: {what} ({scrubbed(lines[-1])}); training goes on. All it said: {said}")

    with said.open("ab") as words:
        process = subprocess.Popen(  # noqa: S603 (this module, and a name of the table)
            [sys.executable, "-m", __name__, client],
            stdin=subprocess.PIPE, stdout=words, stderr=words,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,  # Ctrl-C is for training, which then closes this
        )  # fmt: skip
    assert process.stdin is not None
    os.set_blocking(process.stdin.fileno(), False)
    tracker = Tracker(process, max(1, plan.steps // POINTS), tell, progress)
    tracker.send(told)
    progress.say(f"--track {client}: run {told['name']} of project {project}")
    stack.callback(tracker.close)
    return tracker


def _identity(place: Path, named: str, *, anew: bool) -> str:
    """What the run is known by, kept in the log folder; made anew for another training or another tracker."""
    with suppress(DataError):
        kept = files.read_json(place, kind=DataError, what="the name of a tracked run") if place.exists() else {}
        if not anew and isinstance(kept, dict) and kept.get("track") == named and isinstance(kept.get("id"), str):
            return kept["id"]
    identity = uuid.uuid4().hex[:8]
    files.publish_json(place, {"track": named, "id": identity})
    return identity


def serve(client: str, lines: Iterable[str]) -> None:
    """Be the process of the client: the first line opens the run, each other is a point or the last figures."""
    coming = iter(lines)
    run = CLIENTS[client](importlib.import_module(client), Tracked(**json.loads(next(coming))))
    for line in coming:
        said = json.loads(line)
        run.log(said["figures"], step=said["step"])
    run.finish()


if __name__ == "__main__":
    serve(sys.argv[1], sys.stdin)
