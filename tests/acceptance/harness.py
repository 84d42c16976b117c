"""What every group stands on: verbs as processes that can be killed, a run to compare with, and faults from strace.

A verb is run in a fork of this process, which has imported everything and loaded the model once, so that a fault lands
in its work and not in ten seconds of imports; ``spawned`` runs are ``python -m sae_forge`` from nothing. Both are
processes that die for good.
"""

import ctypes
import gc
import hashlib
import json
import os
import random
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import matplotlib.backends.backend_agg
import matplotlib.figure  # noqa: F401 (this and others here would else be imported by every fork)
import torch
import transformers.models.llama.modeling_llama  # noqa: F401
import typer._adapters  # noqa: F401

import cli.launch
import cli.screen  # noqa: F401
import sae_forge.kernels.cpu  # noqa: F401
from cli.app import main as command_line
from sae_forge.models.loading import load_model
from sae_forge.pipeline import collect, features, generate, push, report, train, verify  # noqa: F401

ROOT = Path(__file__).parents[2]
CTX, BATCH, ROWS, STEPS, EVERY = 24, 4, 240, 50, 5
LAYER = 1
FEW = ("--shard_rows", "1000")
"""What makes two shards of each corpus."""
BRIEF = ("--max_steps", "12", "--checkpoint_every", "6")
"""What makes two checkpoints of a training, and a write of its log for each of twelve steps."""
EACH = ("--checkpoint_every", "1")
ROOM = 160_000
"""Bytes that windows may take: a third of what the shards of both corpora would."""
TRIES = 40
"""Lives after which a run that is killed again and again is given up."""
PATIENCE = 120.0
"""Seconds after which a verb counts as hanging."""

torch.set_num_threads(1)


@dataclass(frozen=True)
class Result:
    """One line of the log."""

    case: str
    result: Literal["passed", "failed", "skipped"]
    reason: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Facts beside the verdict."""
        return {"case": self.case, "result": self.result, "reason": self.reason, **self.facts}


Kind = Callable[[], Iterator[Result]]
"""What gives the cases of one kind, one after another."""


def chosen(ground: "Ground", kinds: dict[str, Kind]) -> Iterator[Result]:
    """The cases of those kinds that were asked for, in this process."""
    for kind, work in kinds.items():
        if ground.wanted(kind):
            yield from ground.run(kind, work)


def judge(case: str, flaws: Sequence[str], **facts: Any) -> Result:
    """Passed without a flaw."""
    return Result(case, "failed" if flaws else "passed", " ".join("; ".join(flaws).split())[:600], facts)


# ---- processes ----------------------------------------------------------------------------------


@dataclass
class Ended:
    """A verb that has ended."""

    code: int
    """Exit code; 128 + n for a death by signal n."""
    output: str
    seconds: float
    grown: int
    """Bytes of memory at its most, beyond those of the process it was forked from."""

    @property
    def error(self) -> str:
        """The one line of an error, or nothing."""
        found = [line for line in self.output.splitlines() if line.startswith("error: ")]
        return found[0] if found else ""

    def flaws(self, code: int, *words: str) -> list[str]:
        """In what this is not a clean refusal with one line that holds these words."""
        found = [] if self.code == code else [f"exit {self.code}, not {code}: {self.output[-300:]}"]
        if "Traceback" in self.output:
            found.append(f"a traceback: {self.output[-300:]}")
        if code and sum(line.startswith("error: ") for line in self.output.splitlines()) != 1:
            found.append("its error is not one line")
        return found + [f"{word!r} is not in {self.error[:300]!r}" for word in words if word not in self.error]


class Verb:
    """A verb under way."""

    def __init__(self, pid: int, output: Path) -> None:
        self.pid, self._output, self._started, self._before = pid, output, time.monotonic(), resident()

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def running(self) -> bool:
        """Whether it has not ended; it can still be waited for."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def sleep(self, seconds: float) -> bool:
        """Wait so long or until it ends; whether it is still running."""
        handle = os.pidfd_open(self.pid)
        try:
            select.select([handle], [], [], max(0.0, seconds))
        finally:
            os.close(handle)
        return self.running()

    def wait(self) -> Ended:
        """Its end; one that takes too long is killed and counts as death by SIGKILL."""
        if self.sleep(PATIENCE):
            self.signal(signal.SIGKILL)
        _, status, used = os.wait4(self.pid, 0)
        seconds, code = time.monotonic() - self._started, os.waitstatus_to_exitcode(status)
        grown = max(0, 1024 * used.ru_maxrss - self._before)
        return Ended(code if code >= 0 else 128 - code, self._output.read_text(), seconds, grown)


