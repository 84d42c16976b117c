"""Group E: several processes come to what one comes to, and when one of them is lost none of the others waits for it.

Ranks are verbs with a launcher's environment, over gloo; one case goes through torchrun itself.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tests.acceptance.harness import EVERY, ROOT, STEPS, Ended, Ground, Kind, Result, Verb, differences, judge

LONG = 100
"""Steps of the runs whose arithmetic is compared."""
SOON = 60.0
"""Seconds in which every rank must be gone when one is lost."""
GONE, KILLED = 6, 128 + signal.SIGKILL


def kinds(ground: Ground) -> dict[str, Kind]:
    """The cases of the group, by kind."""
    found: dict[str, Kind] = {
        name: partial(work, ground)
        for name, work in {
            "E1": equal_to_parts, "E2": near_the_whole, "E3": sharded, "E6": told_apart, "E9": killed_in_a_save,
            "E10": collected,
        }.items()
    }  # fmt: skip
    for who in (0, 1):
        found[f"E4 rank {who}"] = partial(killed, ground, who)
        if not ground.smoke:
            found[f"E4.windows rank {who}"] = partial(killed_on_windows, ground, who)
        if who or not ground.smoke:
            found[f"E5 rank {who}"] = partial(frozen, ground, who)
            found[f"E7 rank {who}"] = partial(never_comes, ground, who)
    if not ground.smoke:
        found["E8.windows 1→2→1"] = partial(other_sizes, ground, "E8.windows 1→2→1", False, (1, 2, 1), windows=True)
    for spread in (False, True):
        for worlds in ((1, 2, 1), (2, 4, 2)):
            name = f"E8 {'sharded ' if spread else ''}{'→'.join(map(str, worlds))}"
            if not ground.smoke or name == "E8 1→2→1":
                found[name] = partial(other_sizes, ground, name, spread, worlds)
    return found


# ---- ranks --------------------------------------------------------------------------------------


def start(
    ground: Ground,
    world: int,
    arguments: Callable[[int], Sequence[str]] | Sequence[str],
    before: Callable[[int], object] = lambda rank: None,
    absent: tuple[int, ...] = (),
) -> list[Verb]:
    """A verb on every rank but those that are absent; ``before`` is called in each child."""
    port, verbs = _free_port(), []
    for rank in range(world):

        def join(rank: int = rank) -> None:
            numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": port}
            os.environ.update({"MASTER_ADDR": "127.0.0.1", **{name: str(number) for name, number in numbers.items()}})
            before(rank)

        if rank not in absent:
            verbs.append(ground.start(arguments(rank) if callable(arguments) else arguments, before=join))
    return verbs


def _free_port() -> int:
    """A port nobody listens on, below those that the system gives to connections, which are many here."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as held, suppress(OSError):
            held.bind(("127.0.0.1", port))
            return port


def finish(
    ground: Ground, world: int, arguments: Any, before: Callable[[int], object] = lambda rank: None
) -> list[str]:
    """Flaws of ranks that must all end well."""
    ended = [verb.wait() for verb in start(ground, world, arguments, before)]
    return [flaw for one in ended for flaw in one.flaws(0)]


def train(ground: Ground, folder: Path, *more: str) -> list[str]:
    """The command line of a training run; later flags win."""
    return ground.arguments("train", folder, *more)


def long(ground: Ground, folder: Path, *more: str) -> list[str]:
    return train(ground, folder, "--max_steps", str(LONG), "--checkpoint_every", "50", *more)


def apart(one: Path, other: Path) -> float:
    """Relative distance of all weights of the two runs' SAEs."""
    from sae_forge.sae.store import load_sae

    found = []
    for folder in (one, other):
        sae, _ = load_sae(next(path.parent for path in folder.glob("saes/*/*/cfg.json")))
        found.append(torch.cat([weight.flatten() for weight in sae.parameters()]))
    return float((found[0] - found[1]).norm() / found[0].norm())


def at_step(step: int, signum: int, who: int) -> Callable[[int], None]:
    """What makes rank ``who`` signal itself when it has taken this step."""

    def prepare(rank: int) -> None:
        from sae_forge.training import trainer

        taken = trainer.Stepper.__call__

        def watched(self: Any, batch: torch.Tensor) -> torch.Tensor:
            figures = taken(self, batch)
            if rank == who and self._state.step == step:
                os.kill(os.getpid(), signum)
            return figures

        trainer.Stepper.__call__ = watched

    return prepare


