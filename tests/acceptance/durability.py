"""Group A: killed, out of disk, or refused by it at any point, a run goes on and ends in the same bytes."""

import errno
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tests.acceptance import windows
from tests.acceptance.harness import (
    BRIEF,
    EACH,
    FEW,
    RENAMES,
    STEPS,
    TRIES,
    Call,
    Ended,
    Ground,
    Kind,
    Point,
    Result,
    Watch,
    arm,
    calls,
    cannot_inject,
    cannot_trace,
    differences,
    enter_own_mounts,
    fork,
    judge,
    leftovers,
    mount,
    points,
    require_whole_checkpoints,
    traced,
    tree,
)

AT_ONCE = 2.0
"""Seconds in which a second Ctrl-C has ended a process."""
SHORTLY = 0.01
"""Seconds within which it follows the first."""
STAGES: dict[str, tuple[Callable[[Ground], Path | None], Callable[[Ground], Path]]] = {
    "collect": (lambda ground: None, lambda ground: ground.collected),
    "train": (lambda ground: ground.collected, lambda ground: ground.trained),
    "features": (lambda ground: ground.trained, lambda ground: ground.selected),
    "report": (lambda ground: ground.selected, lambda ground: ground.reported),
}
"""Run folders before and after each verb that was never disturbed."""


def kinds(ground: Ground) -> dict[str, Kind]:
    """The cases of the group, by kind."""
    found: dict[str, Kind] = {
        "A1": partial(collect_killed_at_random, ground),
        "A1.int8": partial(collect_of_int8_killed, ground),
        "A1.spawned": partial(spawned, ground, "A1", "collect"),
        "A3": partial(order_of_calls, ground),
        "A4": partial(train_killed_at_random, ground),
        "A4.spawned": partial(spawned, ground, "A4", "train"),
        "A5": partial(resumed_from_every_step, ground),
        "A9": partial(windows.killed_at_random, ground),
    }
    for verb in ("collect", "train", "windows"):
        found[f"A2.{verb}"] = partial(killed_at_every_call, ground, verb)
        for number in (errno.EIO, errno.ENOSPC):
            found[f"A7.{verb} {errno.errorcode[number]}"] = partial(every_call_refused, ground, verb, number)
    for verb in ("collect", "train"):
        found[f"A2.{verb} by safetensors"] = partial(renames_by_safetensors, ground, verb, "A2", "signal=SIGKILL")
        for error in ("EIO", "ENOSPC"):
            kind = f"A7.{verb} {error} by safetensors"
            found[kind] = partial(renames_by_safetensors, ground, verb, "A7", f"error={error}")
        found[f"A8.{verb}"] = partial(signals, ground, verb)
    for verb in STAGES:
        found[f"A6.{verb}"] = partial(disk_full, ground, verb)
    return found


# ---- A1, A4: kills at random times --------------------------------------------------------------


def collect_killed_at_random(ground: Ground) -> Iterator[Result]:
    """50 SIGKILLs at times drawn uniformly over a run, at least 10 of them in the middle of a write."""
    yield from _collect_killed(ground, "A1", (4, 0) if ground.smoke else (50, 10))


def collect_of_int8_killed(ground: Ground) -> Iterator[Result]:
    """The same with rows stored as int8 and a scale: a few kills, some of them mid-write."""
    yield from _collect_killed(ground, "A1.int8", (1, 0) if ground.smoke else (10, 2), "--storage_dtype", "int8")


def _collect_killed(ground: Ground, case: str, wanted: tuple[int, int], *more: str) -> Iterator[Result]:
    """Three hook points a corpus, so that a part file stands for much of a run."""

    def arguments(folder: Path) -> list[str]:
        return ground.arguments("collect", folder, "--layer", "0,1,2", *more)

    def kill(folder: Path) -> tuple[int, int, Ended]:
        return _until_done(ground, arguments(folder), folder, seconds)

    reference = ground.fresh()
    ground.finish(arguments(reference))
    seconds = ground.finish(arguments(ground.fresh())).seconds
    yield from _kills(ground, case, *wanted, kill, lambda folder: _collected_flaws(folder, reference))