def resident() -> int:
    """Bytes of memory that this process has in use."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def fork(work: Callable[[], object], output: Path, *, stopped: bool = False) -> Verb:
    """Run ``work`` in a child with its own standard streams; ``stopped``: it waits for SIGCONT before it begins."""
    sys.stdout.flush()
    output.touch()
    pid = os.fork()
    if pid:
        return Verb(pid, output)
    code = 1
    try:
        sink = os.open(output, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_APPEND, 0o600)
        for stream in (1, 2):
            os.dup2(sink, stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has what it runs behind it ignore Ctrl-C
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if stopped:
            os.kill(os.getpid(), signal.SIGSTOP)
        work()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 (the parent reads it)
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:
                code = code or 1
        os._exit(code)


# ---- the ground ---------------------------------------------------------------------------------


class Ground:
    """A scratch folder with a model, two corpora and reference runs, each made once."""

    def __init__(self, root: Path, *, smoke: bool, seed: int, only: tuple[str, ...]) -> None:
        self.root, self.smoke, self._seed, self._only, self._count = root, smoke, seed, only, 0
        self.draw = random.Random(seed)

    def wanted(self, kind: str) -> bool:
        """Whether a kind of case was asked for: by how its name begins, but E1 is not E10."""
        return any(kind.startswith(asked) and not kind[len(asked) :][:1].isdigit() for asked in self._only)

    def run(self, kind: str, work: "Kind") -> Iterator[Result]:
        """The cases of a kind; what is random in them does not depend on what ran before."""
        self.draw = random.Random(f"{self._seed} {kind}")
        yield from work()

    def prepare(self) -> None:
        """Make everything that several kinds stand on, so that forks of this process share it."""
        self.whole, self.windowed  # noqa: B018

    def fresh(self, source: Path | None = None) -> Path:
        """A run folder nobody has used: empty, or a copy."""
        self._count += 1
        folder = self.root / f"run-{os.getpid()}-{self._count}"  # a fork may make folders too
        if source is not None:
            shutil.copytree(source, folder)
        return folder

    @cached_property
    def model(self) -> Path:
        """A saved Llama of random weights."""
        folder = self.root / "tiny"
        self._made("model", lambda: _save_model(folder))
        load_model(str(folder), device="cpu")  # forks find the tables that transformers makes for the first one
        gc.collect()
        gc.freeze()  # else each fork goes through everything imported here, and copies it by that
        return folder

    @cached_property
    def corpora(self) -> list[str]:
        """Flags that name the text; enough for several shards a corpus."""
        for name, seed in (("forget", 1), ("retain", 2)):
            words, draw = (
                ["owl", "tower", "river", "granite", "slate", "book", "wizard", "cloud", "salt", "Arn", "Bel"],
                random.Random(seed),
            )
            lines = [" ".join(draw.choices(words, k=14)) + f" {number}." for number in range(40)]
            text = "".join(json.dumps({"text": line}) + "\n" for line in lines)
            (self.root / f"{name}.jsonl").write_text(text)
        return ["--forget", str(self.root / "forget.jsonl"), "--retain", str(self.root / "retain.jsonl")]

    @property
    def collects(self) -> list[str]:
        """Flags of what is collected."""
        shape = ["--ctx_len", str(CTX), "--model_batch_size", str(BATCH), "--shard_rows", str(ROWS)]
        return [*shape, "--storage_dtype", "fp32", *self.corpora]

    def arguments(self, verb: str, run: Path, *more: str) -> list[str]:
        """The command line of a verb on a run folder."""
        found = [verb, "--model", str(self.model), "--run_dir", str(run)]
        if verb != "report":
            found += ["--layer", str(LAYER), "--model_device", "cpu", "--sae_device", "cpu"]
        if verb == "collect":
            found += self.collects
        if verb == "train":
            found += ["--k", "4", "--d_sae", "96", "--batch_size", "64", "--max_steps", str(STEPS), "--lr", "0.01"]
            found += ["--checkpoint_every", str(EVERY), "--dead_after", "640", "--retain_eval", self.corpora[-1]]
            found += ["--loss_tokens", "200"]
        if verb == "features":
            found += ["--num_features", "4", "--min_target_fires", "1", "--max_freq", "1", "--snippets", "2"]
            found += ["--max_neutral_freq", "1", "--min_ratio", "0", "--min_freq", "0"]
        return [*found, *more]

    def in_turns(self, run: Path, *more: str) -> list[str]:
        """The command line of a training on windows."""
        return self.arguments("train", run, *self.collects, "--max_disk_gb", str(ROOM / 1e9), *more)

    def start(
        self, arguments: Sequence[str], *, before: Callable[[], object] = lambda: None, stopped: bool = False
    ) -> Verb:
        """A verb in a fork of this process.

        Args:
            before: Called in the child first; it may watch, it must not change what the verb does.
        """

        def work() -> None:
            before()
            sys.argv = ["sae-forge", *arguments]
            command_line()

        self._count += 1
        return fork(work, self.root / f"output-{os.getpid()}-{self._count}.txt", stopped=stopped)

    def spawn(self, arguments: Sequence[str]) -> Verb:
        """``python -m sae_forge``, from nothing."""
        self._count += 1
        output = self.root / f"output-{os.getpid()}-{self._count}.txt"
        with output.open("w") as sink:
            command = [sys.executable, "-m", "sae_forge", *arguments]
            plain = {name: value for name, value in os.environ.items() if name not in ("LD_PRELOAD", SHIM)}
            process = subprocess.Popen(command, stdout=sink, stderr=sink, stdin=subprocess.DEVNULL, cwd=ROOT, env=plain)
        process.returncode = 0  # it is waited for here and not by its object
        return Verb(process.pid, output)

    def finish(self, arguments: Sequence[str], **options: Any) -> Ended:
        """Run a verb that must succeed."""
        ended = self.start(arguments, **options).wait()
        if ended.code:
            raise AssertionError(f"{arguments[0]} ended with {ended.code}: {ended.output[-1500:]}")
        return ended

    # ---- references ---------------------------------------------------------

    @cached_property
    def collected(self) -> Path:
        """A run folder in which collecting was never disturbed; not to be changed."""
        folder = self.root / "reference-collected"
        self.finish(self.arguments("collect", folder))
        self.collect_seconds = self.finish(self.arguments("collect", self.fresh())).seconds
        return folder

    @cached_property
    def trained(self) -> Path:
        """The same run with an SAE whose training was never disturbed; not to be changed.

        ``watch`` has its rows and hashes, ``store`` the checkpoint after each step.
        """
        folder, self.store = self.root / "reference-trained", self.root / "reference-checkpoints"
        shutil.copytree(self.collected, folder)
        self.watch, each = Watch(self.root / "reference-ledger", self.store), ("--checkpoint_every", "1")
        self.finish(self.arguments("train", folder, *each), before=self.watch.begin)
        again = self.arguments("train", self.fresh(self.collected), *each)
        self.train_seconds = self.finish(again, before=Watch(self.root / "unused").begin).seconds
        return folder

    @cached_property
    def selected(self) -> Path:
        """The same run with a selection of latents; not to be changed."""
        folder = self.root / "reference-selected"
        shutil.copytree(self.trained, folder)
        self.finish(self.arguments("features", folder))
        return folder

    @cached_property
    def reported(self) -> Path:
        """The same run with a page; not to be changed."""
        folder = self.root / "reference-reported"
        shutil.copytree(self.selected, folder)
        self.finish(self.arguments("report", folder))
        return folder

    @cached_property
    def whole(self) -> Path:
        """The same run with two checkpoints of an SAE in training; not to be changed."""
        folder = self.root / "reference-whole"
        shutil.copytree(self.reported, folder)
        self.half_trained(folder)
        return folder

    @cached_property
    def windowed(self) -> Path:
        """A run whose training on windows was stopped in its second one, which is there complete; not to be changed."""
        folder = self.root / "reference-windowed"
        ended = self.start(self.in_turns(folder), before=_stop_in_the_second_window).wait()
        assert ended.code == 128 + signal.SIGKILL, ended.output
        return folder

    def half_trained(self, folder: Path) -> Path:
        """Leave a second SAE of this run in the middle of its training; its folder."""
        watch = Watch(folder / "logs" / "half", None, stop_at=3 * EVERY + 1)
        ended = self.start(self.arguments("train", folder, "--seed", "5"), before=watch.begin).wait()
        assert ended.code == 128 + signal.SIGKILL, ended.output
        return next(path for path in folder.glob("saes/*/*-s5"))

    def _made(self, name: str, work: Callable[[], object]) -> None:
        ended = fork(work, self.root / f"{name}.txt").wait()
        assert ended.code == 0, ended.output


def _stop_in_the_second_window() -> None:
    """Make this process kill itself at the third step of training there."""
    from sae_forge.data.windows import WindowedStream
    from sae_forge.training import replay

    step, part, begun = replay.step, WindowedStream.part, []

    def noted(self: Any, batch: int) -> Any:
        found = part(self, batch)
        begun.append(found.first)
        return found

    def watched(state: Any, *rest: Any, **named: Any) -> Any:
        if begun[-1] and state.step == begun[-1] + 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(state, *rest, **named)

    replay.step, WindowedStream.part = watched, noted


def _save_model(folder: Path) -> None:
    from transformers import LlamaConfig
    from transformers.models.auto.modeling_auto import AutoModelForCausalLM

    from tests.tiny_tokenizer import make_tokenizer

    shape = {"vocab_size": 320, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**shape, pad_token_id=0, bos_token_id=1, eos_token_id=2))
    for name, weight in model.named_parameters():
        if weight.ndim == 2 and "norm" not in name:
            torch.nn.init.normal_(weight, std=0.15)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)


# ---- what a run came to -------------------------------------------------------------------------


def tree(folder: Path) -> dict[str, str]:
    """sha256 of every file outside ``logs/``, by its path."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    inside = ((path.relative_to(folder), path) for path in found)
    return {
        str(name): hashlib.sha256(path.read_bytes()).hexdigest() for name, path in inside if name.parts[0] != "logs"
    }


