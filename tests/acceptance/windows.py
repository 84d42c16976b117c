"""Case A9: collecting and training take turns over windows of shards, and are killed in each of their phases."""

import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from tests.acceptance.harness import (
    EACH,
    TRIES,
    Ended,
    Ground,
    Result,
    Verb,
    Watch,
    differences,
    judge,
    require_whole_checkpoints,
)

ROOM = 160_000
"""Bytes that windows may take: a third of what the shards of both corpora would."""
PHASES = ("collecting", "training", "deleting")


def killed_at_random(ground: Ground) -> Iterator[Result]:
    """20 SIGKILLs of training on windows, some in each phase: the same bytes and rows, and never more disk than given.

    A third of the first lives end as soon as a window is being deleted, too short a moment to be met by chance.
    """
    wanted, each = (3, 0) if ground.smoke else (20, 3)
    reference, watch = ground.fresh(), Watch(ground.root / "reference-windows")
    whole, most = _in_turns(ground, reference, watch, lambda verb: None)
    seconds, kills, phases, lives = whole.seconds, 0, Counter(dict.fromkeys(PHASES, 0)), 0
    found = [*whole.flaws(0), *([] if 0 < most <= ROOM else [f"{most} B of shards where {ROOM} were given"])]
    yield judge("A9 undisturbed", found, most=most, given=ROOM)
    while not found and (kills < wanted or min(phases.values()) < each) and lives < 4 * max(wanted, TRIES):
        folder, ended = ground.fresh(), None
        mine, before = Watch(ground.root / f"{folder.name}.ledger"), Counter(phases)
        most = 0
        while ended is None or ended.code == 128 + signal.SIGKILL:
            lives += 1
            aimed = lives % 3 == 0 and phases["deleting"] < 2 * each
            stop = _when_deleting(folder) if aimed else _at_random(ground, seconds)
            ended, used = _in_turns(ground, folder, mine, stop)
            most = max(most, used)
            if ended.code == 128 + signal.SIGKILL:
                kills, phases = kills + 1, phases + Counter([_phase(folder)])
                require_whole_checkpoints(folder)
        flaws = [*ended.flaws(0), *differences(folder, reference), *mine.unlike(watch)]
        flaws += [] if most <= ROOM else [f"{most} B of shards where {ROOM} were given"]
        yield judge(f"A9 {folder.name}", flaws, mechanism="SIGKILL from outside", most=most, **(phases - before))
        shutil.rmtree(folder)
    short = [f"only {phases[phase]} kills while {phase}" for phase in PHASES if phases[phase] < each]
    told = ", ".join(f"{phases[phase]} while {phase}" for phase in PHASES)
    yield judge("A9 total", short if not found else [], kills=kills, **phases, note=f"{kills} kills: {told}")


def _in_turns(ground: Ground, folder: Path, watch: Watch, stop: Callable[[Verb], object]) -> tuple[Ended, int]:
    """A training on windows, ended by ``stop`` when it says so; and the most bytes that windows took meanwhile."""
    given = ["--max_disk_gb", str(ROOM / 1e9), "--max_steps", "80", *EACH]
    verb = ground.start(ground.arguments("train", folder, *ground.collects, *given), before=watch.begin)
    most = 0
    while verb.sleep(0.001):
        most = max(most, _bytes_of_windows(folder))
        if stop(verb):
            verb.signal(signal.SIGKILL)
    return verb.wait(), most


def _at_random(ground: Ground, seconds: float) -> Callable[[Verb], bool]:
    until = time.monotonic() + ground.draw.uniform(0, seconds)
    return lambda verb: time.monotonic() > until


def _when_deleting(folder: Path) -> Callable[[Verb], bool]:
    """Look so often, for up to a second of its work, that a window on its way out is seen."""

    def seen(verb: Verb) -> bool:
        until = time.monotonic() + 0.1
        while time.monotonic() < until and verb.running():
            if _leaving(folder):
                return True
        return False

    return seen


def _windows(folder: Path) -> list[Path]:
    return list(folder.glob("windows/*/*/window-*"))


def _leaving(folder: Path) -> bool:
    return any(True for _ in folder.glob("windows/*/*/.window-*.part"))


def _bytes_of_windows(folder: Path) -> int:
    """Of all files in windows, those half written or half deleted included."""
    total = 0
    for above, _, names in os.walk(folder / "windows"):  # which bears what vanishes under it
        for name in names:
            with suppress(FileNotFoundError):
                total += Path(above, name).stat().st_size if "window-" in above else 0
    return total


def _phase(folder: Path) -> str:
    """What a run was at when it was killed, by what it left."""
    if _leaving(folder):
        return "deleting"
    found = _windows(folder)
    complete = found and all((corpus / "manifest.json").exists() for window in found for corpus in window.iterdir())
    return "training" if complete else "collecting"