def train_killed_at_random(ground: Ground) -> Iterator[Result]:
    """20 SIGKILLs over runs of 50 steps, at least 4 of them while a checkpoint is being written."""
    reference = ground.trained
    wanted, in_a_write = (2, 0) if ground.smoke else (20, 4)
    watches: dict[Path, Watch] = {}

    def kill(folder: Path) -> tuple[int, int, Ended]:
        shutil.copytree(ground.collected, folder)
        watch = watches[folder] = Watch(ground.root / f"{folder.name}.ledger")
        return _until_done(
            ground, ground.arguments("train", folder, *EACH), folder, ground.train_seconds, before=watch.begin
        )

    def flaws(folder: Path) -> list[str]:
        return differences(folder, reference) + watches[folder].unlike(ground.watch)

    yield from _kills(ground, "A4", wanted, in_a_write, kill, flaws)


def _kills(
    ground: Ground,
    case: str,
    wanted: int,
    in_a_write: int,
    kill: Callable[[Path], tuple[int, int, Ended]],
    flaws: Callable[[Path], list[str]],
) -> Iterator[Result]:
    """Runs, each killed until it is done, until there were enough kills and enough of them mid-write."""
    kills = mid_write = 0
    while (kills < wanted or mid_write < in_a_write) and kills < 4 * wanted:
        folder = ground.fresh()
        here, writing, ended = kill(folder)
        kills, mid_write = kills + here, mid_write + writing
        found = [*ended.flaws(0), *flaws(folder)]
        if here or found:
            yield judge(f"{case} {folder.name}", found, mechanism="SIGKILL from outside", kills=here, mid_write=writing)
        shutil.rmtree(folder)
    short = [f"only {mid_write} of {kills} kills came in the middle of a write"] if mid_write < in_a_write else []
    note = f"{kills} kills, {mid_write} mid-write"
    yield judge(f"{case} total", short, kills=kills, mid_write=mid_write, note=note)


def _until_done(
    ground: Ground,
    arguments: list[str],
    folder: Path,
    seconds: float,
    before: Callable[[], object] = lambda: None,
) -> tuple[int, int, Ended]:
    """Start again and again, killed each time at a moment of the whole run's length, until it ends by itself."""
    kills = mid_write = 0
    for life in range(TRIES):
        earlier = leftovers(folder)
        verb = ground.start(arguments, before=before)
        if life < TRIES - 1 and verb.sleep(ground.draw.uniform(0, seconds)):
            verb.signal(signal.SIGKILL)
            ended = verb.wait()
            kills += 1
            mid_write += bool(leftovers(folder) - earlier)
            require_whole_checkpoints(folder)
        else:
            ended = verb.wait()
            break
    return kills, mid_write, ended


def spawned(ground: Ground, case: str, verb: str) -> Iterator[Result]:
    """A handful of kills of ``python -m sae_forge``, imports and all."""
    if ground.smoke:
        return
    folder, reference = ground.fresh(STAGES[verb][0](ground)), STAGES[verb][1](ground)
    whole = ground.spawn(ground.arguments(verb, folder)).wait()
    found, kills = [*whole.flaws(0), *differences(folder, reference)], 0
    folder = ground.fresh(STAGES[verb][0](ground))
    for _ in range(5):
        process = ground.spawn(ground.arguments(verb, folder))
        if process.sleep(ground.draw.uniform(0.5, 1.0) * whole.seconds):
            process.signal(signal.SIGKILL)
            kills += 1
        process.wait()
    ended = ground.spawn(ground.arguments(verb, folder)).wait()
    found += [*ended.flaws(0), *differences(folder, reference)]
    yield judge(f"{case}.spawned", found, mechanism="SIGKILL of python -m sae_forge", kills=kills)


def _collected_flaws(folder: Path, reference: Path) -> list[str]:
    """Differences, and the ledger of rows: every place of every text once, in order."""
    from sae_forge.data.shards import ShardReader, find_shards

    found = differences(folder, reference)
    for corpus in find_shards(reference):
        mine = folder / corpus.relative_to(reference)
        if not mine.exists():
            continue
        places = [_places(ShardReader(one)) for one in (mine, corpus)]
        lost, repeated = set(places[1]) - set(places[0]), len(places[0]) - len(set(places[0]))
        if lost or repeated or places[0] != places[1]:
            found.append(f"{mine.parent.name}: {len(lost)} rows lost, {repeated} repeated")
    return found