def differences(folder: Path, reference: Path) -> list[str]:
    """Files that are missing, extra, or not the same bytes; none for an equal run."""
    mine, theirs = tree(folder), tree(reference)
    extra, missing = sorted(set(mine) - set(theirs)), sorted(set(theirs) - set(mine))
    other = sorted(name for name in set(mine) & set(theirs) if mine[name] != theirs[name])
    told = {"extra": extra, "missing": missing, "other bytes": other}
    return [f"{kind}: {', '.join(names[:4])}" for kind, names in told.items() if names]


Stamps = set[tuple[str, int]]
"""Paths, each with the time of its last change: what is in one set and not in an earlier one was made in between."""


def stamps(found: Iterable[Path]) -> Stamps:
    """Of what there is of these paths; which may go while they are looked at."""
    told: Stamps = set()
    for path in found:
        with suppress(FileNotFoundError):
            told.add((str(path), path.stat().st_mtime_ns))
    return told


def leftovers(folder: Path) -> Stamps:
    """Part files and folders: what a process, this or one before it, was writing when it died."""
    return stamps(path for path in folder.rglob(".*") if path.name.endswith(".part") or path.name.startswith(".tmp"))


def require_whole_checkpoints(folder: Path) -> None:
    """Whatever stands under a checkpoint's name after a kill is whole; while the last are removed, none need be."""
    from sae_forge.training.state import STATE, verify_checkpoint

    for sae in folder.glob("saes/*/*"):
        for checkpoint in () if (sae / "report.json").exists() else sae.glob("checkpoints/step-*"):
            for name in (STATE, *(path.name for path in checkpoint.iterdir())):
                verify_checkpoint(checkpoint, name)


