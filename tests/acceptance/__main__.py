"""``python -m tests.acceptance``: run groups of the protocol, one JSON line a case; or sum up a log of it.

CPU only, no network. The verbs run as processes of their own on a model of random weights that is made here.
"""

import os

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9", "TOKENIZERS_PARALLELISM": "false"}
os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")

import argparse
import importlib
import importlib.util
import json
import multiprocessing
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

SHIM = "ACCEPTANCE_SHIM"
GROUPS = {"A": "durability", "B": "integrity", "C": "hostile", "D": "remote", "E": "ranks"}
"""Module of each group; a group is a function ``kinds(ground)`` of what gives the cases of each kind."""
IDLE = ("D2 six", "D5", "E5", "E7")
"""Kinds that wait for a limit to pass: in full runs they go beside the others, in two processes more."""
ALONE = ("B8", "C3")
"""Kinds that are held to times so short that nothing else may run beside them; they come last."""
LONG = ("A7", "A2", "C1 command", "C1 fuzz", "E4", "A6", "A5", "A1")
"""Kinds to begin with, so that no process is left with a long one when the others are done."""
TITLES = {
    "A1": "collect killed at random moments", "A2": "killed on entering every write, fsync and rename",
    "A3": "order of write, fsync, rename, fsync of the folder", "A4": "train killed at random moments",
    "A5": "resumed from every step", "A6": "disk full", "A7": "EIO and ENOSPC from every call",
    "A8": "SIGTERM, SIGINT twice", "A9": "collect and train in turns, killed at random moments",
    "B1": "a flip in every file", "B2": "random flips", "B3": "every length of a shard",
    "B4": "shards of other settings", "B5": "shards of other tensors", "B6": "shards missing, doubled, swapped, stray",
    "B7": "rows that are not finite", "B8": "cost of checking", "C1": "fuzz", "C2": "hostile names", "C3": "bombs",
    "C4": "code execution", "C5": "what the package may not import", "C6": "links", "C7": "secrets",
    "D1": "push: one failure of each kind", "D2": "push: one commit, killed or slow", "D3": "push: lost response",
    "D4": "push: someone else commits", "D5": "push: silent server", "D6": "push: planted files",
    "D7": "push: round trip", "E1": "two ranks against one", "E2": "four ranks against one",
    "E3": "latents spread over ranks", "E4": "a rank killed", "E5": "a rank frozen", "E6": "ranks told apart",
    "E7": "a rank that never comes", "E8": "other numbers of ranks", "E9": "a rank killed in a save",
    "E10": "collected by several ranks",
}  # fmt: skip

Record = dict[str, Any]


def main() -> int:
    """Run what was asked for; 1 when a case failed."""
    here = [group for group, module in GROUPS.items() if importlib.util.find_spec(f"{__package__}.{module}")]
    parser = argparse.ArgumentParser(prog="python -m tests.acceptance", description=__doc__)
    parser.add_argument("--groups", default=",".join(here), help="letters, separated by commas (default: %(default)s)")
    parser.add_argument("--cases", default="", help="run only cases whose name begins with one of these, as A2,B5")
    parser.add_argument("--smoke", action="store_true", help="a few cases of each kind, for the suite")
    parser.add_argument("--keep_going", action="store_true", help="do not stop at the first case that fails")
    parser.add_argument("--jobs", type=int, default=2, help="kinds of cases that run side by side (default: 2)")
    parser.add_argument("--log", type=Path, help="append the JSON lines to this file too")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random here")
    parser.add_argument("--summary", type=Path, metavar="LOG", help="print the table of a log and do nothing else")
    asked = parser.parse_args()
    if asked.summary:
        print(table([json.loads(line) for line in asked.summary.read_text().splitlines()]))
        return 0
    if unknown := sorted(set(asked.groups.split(",")) - set(here)):
        parser.error(f"there is no group {unknown[0]} here; there are {', '.join(here)}")
    preload_faults()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # by way of what kills the other processes
    with tempfile.TemporaryDirectory(prefix="acceptance-", ignore_cleanup_errors=True) as folder:
        records = list(run(asked, Path(folder)))
    if SHIM in os.environ:
        shutil.rmtree(Path(os.environ[SHIM]).parent, ignore_errors=True)
    print(table(records))
    return int(any(record["result"] == "failed" for record in records))