def lost(ended: list[Ended], who: int, seconds: float, *words: str) -> list[str]:
    """In what the others did not all end soon, naming the one that is lost."""
    found = [] if seconds < SOON else [f"it took {seconds:.0f} s"]
    for rank, one in enumerate(ended):
        if rank != who:
            found += one.flaws(GONE, f"rank {who}", *words)
    return found if ended[who].code == KILLED else [*found, f"rank {who} ended with {ended[who].code}"]


# ---- E1, E2, E3 ---------------------------------------------------------------------------------


def equal_to_parts(ground: Ground) -> Iterator[Result]:
    """Two processes against one that takes each batch in two parts, 100 steps, every byte of the run folder."""
    alone, two = ground.fresh(ground.collected), ground.fresh(ground.collected)
    ground.finish(long(ground, alone, "--accumulation", "2"))
    flaws = finish(ground, 2, long(ground, two)) + differences(two, alone)
    yield judge("E1", flaws, steps=LONG)
    if not ground.smoke:
        launched = ground.fresh(ground.collected)
        flaws = _torchrun(ground, long(ground, launched)) + differences(launched, alone)
        yield judge("E1.torchrun", flaws, mechanism="torchrun --nproc_per_node 2 -m sae_forge")


def _torchrun(ground: Ground, arguments: list[str]) -> list[str]:
    import subprocess

    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, "-m", "sae_forge", *arguments], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    return [] if done.returncode == 0 else [f"exit {done.returncode}: {done.stderr[-300:]}"]


def near_the_whole(ground: Ground) -> Iterator[Result]:
    """Four processes against one with the batch whole."""
    alone, four = ground.fresh(ground.collected), ground.fresh(ground.collected)
    ground.finish(long(ground, alone))
    flaws = finish(ground, 4, long(ground, four))
    distance = float("inf") if flaws else apart(alone, four)
    yield judge("E2", flaws + ([] if distance <= 5e-3 else [f"rel-L2 {distance:.1e}"]), distance=distance)


def sharded(ground: Ground) -> Iterator[Result]:
    """Latents spread over two and four processes against one, and again."""
    alone = ground.fresh(ground.collected)
    ground.finish(long(ground, alone))
    for world in (2,) if ground.smoke else (2, 4):
        spread, again = ground.fresh(ground.collected), ground.fresh(ground.collected)
        flaws = [f for one in (spread, again) for f in finish(ground, world, long(ground, one, "--shard_latents"))]
        flaws += differences(again, spread)
        distance = float("inf") if flaws else apart(alone, spread)
        flaws += [] if distance <= 1e-5 else [f"rel-L2 {distance:.1e}"]
        yield judge(f"E3 {world} ranks", flaws, distance=distance)


# ---- E4, E5 -------------------------------------------------------------------------------------


def _two_parts(ground: Ground) -> Path:
    """What two ranks come to when nothing happens."""
    folder = ground.fresh(ground.collected)
    ground.finish(train(ground, folder, "--accumulation", "2"))
    return folder


def killed(ground: Ground, who: int) -> Iterator[Result]:
    """SIGKILL to one of two ranks at ten steps: all end soon, the lost one is named, and a resume is identical."""
    reference = _two_parts(ground)
    for step in (7,) if ground.smoke else range(2, STEPS, 5):
        folder = ground.fresh(ground.collected)
        began = time.monotonic()
        ended = [verb.wait() for verb in start(ground, 2, train(ground, folder), at_step(step, signal.SIGKILL, who))]
        seconds = time.monotonic() - began
        flaws = lost(ended, who, seconds, f"step {step}") if who else lost(ended, who, seconds)
        flaws += finish(ground, 2, train(ground, folder)) + differences(folder, reference)
        said = ended[1 - who].error
        yield judge(f"E4 rank {who} step {step}", flaws, mechanism="SIGKILL", said=said, took=round(seconds, 1))
        shutil.rmtree(folder)


def killed_on_windows(ground: Ground, who: int) -> Iterator[Result]:
    """SIGKILL to one of two ranks at two steps and while they collect a window: as when there are no windows."""
    reference = ground.fresh()
    ground.finish(ground.in_turns(reference, "--accumulation", "2"))
    moments = {f"step {step}": at_step(step, signal.SIGKILL, who) for step in (7, 23)}
    for moment, before in {**moments, "window 2": _while_collecting(who)}.items():
        folder = ground.fresh()
        began = time.monotonic()
        ended = [verb.wait() for verb in start(ground, 2, ground.in_turns(folder), before)]
        flaws = lost(ended, who, time.monotonic() - began, *([moment] if who else ()))
        flaws += finish(ground, 2, ground.in_turns(folder)) + differences(folder, reference)
        yield judge(f"E4.windows rank {who} {moment}", flaws, mechanism="SIGKILL", said=ended[1 - who].error)
        shutil.rmtree(folder)