class Watch:
    """A ledger of a training run, kept from within: each step with the hash of its rows, each checkpoint with its own.

    Lines are appended as they happen and survive the process.
    """

    def __init__(self, ledger: Path, store: Path | None = None, *, stop_at: int | None = None) -> None:
        self._ledger, self._store, self._stop_at = ledger, store, stop_at

    def begin(self) -> None:
        """Wrap the step and the publishing of folders, in this process."""
        from contextlib import contextmanager

        from sae_forge.store import files
        from sae_forge.training import replay

        step, publish = replay.step, files.publish_folder

        def watched(state: Any, batch: torch.Tensor, *rest: Any, **named: Any) -> Any:
            if state.step == self._stop_at:
                os.kill(os.getpid(), signal.SIGKILL)
            rows = hashlib.sha256(batch.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
            self._write({"step": state.step, "rows": rows})
            return step(state, batch, *rest, **named)

        @contextmanager
        def published(path: Path) -> Iterator[Path]:
            with publish(path) as part:
                yield part
            self._write({"checkpoint": path.name, "files": tree(path)})
            if self._store:
                shutil.copytree(path, self._store / path.name, dirs_exist_ok=True)

        replay.step, files.publish_folder = watched, published

    def _write(self, record: dict[str, Any]) -> None:
        with self._ledger.open("a") as ledger:
            ledger.write(json.dumps(record) + "\n")

    def _lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._ledger.read_text().splitlines()] if self._ledger.exists() else []

    def steps(self) -> list[str]:
        """The rows of each step that counts, in order: a life that goes on from step s replaces what came after s.

        Raises:
            AssertionError: a step was left out.
        """
        found: list[str] = []
        for line in self._lines():
            if "step" in line:
                assert line["step"] <= len(found), f"step {len(found)} was left out"
                del found[line["step"] :]
                found.append(line["rows"])
        return found

    def unlike(self, reference: "Watch") -> list[str]:
        """Steps of other rows than the reference's, and checkpoints (weights, moments, counters) of other bytes."""
        try:
            found = [] if self.steps() == reference.steps() else ["steps of other rows"]
        except AssertionError as error:
            return [str(error)]
        expected = reference.checkpoints()
        other = [name for name, hashes in self.checkpoints().items() if hashes != expected.get(name)]
        return found + ([f"checkpoints of other bytes: {', '.join(other)}"] if other else [])

    def taken(self) -> int:
        """Steps that were begun, those begun again included."""
        return sum("step" in line for line in self._lines())

    def checkpoints(self) -> dict[str, dict[str, str]]:
        """Hashes of the files of each checkpoint, by its name; the last to be written under it."""
        return {line["checkpoint"]: line["files"] for line in self._lines() if "checkpoint" in line}


