"""Case C7: secrets that lie about while every command runs, and crashes, turn up nowhere."""

import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cli.app import build
from sae_forge import builtin
from tests import fakehub
from tests.acceptance import remote
from tests.acceptance.harness import Ground

TOKEN, PRIVATE = fakehub.TOKEN, b"PASSWORD=canary of the protocol"
_LEVELS = {"plain": [], "json": ["--json"], "debug": ["--debug"]}
_WORK = {
    "collect": ["--max_tokens", "1500", "--model_batch_size", "4"],
    "train": ["--max_steps", "10", "--batch_size", "256", "--expansion_factor", "2", "--loss_tokens", "300"],
    "features": ["--num_features", "5", "--max_neutral_freq", "1", "--min_target_fires", "1", "--snippets", "1"],
    "eval": ["--limit", "2", "--num_features", "5", "--bootstrap", "100", "--loss_tokens", "300", "--methods", "zero"],
}


class _CrashError(ArithmeticError):
    """Of a kind that no verb expects."""


def secrets(ground: Ground, scratch: Path) -> dict[str, Any]:
    """A token in the environment and a secret in files of the run folder are in nothing that any command leaves.

    Every command at three verbosities, once to its end and once crashed at a random moment by an exception that nobody
    expects; looked for in what it prints, in every file it leaves, in what the Hub is sent, and in the command lines of
    all processes, 20 times a second.
    """
    scratch.mkdir(parents=True)
    known = {command.name for command in build().registered_commands}
    crashed = count = 0
    with remote.hub(silence=60.0) as hub, _command_lines() as seen:
        for level, flags in _LEVELS.items():
            run = scratch / level
            commands = _commands(run, f"you/{level}")
            assert {command[0] for command in commands} == known, f"not every command is tried: {known}"
            for command in commands:
                arguments = [*command, *flags]
                before = ground.fresh(run) if run.exists() else None
                began = time.monotonic()
                ended = ground.start(arguments).wait()
                took = time.monotonic() - began
                what = f"{command[0]} ({level})"
                assert ended.code == 0, f"{what}: exit {ended.code}: {ended.output[-300:]}"
                _no_secret(ended.output.encode(), f"what {what} prints")
                after = ground.fresh(run)
                shutil.rmtree(run)
                if before:
                    before.rename(run)
                ended = ground.start(arguments, before=partial(_crash_in, ground.draw.uniform(0.1, 0.7) * took)).wait()
                crashed += _CrashError.__name__ in ended.output
                _no_secret(ended.output.encode(), f"what {what} prints when it crashes")
                _no_secret_in(run, what)
                shutil.rmtree(run, ignore_errors=True)
                after.rename(run)
                _plant(run)
                count += 2
            _no_secret_in(run, level)
        for request in hub.requests:
            _no_secret(request.path.encode() + request.body, "what the Hub was sent")
        published = [repo for repo in hub.repos.values() if len(repo.main) == 2]
        assert len(published) == len(_LEVELS), f"{len(published)} of {len(_LEVELS)} pushes arrived"
    assert not seen.found, f"a process list shows a secret: {seen.found}"
    assert seen.rounds > 10 * seen.seconds, f"process lists were read {seen.rounds} times in {seen.seconds:.0f} s"
    assert crashed > count // 4, f"only {crashed} of {count // 2} crashes came before the end"
    told = (Path(__file__).parents[1] / "cli/flags.txt").read_text().split()
    assert not {"--token", "--hf_token", "--api_key"} & set(told), "a flag takes a secret, which process lists show"
    note = f"{count} commands, {crashed} of them crashed; process lists read {seen.rounds} times"
    return {"commands": count, "crashed": crashed, "note": note}


def _commands(run: Path, repo: str) -> list[list[str]]:
    """Every command of the package on this run folder, in an order in which each finds what it needs."""
    where = ["--model", builtin.MODELS[0], "--run_dir", str(run)]
    whole = [flag for name in _WORK for flag in _WORK[name]]
    return [
        *([name, *where, *flags] for name, flags in _WORK.items()),
        ["report", "--run_dir", str(run)],
        ["generate", "an owl", *where, "--max_new_tokens", "2"],
        ["push", repo, "--run_dir", str(run)],
        ["verify", "--run_dir", str(run)],
        ["run", *where, *whole],
    ]


def _plant(run: Path) -> None:
    """A file of secrets in the run folder and in every folder that push looks into."""
    for folder in (run, *run.glob("saes/*/*"), *run.glob("features/*/*"), *run.glob("eval/**/")):
        if folder.is_dir():
            (folder / ".env").write_bytes(PRIVATE)


def _crash_in(seconds: float) -> None:
    def crash(*_: object) -> None:
        raise _CrashError("forced")

    signal.signal(signal.SIGALRM, crash)
    signal.setitimer(signal.ITIMER_REAL, seconds)


@dataclass
class _Seen:
    """What the process lists showed."""

    rounds: int = 0
    seconds: float = 0.0
    found: str = ""


@contextmanager
def _command_lines() -> Iterator[_Seen]:
    """Read the command line of every process 20 times a second while the block runs."""
    seen, done, began = _Seen(), threading.Event(), time.monotonic()

    def look() -> None:
        while not done.wait(0.05):
            seen.rounds += 1
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                with suppress(OSError):
                    line = path.read_bytes()
                    seen.found = seen.found or (str(path) if TOKEN.encode() in line or PRIVATE in line else "")

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield seen
    finally:
        done.set()
        looking.join()
        seen.seconds = time.monotonic() - began


def _no_secret_in(folder: Path, where: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file() and path.name != ".env":
            _no_secret(path.read_bytes(), f"{path.name} after {where}")


def _no_secret(content: bytes, where: str) -> None:
    assert TOKEN.encode() not in content, f"the token is in {where}"
    assert PRIVATE not in content, f"the content of .env is in {where}"