def _while_collecting(who: int) -> Callable[[int], None]:
    """What makes rank ``who`` kill itself after the first forward batch of the second window."""

    def prepare(rank: int) -> None:
        from sae_forge.pipeline import streaming

        fill = streaming.fill

        def dying(batches: Iterator[Any]) -> Iterator[Any]:
            yield next(batches)
            os.kill(os.getpid(), signal.SIGKILL)

        def watched(config: Any, lm: Any, batches: Iterator[Any], writers: dict[Any, Any], task: Any) -> None:
            later = any(writer.next_batch for writer in writers.values())
            fill(config, lm, dying(batches) if later and rank == who else batches, writers, task)

        streaming.fill = watched

    return prepare


def frozen(ground: Ground, who: int) -> Iterator[Result]:
    """SIGSTOP to one of two ranks: all end in 60 s at the default limit, and the one that stopped is named."""
    reference = _two_parts(ground)
    limit = ("--dist_timeout", "3") if ground.smoke else ("--dist_timeout", "45")
    folder = ground.fresh(ground.collected)
    began = time.monotonic()
    verbs = start(ground, 2, train(ground, folder, *limit), at_step(7, signal.SIGSTOP, who))
    ended = [verb.wait() for verb in verbs]
    seconds = time.monotonic() - began
    flaws = lost(ended, who, seconds, "silent", "step")
    flaws += finish(ground, 2, train(ground, folder)) + differences(folder, reference)
    yield judge(f"E5 rank {who}", flaws, mechanism="SIGSTOP", said=ended[1 - who].error, took=round(seconds, 1))


# ---- E6, E7 -------------------------------------------------------------------------------------


def told_apart(ground: Ground) -> Iterator[Result]:
    """Other settings, and other shards, on one rank: both refuse before the first step, with both values."""
    folder = ground.fresh(ground.collected)
    rates = [("--lr", "0.01"), ("--lr", "0.02")]
    yield _refused(ground, "E6 settings", lambda rank: train(ground, folder, *rates[rank]), "0.01", "0.02", "lr")
    fewer = ground.fresh(ground.collected)
    shutil.rmtree(next(path for path in (fewer / "shards").iterdir() if path.name.startswith("retain")))
    (fewer / "shards" / "corpora.json").unlink()
    folders = [ground.fresh(ground.collected), fewer]
    yield _refused(ground, "E6 batches", lambda rank: train(ground, folders[rank]), "on rank 0", "on rank 1")


def _refused(ground: Ground, case: str, arguments: Callable[[int], Sequence[str]], *words: str) -> Result:
    began = time.monotonic()
    ended = [verb.wait() for verb in start(ground, 2, arguments)]
    seconds = time.monotonic() - began
    flaws = [flaw for one in ended for flaw in one.flaws(2, *words)] + ([] if seconds < 10 else [f"{seconds:.0f} s"])
    return judge(case, flaws, said=ended[0].error, took=round(seconds, 1))


def never_comes(ground: Ground, absent: int) -> Iterator[Result]:
    """A rank that was never started, the first or another."""
    limit = ("--dist_timeout", "3") if ground.smoke else ()
    began = time.monotonic()
    folder = ground.fresh(ground.collected)
    ended = [verb.wait() for verb in start(ground, 2, train(ground, folder, *limit), absent=(absent,))]
    seconds = time.monotonic() - began
    flaws = ended[0].flaws(GONE, f"rank {absent}") + ([] if seconds < SOON else [f"{seconds:.0f} s"])
    yield judge(f"E7 rank {absent}", flaws, said=ended[0].error, took=round(seconds, 1))


# ---- E8 -----------------------------------------------------------------------------------------