def _places(reader) -> list[tuple[int, int, int]]:
    blocks = [reader.read_origins(number) for number in range(reader.block_count)]
    return [
        place
        for block in blocks
        for place in zip(*(block[name].tolist() for name in ("seq_ids", "positions", "token_ids")), strict=True)
    ]


# ---- A2, A7: every call -------------------------------------------------------------------------


def killed_at_every_call(ground: Ground, verb: str) -> Iterator[Result]:
    """SIGKILL on entering each fsync, rename and write of a run."""
    if why := cannot_inject():
        yield Result(f"A2.{verb}", "skipped", why)
        return
    found_points, reference = _points(ground, verb)
    for point in _some(ground, found_points):
        folder = _begun(ground, verb)
        died = _at(ground, verb, folder, point)
        alive = f"exit {died.code} instead of death: {died.output[-200:]}"
        found = [] if died.code == 128 + signal.SIGKILL else [alive]
        found += _resumes(ground, verb, folder, reference)
        yield judge(f"A2.{verb} {point}", found, mechanism="preloaded faults.c, SIGKILL on entry")
        shutil.rmtree(folder)


def every_call_refused(ground: Ground, verb: str, number: int) -> Iterator[Result]:
    """An error from each write, fsync and rename in the run folder: it is said in one line, a resume is identical."""
    kind = f"A7.{verb} {errno.errorcode[number]}"
    if why := cannot_inject():
        yield Result(kind, "skipped", why)
        return
    found_points, reference = _points(ground, verb)
    for point in _some(ground, found_points):
        folder = _begun(ground, verb)
        refused = _at(ground, verb, folder, point, number)
        found = ["it ended with 0 although a call failed"] if refused.code == 0 else refused.flaws(4)
        found += _resumes(ground, verb, folder, reference)
        yield judge(f"{kind} {point}", found, mechanism="preloaded faults.c", said=refused.error[:200])
        shutil.rmtree(folder)


def renames_by_safetensors(ground: Ground, verb: str, case: str, what: str) -> Iterator[Result]:
    """The same for the renames by which safetensors makes our part files: they are no calls of the C library."""
    kind = f"{case}.{verb} {what.removeprefix('signal=').removeprefix('error=')} rename by safetensors"
    if why := cannot_inject() or cannot_trace():
        yield Result(kind, "skipped", why)
        return
    found_points, reference = _points(ground, verb)
    written = [point for point in found_points if point.name == "fsync" and ".safetensors" in point.path]
    for point in _some(ground, written):
        folder, log = _begun(ground, verb), ground.root / "inject.strace"
        verb_ = ground.start(_brief(ground, verb, folder), stopped=True)
        inject = ("-P", str(folder / point.path), "-e", f"trace={RENAMES}", "-e", f"inject={RENAMES}:{what}:when=1")
        ended = traced(verb_, *inject, log=log)
        if case == "A2":
            found = [] if ended.code == 128 + signal.SIGKILL else [f"exit {ended.code}: {ended.output[-200:]}"]
        else:
            found = ended.flaws(4)
        found += _resumes(ground, verb, folder, reference)
        yield judge(f"{kind} {point.path}", found, mechanism="strace, injected", said=ended.error[:200])
        shutil.rmtree(folder)


def _some(ground: Ground, found: list[Point]) -> list[Point]:
    return ground.draw.sample(found, min(3, len(found))) if ground.smoke else found


def _begun(ground: Ground, verb: str) -> Path:
    """A run folder in which this verb has nothing done yet."""
    return ground.fresh(STAGES[verb][0](ground) if verb in STAGES else None)


def _brief(ground: Ground, verb: str, folder: Path) -> list[str]:
    """A command with few shards, steps and checkpoints, for where each call is a case."""
    if verb == "windows":
        return ground.arguments("train", folder, *ground.collects, "--max_disk_gb", "0.00008", *BRIEF)
    return ground.arguments(verb, folder, *(BRIEF if verb == "train" else FEW))


def _at(ground: Ground, verb: str, folder: Path, point: Point, error: int = 0) -> Ended:
    return ground.start(_brief(ground, verb, folder), before=lambda: arm(folder, point=point, error=error)).wait()