def preload_faults() -> None:
    """Begin again with ``faults.c`` in this process and so in its forks; where it cannot be compiled, go on without."""
    if SHIM in os.environ or not (compiler := shutil.which("gcc") or shutil.which("cc")):
        return
    library = Path(tempfile.mkdtemp(prefix="acceptance-faults-")) / "faults.so"
    source = Path(__file__).with_name("faults.c")
    done = subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=False)
    if done.returncode == 0:
        os.environ |= {"LD_PRELOAD": str(library), SHIM: str(library)}
        os.execv(sys.executable, [sys.executable, "-m", "tests.acceptance", *sys.argv[1:]])


def run(asked: argparse.Namespace, folder: Path) -> Iterator[Record]:
    """The record of each case as it ends; ``at`` is the second of the run in which it did."""
    from tests.acceptance.harness import Ground

    began = time.monotonic()
    ground = Ground(folder, smoke=asked.smoke, seed=asked.seed, only=tuple(asked.cases.split(",")))
    kinds = {}
    for group in asked.groups.split(","):
        found = importlib.import_module(f"{__package__}.{GROUPS[group]}").kinds(ground)
        kinds |= {kind: work for kind, work in found.items() if ground.wanted(kind)}
    if asked.jobs > 1 and any(kind[0] != "D" for kind in kinds):
        ground.prepare()
    for record in _records(kinds, ground, asked.jobs):
        record["at"] = round(time.monotonic() - began, 1)
        line = json.dumps(record, ensure_ascii=False)
        print(line, flush=True)
        if asked.log:
            with asked.log.open("a") as log:
                log.write(line + "\n")
        yield record
        if record["result"] == "failed" and not asked.keep_going:
            return


def _records(kinds: dict[str, Any], ground: Any, jobs: int) -> Iterator[Record]:
    """Records of all kinds, of those that can be side by side in the order in which they end."""
    if jobs == 1:
        for kind, work in kinds.items():
            yield from _kind(kind, ground.run(kind, work))
        return
    alone = _first(ALONE, [kind for kind in kinds if kind.startswith(ALONE)])
    idle = _first(IDLE, [kind for kind in kinds if kind.startswith(IDLE) and not ground.smoke])
    rest = _first(LONG, [kind for kind in kinds if kind not in (*alone, *idle)])
    yield from _side_by_side(kinds, ground, [rest] * jobs + [idle] * 2)
    yield from _side_by_side(kinds, ground, [alone])


def _first(names: tuple[str, ...], kinds: list[str]) -> list[str]:
    """Kinds in the order of the names they begin with, then those that begin with none."""
    return sorted(
        kinds, key=lambda kind: next((at for at, name in enumerate(names) if kind.startswith(name)), len(names))
    )


def _side_by_side(kinds: dict[str, Any], ground: Any, queues: list[list[str]]) -> Iterator[Record]:
    """A fork of this process a queue; those with the same queue share its kinds, each taking the next when it is free.

    When nobody wants more records, the forks and what they run are killed.
    """
    forking = multiprocessing.get_context("fork")
    taken = {id(queue): forking.Value("i", 0) for queue in queues}

    def work(queue: list[str], told: Connection) -> None:
        """Tell the name of each kind, then its records; None at the end."""
        os.setsid()
        count = taken[id(queue)]
        while True:
            with count:
                at, count.value = count.value, count.value + 1
            if at >= len(queue):
                return told.send(None)
            told.send(queue[at])
            for record in _kind(queue[at], ground.run(queue[at], kinds[queue[at]])):
                told.send(record)

    lanes: dict[Connection, Any] = {}
    for queue in filter(None, queues):
        heard, told = forking.Pipe(duplex=False)
        lane = lanes[heard] = forking.Process(target=work, args=(queue, told))
        lane.start()
        told.close()
    try:
        yield from _hear(lanes)
    finally:
        for lane in lanes.values():
            if lane.is_alive():
                _end(lane)
            lane.join()
    for kind in {kind: None for queue in queues for kind in queue[taken[id(queue)].value :]}:
        yield _stopped(kind, "no process was left to begin it")


