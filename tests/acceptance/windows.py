"""Case A9: collecting and training take turns over windows of shards, and are killed in each of their phases."""

import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from sae_forge.data.manifest import MANIFEST
from sae_forge.data.windows import WindowPlan
from tests.acceptance.harness import (
    EACH,
    ROOM,
    TRIES,
    Ended,
    Ground,
    Result,
    Stamps,
    Verb,
    Watch,
    differences,
    judge,
    require_whole_checkpoints,
    stamps,
)

PHASES, ELSEWHERE = ("collecting", "training", "deleting"), "elsewhere"


def killed_at_random(ground: Ground) -> Iterator[Result]:
    """20 SIGKILLs of training on windows, some in each phase: the same bytes and rows, and never more disk than given.

    A third of the first lives end as soon as a window is being deleted, too short a moment to be met by chance.
    """
    wanted, each = (3, 0) if ground.smoke else (20, 3)
    reference, watch = ground.fresh(), Watch(ground.root / "reference-windows")
    whole, most = _in_turns(ground, reference, watch, lambda verb: None)
    seconds, kills, phases, lives = whole.seconds, 0, Counter(), 0
    found = [*whole.flaws(0), *([] if 0 < most <= ROOM else [f"{most} B of shards where {ROOM} were given"])]
    yield judge("A9 undisturbed", found, most=most, given=ROOM)
    while (
        not found
        and (kills < wanted or min(phases[phase] for phase in PHASES) < each)
        and lives < 4 * max(wanted, TRIES)
    ):
        folder, ended = ground.fresh(), None
        mine, counted = Watch(ground.root / f"{folder.name}.ledger"), Counter(phases)
        most = 0
        while ended is None or ended.code == 128 + signal.SIGKILL:
            lives += 1
            aimed = lives % 3 == 0 and phases["deleting"] < 2 * each
            before = _Before(folder, mine)
            stop = _when_deleting(before) if aimed else _at_random(ground, seconds)
            ended, used = _in_turns(ground, folder, mine, stop)
            most = max(most, used)
            if ended.code == 128 + signal.SIGKILL:
                kills, phases = kills + 1, phases + Counter([before.phase()])
                require_whole_checkpoints(folder)
        flaws = [*ended.flaws(0), *differences(folder, reference), *mine.unlike(watch)]
        flaws += [] if most <= ROOM else [f"{most} B of shards where {ROOM} were given"]
        yield judge(f"A9 {folder.name}", flaws, mechanism="SIGKILL from outside", most=most, **(phases - counted))
        shutil.rmtree(folder)
    short = [f"only {phases[phase]} kills while {phase}" for phase in PHASES if phases[phase] < each]
    told = ", ".join([*(f"{phases[phase]} while {phase}" for phase in PHASES), f"{phases[ELSEWHERE]} {ELSEWHERE}"])
    yield judge("A9 total", short if not found else [], kills=kills, **phases, note=f"{kills} kills: {told}")


def _in_turns(ground: Ground, folder: Path, watch: Watch, stop: Callable[[Verb], object]) -> tuple[Ended, int]:
    """A training on windows, ended by ``stop`` when it says so; and the most bytes that windows took meanwhile."""
    verb = ground.start(ground.in_turns(folder, "--max_steps", "80", *EACH), before=watch.begin)
    most = 0
    while verb.sleep(0.001):
        most = max(most, _bytes_of_windows(folder))
        if stop(verb):
            verb.signal(signal.SIGKILL)
    return verb.wait(), most


def _at_random(ground: Ground, seconds: float) -> Callable[[Verb], bool]:
    until = time.monotonic() + ground.draw.uniform(0, seconds)
    return lambda verb: time.monotonic() > until


def _when_deleting(before: "_Before") -> Callable[[Verb], bool]:
    """Look so often that a window on its way out is seen."""

    def seen(verb: Verb) -> bool:
        until = time.monotonic() + 0.1
        while time.monotonic() < until and verb.running():
            if before.new_leaving():
                return True
        return False

    return seen


def _bytes_of_windows(folder: Path) -> int:
    """Of all files in windows, those half written or half deleted included."""
    total = 0
    for above, _, names in os.walk(folder / "windows"):  # which bears what vanishes under it
        for name in names:
            with suppress(FileNotFoundError):
                total += Path(above, name).stat().st_size if "window-" in above else 0
    return total


class _Before:
    """What a life of a run finds, by which its own work is told from that of the lives before it."""

    def __init__(self, folder: Path, watch: Watch) -> None:
        self._folder, self._watch = folder, watch
        self._leaving, self._filled, self._steps = _leaving(folder), _filled(folder), watch.taken()

    def new_leaving(self) -> bool:
        """Whether this life has begun to delete a window, and not ended."""
        return bool(_leaving(self._folder) - self._leaving)

    def phase(self) -> str:
        """What this life was at when it was killed, by what it left."""
        if self.new_leaving():
            return "deleting"
        windows = list(self._folder.glob("windows/*/*/window-*"))
        if not all(map(_complete, windows)):
            return "collecting" if _filled(self._folder) - self._filled else ELSEWHERE
        return "training" if windows and self._watch.taken() > self._steps else ELSEWHERE


def _leaving(folder: Path) -> Stamps:
    return stamps(folder.glob("windows/*/*/.window-*.part"))


def _filled(folder: Path) -> Stamps:
    """Folders of windows and all that is in them."""
    return stamps([*folder.glob("windows/*/*/window-*"), *folder.glob("windows/*/*/window-*/**/*")])


def _complete(window: Path) -> bool:
    """Whether all corpora that the plan gives to a window are collected."""
    cuts, number = WindowPlan.read(window.parent / "plan.json").cuts, int(window.name.removeprefix("window-"))
    return all((window / name / MANIFEST).exists() for name, cut in cuts.items() if cut.rows[number])