# ---- faults -------------------------------------------------------------------------------------

RENAMES = "rename,renameat,renameat2"
SHIM = "ACCEPTANCE_SHIM"
"""Variable that names the library of ``faults.c`` when it was preloaded into this process."""
_CALL = re.compile(r"(?P<pid>\d+) +(?P<name>\w+)\((?P<rest>.*)\)\s+= (?P<result>-?\d+|\?)(?:<(?P<opened>.*?)>)?")


def cannot_inject() -> str:
    """Why no call can be refused or made the last here; nothing when one can."""
    return "" if os.environ.get(SHIM) else "there is no gcc to compile faults.c with"


@dataclass(frozen=True)
class Point:
    """One call of a run: the ``number``-th of its name on a path, which is relative to the run's folder."""

    name: str
    path: str
    number: int

    def __str__(self) -> str:
        return f"{self.name} {self.path} {self.number}"


def arm(folder: Path, *, log: Path | None = None, point: Point | None = None, error: int = 0) -> None:
    """From here on this process logs its calls below ``folder``, and fails, or dies for ``error`` 0, at a point."""
    handle = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600) if log else -1
    name, path, number = (point.name, str(folder / point.path), point.number) if point else ("", "", 0)
    shim = ctypes.CDLL(os.environ[SHIM])
    shim.faults_arm(str(folder).encode(), handle, name.encode(), path.encode(), number, error)