def _hear(lanes: Mapping[Connection, Any]) -> Iterator[Record]:
    """What the lanes tell, until each has said that it is done; one that died instead has failed in what it was at.

    Its exit code tells, as what it ran may hold its end of the pipe for longer.
    """
    left, at = dict(lanes), dict.fromkeys(lanes, "?")
    while left:
        dead = [heard for heard, lane in left.items() if lane.exitcode is not None]  # before what they said is read
        ready = wait(list(left), timeout=1.0)
        for heard in list(left):
            if heard in ready:
                with suppress(EOFError):  # one that died: its exit code comes
                    if (told := heard.recv()) is None:
                        del left[heard]
                    elif isinstance(told, str):
                        at[heard] = told
                    else:
                        yield told
                    continue
            if heard in dead:
                lane = left.pop(heard)
                _end(lane)
                yield _stopped(at[heard], f"the process that ran it ended with {lane.exitcode}")


def _end(lane: Any) -> None:
    """Kill a fork and what it runs."""
    with suppress(ProcessLookupError):
        os.killpg(lane.pid, signal.SIGKILL)


def _kind(kind: str, results: Iterator[Any]) -> Iterator[Record]:
    """Records of one kind; one that raises instead of answering has failed, and ends with it."""
    began = time.monotonic()
    try:
        for result in results:
            took = time.monotonic() - began
            yield {"group": kind[0], **result.to_json(), "seconds": round(took, 2)}
            began = time.monotonic()
    except Exception as error:  # noqa: BLE001 (whatever it is, it is the reason)
        traceback.print_exc(file=sys.stderr)
        yield _stopped(kind, f"{type(error).__name__}: {error}")


def _stopped(kind: str, why: str) -> Record:
    """The record of a kind whose cases are not all there."""
    reason = " ".join(f"the protocol itself stopped: {why}".split())
    return {"group": kind[0], "case": f"{kind}?", "result": "failed", "reason": reason, "seconds": 0.0}


def table(records: list[Record]) -> str:
    """Counts by kind of case, as Markdown; a claim may only be made of the cases that ran."""
    kinds: dict[str, list[Record]] = {}
    for record in records:
        name = re.match(r"[A-Z]\d*", record["case"])
        kinds.setdefault(name[0] if name else record["case"], []).append(record)
    lines = ["| case | what | passed | failed | skipped | seconds | notes |", "|---|---|---|---|---|---|---|"]
    for kind, found in sorted(kinds.items(), key=lambda one: (one[0][0], int(one[0][1:] or 0))):
        counts = Counter(record["result"] for record in found)
        notes = [record["reason"] for record in found if record["result"] != "passed" and record["reason"]]
        notes += [record["note"] for record in found if record.get("note")]
        numbers = [str(counts[name]) for name in ("passed", "failed", "skipped")]
        took = f"{sum(record['seconds'] for record in found):.0f}"
        told = "; ".join(dict.fromkeys(note[:160] for note in notes)).replace("|", "\\|")
        lines.append("| " + " | ".join([kind, TITLES.get(kind, ""), *numbers, took, told]) + " |")
    total = Counter(record["result"] for record in records)
    told = ", ".join(f"{total[name]} {name}" for name in ("passed", "failed", "skipped"))
    seconds = sum(record["seconds"] for record in records)
    wall = max((record.get("at", 0) for record in records), default=0)
    took = f"{wall / 60:.1f} minutes from the first to the last, {seconds / 60:.1f} of work side by side"
    return "\n".join([*lines, "", f"{len(records)} cases: {told}; {took}."])


if __name__ == "__main__":
    raise SystemExit(main())