def _resumes(ground: Ground, verb: str, folder: Path, reference: Path) -> list[str]:
    """Flaws of the same command run again."""
    ended = ground.start(_brief(ground, verb, folder)).wait()
    return ended.flaws(0) + differences(folder, reference)


def _points(ground: Ground, verb: str) -> tuple[list[Point], Path]:
    """Every call of an undisturbed run that can be made its last; and what that run came to."""
    folder = _begun(ground, verb)
    log = ground.root / f"{folder.name}.points"
    ground.finish(_brief(ground, verb, folder), before=lambda: arm(folder, log=log))
    return points(log, folder), folder


def _log_folder(ground: Ground, verb: str) -> Path:
    return ground.root / f"logged-{verb}"


def _log(ground: Ground, verb: str) -> list[Call]:
    """The calls of an undisturbed run."""
    folder, log = _log_folder(ground, verb), ground.root / f"{verb}.strace"
    if verb == "train":
        shutil.copytree(ground.collected, folder)
    watched = "trace=mkdir,mkdirat,write,pwrite64,writev,ftruncate,fsync,fdatasync," + RENAMES
    ended = traced(ground.start(_brief(ground, verb, folder), stopped=True), "-e", watched, log=log)
    assert ended.code == 0, ended.output
    return calls(log)


# ---- A3: what is durable when -------------------------------------------------------------------


def order_of_calls(ground: Ground) -> Iterator[Result]:
    """Each published name: its writes, its fsync, its rename, the fsync of its folder; and no name in another way."""
    if why := cannot_trace():
        yield Result("A3", "skipped", why)
        return
    for verb in ("collect", "train", "windows"):
        log, run = _log(ground, verb), str(_log_folder(ground, verb))
        flaws, published = order_flaws(log, run)
        there = {str(path.relative_to(run)) for path in Path(run).rglob("*") if path.is_file()}
        if verb == "train":
            there -= set(tree(ground.collected))
        flaws += [
            f"{name} has its final name in another way"
            for name in sorted(there)
            if name not in published and not name.startswith("logs/") and Path(name).name != ".lock"
        ]
        yield judge(f"A3.{verb}", flaws, mechanism="strace log", published=len(published))


def order_flaws(log: list[Call], run: str) -> tuple[list[str], set[str]]:
    """Violations of the order, and every path below ``run`` that came by a rename; a folder counts for its files."""
    dirty: dict[str, bool] = {}  # path → written since its last fsync
    waiting: dict[str, str] = {}  # folder → a name in it that is not durable yet
    flaws: list[str] = []
    published: set[str] = set()
    for call in log:
        if call.result is None or call.result < 0:
            continue
        if call.name in ("write", "pwrite64", "writev", "ftruncate") and call.file.startswith(run):
            dirty[call.file] = True
            if _inside(call.file, run) in published and "/logs/" not in call.file:
                flaws.append(f"{call.file} is written after it has its final name")
        elif call.name in ("fsync", "fdatasync"):
            dirty[call.file] = False
            waiting.pop(call.file, None)
        elif call.name in ("mkdir", "mkdirat") and _absolute(call).startswith(run):
            waiting[str(Path(_absolute(call)).parent)] = _absolute(call)
        elif call.name in RENAMES.split(","):
            source, target = call.paths[0], call.paths[-1]
            if not target.startswith(run):
                continue
            moved = {path: dirty.pop(path) for path in list(dirty) if path == source or path.startswith(f"{source}/")}
            dirty |= {target + path.removeprefix(source): state for path, state in moved.items()}
            if any(name.startswith(".") for name in _inside(target, run).split("/")):  # still a part, or in one
                continue
            flaws += [f"{path} is renamed before it is synced" for path, state in moved.items() if state]
            published |= {_inside(target + path.removeprefix(source), run) for path in moved}
            folder = str(Path(target).parent)
            if waiting.get(folder) not in (None, source, target):
                flaws.append(f"{waiting[folder]} is not durable when {target} appears")
            waiting[folder] = target
    flaws += [f"the folder of {name} is never synced" for name in waiting.values() if "/logs" not in name]
    return flaws, published