def points(log: Path, folder: Path) -> list[Point]:
    """Every call of a log that :func:`arm` wrote, in order."""
    found: list[Point] = []
    counts: dict[tuple[str, str], int] = {}
    for line in log.read_text().splitlines():
        name, path = line.split("\t")
        counts[name, path] = counts.get((name, path), 0) + 1
        found.append(Point(name, os.path.relpath(path, folder), counts[name, path]))
    return found


def cannot_trace() -> str:
    """Why strace cannot be used here; nothing when it can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    tried = subprocess.run(["strace", "-f", "-o", os.devnull, "true"], capture_output=True, text=True, check=False)
    return "" if tried.returncode == 0 else f"strace is not allowed here: {tried.stderr.strip()[:100]}"


@dataclass(frozen=True)
class Call:
    """One system call of a log; ``result`` is None when the process died in it."""

    name: str
    arguments: str
    result: int | None
    opened: str = ""
    """Path of the file descriptor that it gave."""

    @property
    def file(self) -> str:
        """Path of the file descriptor that is its first argument."""
        found = re.match(r"\d+<(.*?)>", self.arguments)
        return found[1] if found else ""

    @property
    def paths(self) -> list[str]:
        """Quoted arguments."""
        return re.findall(r'"((?:[^"\\]|\\.)*)"', self.arguments)


def traced(verb: Verb, *options: str, log: Path) -> Ended:
    """A process that was started stopped, under strace with these options from its first call on."""
    os.waitid(os.P_PID, verb.pid, os.WSTOPPED)
    command = ["strace", "-f", "-y", "-s", "4096", "-o", str(log), "-p", str(verb.pid), *options]
    tracer = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    status = Path(f"/proc/{verb.pid}/status")
    until = time.monotonic() + PATIENCE
    while "TracerPid:\t0\n" in status.read_text() and time.monotonic() < until:
        time.sleep(0.001)
    verb.signal(signal.SIGCONT)
    ended = verb.wait()
    tracer.wait(PATIENCE)
    return ended


def calls(log: Path) -> list[Call]:
    """The finished calls of a log, of all threads in order."""
    found, begun = [], {}
    for line in log.read_text(errors="replace").splitlines():
        if line.endswith("<unfinished ...>"):
            pid, _, head = line.removesuffix("<unfinished ...>").partition(" ")
            begun[pid] = head.strip()
            continue
        pid, _, rest = line.partition(" ")
        if "resumed>" in rest and pid in begun:
            line = f"{pid} {begun.pop(pid)}{rest.partition('resumed>')[2]}"
        if match := _CALL.match(line):
            result = None if match["result"] == "?" else int(match["result"])
            found.append(Call(match["name"], match["rest"], result, match["opened"] or ""))
    return found


# ---- a small disk -------------------------------------------------------------------------------

_NEW_USER, _NEW_MOUNTS = 0x10000000, 0x00020000


def enter_own_mounts() -> None:
    """Give this process namespaces of its own in which it may mount; raises OSError where it may not."""
    user, group = os.getuid(), os.getgid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEW_USER | _NEW_MOUNTS):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")


def mount(folder: Path, size: int, *, again: bool = False) -> None:
    """A tmpfs of so many bytes at ``folder``, or the one that is there made that large."""
    options = f"remount,size={size}" if again else f"size={size}"
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise OSError(done.stderr.strip())