class Ledger:
    """The rows of every step, whichever ranks took them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir()

    def watch(self, stop_after: int | None) -> Callable[[int], None]:
        """What makes each rank note its rows, and all stop after a step."""

        def prepare(rank: int) -> None:
            from sae_forge.training import trainer

            taken = trainer.Stepper.__call__

            def noted(self: Any, batch: torch.Tensor) -> torch.Tensor:
                rows = [hashlib.sha256(row.contiguous().numpy().tobytes()).hexdigest()[:16] for row in batch]
                (folder / f"{self._state.step}-{rank}").write_text(json.dumps(rows))
                if rank == 0 and self._state.step + 1 == stop_after:
                    signal.raise_signal(signal.SIGINT)
                return taken(self, batch)

            trainer.Stepper.__call__ = noted

        folder = self._folder
        return prepare

    def rows(self, steps: int, shared: bool) -> list[list[str]]:
        """Rows of each step in the order of the ranks, or of the first rank where all see the same."""
        found = []
        for step in range(steps):
            parts = sorted(self._folder.glob(f"{step}-*"), key=lambda path: int(path.name.partition("-")[2]))
            given = [json.loads(path.read_text()) for path in parts]
            found.append(given[0] if shared else [row for part in given for row in part])
        return found


def other_sizes(
    ground: Ground, name: str, spread: bool, worlds: tuple[int, ...], *, windows: bool = False
) -> Iterator[Result]:
    """Stopped and gone on at another number of ranks, twice: every step has the same rows in the same order."""
    alone, ledger = Ledger(ground.fresh()), Ledger(ground.fresh())
    given, command = (None, ground.in_turns) if windows else (ground.collected, partial(train, ground))
    reference, folder = ground.fresh(given), ground.fresh(given)
    found = finish(ground, 1, command(reference), alone.watch(None))
    arguments = command(folder, *(["--shard_latents"] if spread else []))
    for world, stop in zip(worlds, (13, 29, None), strict=True):
        ended = [verb.wait() for verb in start(ground, world, arguments, ledger.watch(stop))]
        found += [f"exit {one.code}: {one.output[-200:]}" for one in ended if one.code != (0 if stop is None else 130)]
    if not found and ledger.rows(STEPS, spread) != alone.rows(STEPS, shared=False):
        found.append("other rows, or in another order")
    distance = float("inf") if found else apart(reference, folder)
    found += [] if distance <= (1e-5 if spread else 5e-3) else [f"rel-L2 {distance:.1e}"]
    yield judge(name, found, distance=distance)


# ---- E9, E10 ------------------------------------------------------------------------------------


def killed_in_a_save(ground: Ground) -> Iterator[Result]:
    """Rank 1 dies while it writes its part of a checkpoint: the one before it is the latest, and the run goes on."""
    folder, whole = ground.fresh(ground.collected), ground.fresh(ground.collected)

    def dies(rank: int) -> None:
        from sae_forge.training import state

        written = state._write_verified

        def write(path: Path, tensors: Any) -> str:
            if rank == 1 and f"step-{3 * EVERY:06d}" in str(path) and path.name.startswith("optim"):
                path.write_bytes(b"half")
                os.kill(os.getpid(), signal.SIGKILL)
            return written(path, tensors)

        state._write_verified = write

    arguments = [train(ground, one, "--shard_latents") for one in (folder, whole)]
    began = time.monotonic()
    flaws = lost([verb.wait() for verb in start(ground, 2, arguments[0], dies)], 1, time.monotonic() - began)
    standing = sorted(path.name for path in folder.glob("saes/*/*/checkpoints/step-*"))
    flaws += [] if standing == [f"step-{n * EVERY:06d}" for n in (1, 2)] else [f"there are {standing}"]
    flaws += finish(ground, 2, arguments[0]) + finish(ground, 2, arguments[1]) + differences(folder, whole)
    yield judge("E9", flaws, mechanism="SIGKILL inside the write")


def collected(ground: Ground) -> Iterator[Result]:
    """Collected by several ranks, also after kills and at other sizes: the tree of one process."""
    for world in (2,) if ground.smoke else (2, 3, 4):
        folder = ground.fresh()
        flaws = finish(ground, world, ground.arguments("collect", folder)) + differences(folder, ground.collected)
        yield judge(f"E10 {world} ranks", flaws)
    folder = ground.fresh()
    for world, who, shards in ((2, 1, 2), (4, 0, 6), (3, 2, 9)):
        verbs = start(ground, world, ground.arguments("collect", folder))
        while all(verb.running() for verb in verbs) and len(list(folder.rglob("shard-*.json"))) < shards:
            time.sleep(0.0005)
        if verbs[who].running():
            verbs[who].signal(signal.SIGKILL)
        for verb in verbs:
            verb.wait()
    flaws = finish(ground, 1, ground.arguments("collect", folder)) + differences(folder, ground.collected)
    yield judge("E10 killed at 2, 4 and 3 ranks, finished by one", flaws, mechanism="SIGKILL from outside")
