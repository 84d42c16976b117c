"""The store of keys and texts through which the processes of one job speak: who keeps it, and how each finds it.

A launcher says in ``MASTER_ADDR`` and ``MASTER_PORT`` where it is.
"""

import json
import os
import socket
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from sae_forge.errors import ConfigError, PeerError


def open_store(rank: int, world: int, limit: float) -> TCPStore:
    """The store of this job, with every rank in it."""
    host, port = os.environ.get("MASTER_ADDR", ""), number("MASTER_PORT", 0)
    if not host or not port or not 0 <= rank < world:
        raise ConfigError(
            f"RANK={rank} of WORLD_SIZE={world} at MASTER_ADDR={host!r}, MASTER_PORT={port}: start the ranks with "
            "torchrun or accelerate launch"
        )
    began = time.monotonic()
    store = connected(limit, keeps=rank == 0 and not launcher_keeps_it())
    store.set(f"here/{life()}/{rank}", json.dumps({"pid": os.getpid(), "machine": _machine()}))
    keys = [f"here/{life()}/{each}" for each in range(world)]
    while missing := [each for each, key in enumerate(keys) if not store.check([key])]:
        if time.monotonic() - began > limit:
            raise PeerError(
                f"rank {missing[0]} of {world} did not come within {limit:.0f} s; look at its log, or raise "
                "--dist_timeout"
            )
        time.sleep(0.05)
    return store


def connected(limit: float, *, keeps: bool = False) -> TCPStore:
    """A connection to the store; ``keeps``: the store is this process's own."""
    host, port = os.environ["MASTER_ADDR"], number("MASTER_PORT", 0)
    try:
        if not keeps:
            _knock(host, port, limit)
        return TCPStore(host, port, None, keeps, timedelta(seconds=limit), wait_for_workers=False)
    except (RuntimeError, OSError) as error:
        raise PeerError(f"rank 0 did not answer at {host}:{port} within {limit:.0f} s; look at its log") from error


def _knock(host: str, port: int, limit: float) -> None:
    """Wait until somebody listens there; the store's own waiting takes more than twice the time it is given."""
    until = time.monotonic() + limit
    while True:
        try:
            socket.create_connection((host, port), timeout=limit).close()
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


def launcher_keeps_it() -> bool:
    """Whether the store is a process of the launcher's own."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def life() -> str:
    """How often the launcher has started these processes; its store outlives them."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")


def _machine() -> str:
    """What tells whether a process id of another rank means anything here."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    try:
        return f"{boot.read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return f"{socket.gethostname()} {os.getpid()}"  # no process of another rank can be looked at


def wait(store: TCPStore, keys: Sequence[str], failed: str | None = None) -> bool:
    """Until every key is there; Python's signal handlers run meanwhile.

    Args:
        failed: The key that is there once they will not come.

    Returns:
        Whether they have come.
    """
    pause = 0.001
    while not store.check(list(keys)):
        if failed is not None and store.check([failed]):
            return store.check(list(keys))  # whoever failed after these had come did not keep them
        time.sleep(pause)
        pause = min(0.05, 1.5 * pause)
    return True


def number(name: str, otherwise: int) -> int:
    """What a launcher says in a variable of the environment."""
    text = os.environ.get(name, "")
    if text and not text.isdecimal():
        raise ConfigError(f"{name}={text!r} is no number; start the ranks with torchrun or accelerate launch")
    return int(text or otherwise)