def _absolute(call: Call) -> str:
    return call.paths[0]


def _inside(path: str, run: str) -> str:
    return path.removeprefix(run).lstrip("/")


# ---- A5 -----------------------------------------------------------------------------------------


def resumed_from_every_step(ground: Ground) -> Iterator[Result]:
    """From the checkpoint of each step of a run; and from some of them, killed once more on the way."""
    reference, expected = ground.trained, ground.watch.checkpoints()
    steps, sae = sorted(expected), next(reference.glob("saes/*/*")).relative_to(reference)
    yield judge("A5 a checkpoint a step", [] if len(steps) == STEPS else [f"{len(steps)} checkpoints of {STEPS} steps"])
    for number, step in enumerate(ground.draw.sample(steps, 2) if ground.smoke else steps):
        folder = ground.fresh(ground.collected)
        (folder / sae).mkdir(parents=True)
        shutil.copy(reference / sae / "config.json", folder / sae)
        shutil.copytree(ground.store / step, folder / sae / "checkpoints" / step)
        done, arguments, kills = int(step.removeprefix("step-")), ground.arguments("train", folder, *EACH), 0
        ledger = ground.root / f"{folder.name}.ledger"
        again = Watch(ledger)
        if number % 5 == 0 and done < STEPS:
            dying = Watch(ledger, stop_at=ground.draw.randrange(done, STEPS))
            kills = int(ground.start(arguments, before=dying.begin).wait().code == 128 + signal.SIGKILL)
        last = ground.start(arguments, before=again.begin).wait()
        mine = again.checkpoints()
        found = last.flaws(0) + differences(folder, reference)
        found += [f"{name} has other bytes" for name in mine if mine[name] != expected[name]][:3]
        found += [] if len(mine) == STEPS - done else [f"{len(mine)} checkpoints written, not the {STEPS - done} left"]
        yield judge(f"A5 {step}", found, kills=kills)
        shutil.rmtree(folder)


# ---- A6 -----------------------------------------------------------------------------------------


def disk_full(ground: Ground, verb: str) -> Iterator[Result]:
    """A disk of 10 sizes below what a run needs: a refusal with numbers, nothing half-written, then the same bytes."""
    shares = (0.5,) if ground.smoke else tuple(0.3 + 0.65 * step / 9 for step in range(10))
    for made in STAGES[verb]:
        made(ground)  # out here, where there is room
    lines = ground.root / f"disk-{verb}.jsonl"

    def work() -> None:
        enter_own_mounts()
        need = _need(ground, verb)
        for share in shares:
            with lines.open("a") as out:
                out.write(json.dumps(_on_small_disk(ground, verb, need, share).to_json()) + "\n")

    ended = fork(work, ground.root / f"disk-{verb}.txt").wait()
    if ended.code and not lines.exists():
        reason = ended.output.strip().splitlines()[-1][:200]
        yield Result(f"A6.{verb}", "skipped", f"no mount of a small disk here: {reason}")
        return
    for line in lines.read_text().splitlines():
        record = json.loads(line)
        yield Result(**{name: record.pop(name) for name in ("case", "result", "reason")}, facts=record)
    if ended.code:
        yield Result(f"A6.{verb}", "failed", f"the protocol itself stopped: {ended.output[-300:]}")


def _on_small_disk(ground: Ground, verb: str, need: int, share: float) -> Result:
    """One command on a disk with room for this share of what it takes at its most."""
    before, after = STAGES[verb]
    given = _taken(before(ground))
    disk, folder = _disk(ground, verb, given + int(share * need))
    ended = ground.start(ground.arguments(verb, folder)).wait()
    found = ended.flaws(4, str(folder)) if ended.code else []
    if ended.code and folder.exists():
        found += [f"half a file: {name}" for name in _damaged(folder)]
    mount(disk, 4 * (given + need), again=True)
    again = ground.start(ground.arguments(verb, folder)).wait()
    found += again.flaws(0) + differences(folder, after(ground))
    subprocess.run(["umount", str(disk)], check=False)
    facts = {"mechanism": "tmpfs in a user namespace", "fitted": ended.code == 0, "said": ended.error[:300]}
    return judge(f"A6.{verb} {share:.2f}", found, **facts)


def _disk(ground: Ground, verb: str, size: int) -> tuple[Path, Path]:
    """A mounted disk, and the run folder on it in which this verb has nothing done yet."""
    disk = ground.fresh()
    disk.mkdir()
    mount(disk, size // 4096 * 4096)
    folder = disk / "run"
    if before := STAGES[verb][0](ground):
        shutil.copytree(before, folder)
    return disk, folder


def _need(ground: Ground, verb: str) -> int:
    """Bytes that a command takes of a disk at its most, beyond what is there before; watched every millisecond."""
    disk, folder = _disk(ground, verb, 2**30)
    before = most = _in_use(disk)
    running = ground.start(ground.arguments(verb, folder))
    while running.sleep(0.001):
        most = max(most, _in_use(disk))
    assert running.wait().code == 0
    subprocess.run(["umount", str(disk)], check=False)
    return most - before


def _in_use(disk: Path) -> int:
    found = os.statvfs(disk)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def _taken(folder: Path | None) -> int:
    """Bytes of a tree on a disk, in whole pages."""
    found = folder.rglob("*") if folder else ()
    return sum(-(-path.lstat().st_size // 4096) * 4096 for path in found if path.is_file())


def _damaged(folder: Path) -> list[str]:
    """Files under a final name that are not whole."""
    from sae_forge.pipeline.verify import verify
    from sae_forge.store.runs import Run

    return [entry["file"] for entry in verify(Run(folder)).metrics["damaged"]] if any(folder.iterdir()) else []


# ---- A8 -----------------------------------------------------------------------------------------


def signals(ground: Ground, verb: str) -> Iterator[Result]:
    """SIGTERM at 10 points, SIGINT twice at 3: out in 30 seconds with the signal's code, then the same bytes."""
    ground.collected, ground.trained  # noqa: B018 (their times are needed)
    length = ground.train_seconds if verb == "train" else ground.collect_seconds
    terms, interrupts = (1, 1) if ground.smoke else (10, 3)
    asked = [(signal.SIGTERM, 1)] * terms + [(signal.SIGINT, 2)] * interrupts
    stopped = both = 0
    for number, (signum, times) in enumerate(asked):
        share, sent = ground.draw.uniform(0.2, 0.9), 0
        while not sent:
            folder = _begun(ground, verb)
            watch = Watch(ground.root / f"{folder.name}.ledger")
            arguments = ground.arguments(verb, folder, *(EACH if verb == "train" else ()))
            process = ground.start(arguments, before=watch.begin)
            waits = [share * length, ground.draw.uniform(0, SHORTLY)]
            for wait in waits[:times]:  # the second while the first is being obeyed
                if process.sleep(wait):
                    process.signal(signum)
                    sent += 1
            if not sent:  # it ended before: the machine is less busy than when its length was taken
                length = process.wait().seconds
        began = time.monotonic()
        found = ["it went on for 30 seconds"] if process.sleep(30.0) else []
        took = time.monotonic() - began
        ended = process.wait()
        if sent and ended.code not in (128 + signum, 0):
            found.append(f"exit {ended.code} after {signum.name}: {ended.output[-300:]}")
        stopped, both = stopped + (ended.code == 128 + signum), both + (sent == 2)
        if sent > 1 and took > AT_ONCE:
            found.append(f"it took {took:.1f} s after the second {signum.name}")
        again = ground.start(arguments, before=watch.begin).wait()
        found += again.flaws(0) + differences(folder, STAGES[verb][1](ground))
        if verb == "train" and signum == signal.SIGTERM and watch.taken() != STEPS:
            found.append(f"{watch.taken()} steps were taken where {STEPS} were left: no checkpoint at the signal")
        said = f"exit {ended.code}, {ended.output[-60:]}"
        yield judge(f"A8.{verb} {signum.name} {number}", found, sent=sent, took=round(took, 2), said=said)
        shutil.rmtree(folder)
    few = [f"only {stopped} of {len(asked)} were stopped by a signal"] if stopped < len(asked) / 2 else []
    note = f"{verb} was stopped in {stopped} of {len(asked)} cases, {both} of {interrupts} met a second Ctrl-C"
    yield judge(f"A8.{verb} total", few, note=note)
