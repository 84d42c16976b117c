"""Group C: what strangers hand us. Every refusal is one line with exit code 2; nothing runs, nothing blows up.

In-process cases go through the readers that the verbs call; those marked "command line" through the real one.
Lengths of lines are counted without the scratch folder's own path, time and memory beyond the process as it was before.
"""

import ast
import json
import os
import pickle
import shutil
import signal
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

from sae_forge.errors import ForgeError
from sae_forge.progress import SILENT
from sae_forge.sae.named import load_dictionary
from sae_forge.sae.topk import TopKSAE
from sae_forge.store.runs import Run
from sae_forge.training.state import load_checkpoint
from tests.acceptance import canaries
from tests.acceptance.harness import (
    Ground,
    Kind,
    Result,
    calls,
    cannot_trace,
    chosen,
    fork,
    judge,
    traced,
)
from tests.acceptance.mutations import spoil_bytes
from tests.acceptance.specimens import (
    KINDS,
    POINT,
    Specimen,
    forge_json,
    forge_record,
    forge_sae,
    forge_shard,
    rename_inside,
)

LINE = 300
SECONDS = 2.0
BYTES = 200e6


def kinds(ground: Ground) -> dict[str, Kind]:
    """The cases of the group, by kind."""
    found: dict[str, Callable[[Path], dict[str, Any]]] = {
        f"C1 fuzz {kind}": partial(fuzz, kind, 100 if ground.smoke else 10_000) for kind in KINDS
    }
    commands = partial(command_line, ground, count=2 if ground.smoke else 200)
    found |= {f"C1 command line {kind}": partial(commands, kind) for kind in KINDS}
    found |= {"C2 hostile names": hostile_names}
    found |= {"C3 bombs": partial(bombs, **(_SMALL_BOMBS if ground.smoke else _BOMBS))}
    found |= {"C4 code execution": partial(code_execution, ground), "C5 bans": bans, "C6 links": links}
    found |= {"C7 secrets": partial(canaries.secrets, ground)}
    return {name: partial(tried, name, partial(work, ground.fresh())) for name, work in found.items()}


def cases(ground: Ground) -> Iterator[Result]:
    """Every case of the group, in this process."""
    return chosen(ground, kinds(ground))


def tried(name: str, work: Callable[[], dict[str, Any]]) -> Iterator[Result]:
    """What a case came to; the first thing that is not as promised ends it."""
    try:
        yield judge(name, [], **work())
    except AssertionError as error:
        yield judge(name, [str(error)])


# ---- C1: spoilt files ---------------------------------------------------------------------------


def fuzz(kind: str, count: int, scratch: Path) -> dict[str, Any]:
    """Read ``count`` spoilt files, half of them spoilt knowingly; how many were refused."""
    specimen = KINDS[kind](scratch / kind)
    whole = {path: path.read_bytes() for path in specimen.folder.rglob("*") if path.is_file()}
    for path in specimen.files:
        assert _told(partial(specimen.read, path)) is None, f"{path} is whole and was refused"
    verdicts: Counter[str] = Counter()
    slowest, largest = 0.0, 0
    for number in range(count):
        draw = Random(f"{kind} {number}")
        path = draw.choice(specimen.files)
        specimen.spoil(path, draw, knowingly=bool(number % 2))
        verdict, seconds, grown = _attempt(specimen, path, f"{kind} {number}")
        verdicts[verdict], slowest, largest = verdicts[verdict] + 1, max(slowest, seconds), max(largest, grown)
        for file, content in whole.items():
            if not file.exists() or file.read_bytes() != content:
                file.write_bytes(content)
    assert verdicts["refused"] > count // 3, f"most spoilt files are still a {kind}: {dict(verdicts)}"
    note = f"{kind}: {verdicts['refused']} of {count} refused, {slowest:.2f} s and {largest / 1e6:.0f} MB at most"
    return {**verdicts, "note": note}


def _attempt(specimen: Specimen, path: Path, number: str) -> tuple[str, float, int]:
    """Whether it was refused or accepted, and the seconds and bytes that took."""
    before = _peak_from_here()
    started = time.monotonic()
    try:
        told = _told(partial(specimen.read, path))
    except Exception as error:
        raise AssertionError(f"{number}: {path.name} leaked a {type(error).__name__}: {error}") from error
    seconds, extra = time.monotonic() - started, _peak() - before
    assert seconds < SECONDS, f"{number}: {path.name} took {seconds:.1f} s"
    assert extra < BYTES, f"{number}: {path.name} took {extra / 1e6:.0f} MB"
    if told is None:
        return "accepted", seconds, extra
    check_line(told, specimen.folder, f"{number}: {path.name}")
    named = {file.name for file in specimen.folder.rglob("*")} | set(specimen.names)
    assert any(name in told for name in named), f"{number}: no file is named in {told!r}"
    return "refused", seconds, extra


def _told(read: Callable[[], object]) -> str | None:
    """The one line of a refusal, as the command line would print it; None when nothing was refused."""
    try:
        read()
    except ForgeError as error:
        assert error.exit_code == 2, f"exit code {error.exit_code}: {error}"
        return f"error: {' '.join(str(error).split())}"
    return None


def check_line(line: str, folder: Path, what: str) -> None:
    """One line, not too long, that any terminal can show."""
    shown = line.replace(f"{folder}/", "").replace(str(folder), "")
    assert len(shown) <= LINE, f"{what}: {len(shown)} characters: {shown}"
    assert "\n" not in line and line.isprintable(), f"{what}: {line!r}"
    line.encode()


def _peak_from_here() -> int:
    """Forget the highest memory so far; what is used now."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"/proc/self/status has no {name}")


# ---- C1: the same through the command line ------------------------------------------------------


def command_line(ground: Ground, kind: str, scratch: Path, *, count: int) -> dict[str, Any]:
    """Spoilt files named to a verb: an exit code, one line, no traceback."""
    forge = {"shard": forge_shard, "manifest": forge_record, "checkpoint": forge_sae, "features": forge_json}
    codes: Counter[int] = Counter()
    for number in range(count):
        draw, run = Random(f"command line {kind} {number}"), scratch / str(number)
        if kind == "config":
            specimen = KINDS[kind](run)
            path, arguments = (
                specimen.files[0],
                ["train", "--config", str(specimen.files[0]), "--model", str(run / "none")],
            )
            specimen.spoil(path, draw, knowingly=bool(number % 2))
        else:
            shutil.copytree(ground.collected if kind in ("shard", "manifest") else ground.whole, run)
            path, arguments = _named(ground, kind, run, draw)
            if number % 2:
                forge[kind](path, draw)
            else:
                path.write_bytes(spoil_bytes(path.read_bytes(), draw))
        ended = ground.start(arguments).wait()
        what = f"{kind} {number} ({path.name})"
        assert ended.code in (0, 2), f"{what}: exit {ended.code}: {ended.output[-300:]}"
        assert "Traceback" not in ended.output, f"{what}: {ended.output[-600:]}"
        if ended.code == 2:
            assert ended.output.count("error: ") == 1, f"{what}: {ended.output[-300:]}"
            check_line(ended.error, run, what)
            assert ended.seconds < SECONDS, f"{what} took {ended.seconds:.1f} s"
            assert ended.grown < BYTES, f"{what} took {ended.grown / 1e6:.0f} MB"
        codes[ended.code] += 1
        shutil.rmtree(run)
    assert codes[2] > count // 3, f"most spoilt files pass: {dict(codes)}"
    return {"refused": codes[2], "accepted": codes[0], "note": f"command line, {kind}: {codes[2]} of {count}"}


def _named(ground: Ground, kind: str, run: Path, draw: Random) -> tuple[Path, list[str]]:
    """A file of a run folder to spoil, and a verb that reads it."""
    common = ["--model", str(ground.model), "--run_dir", str(run)]
    if kind in ("shard", "manifest"):
        folder = draw.choice(sorted(path.parent for path in run.glob("shards/*/*/manifest.json")))
        names = ["shard-00000.safetensors"] if kind == "shard" else ["manifest.json", "shard-00000.json"]
        return folder / draw.choice(names), ground.arguments("train", run, "--max_steps", "1")
    sae = next(path.parent for path in run.glob("saes/*/*/cfg.json"))
    if kind == "checkpoint":
        names = ("cfg.json", "sae_weights.safetensors")
        return sae / draw.choice(names), ["push", "you/x", "--dry_run", *common, "--sae", str(sae)]
    chosen = next(run.glob("features/*/*/*.json"))
    asked = ["--sae", str(sae), "--selection", str(chosen), "--max_new_tokens", "1"]
    return chosen, ["generate", "an owl", *common, *asked]


# ---- C2: names ----------------------------------------------------------------------------------

_OUTSIDE = (
    "/etc/passwd",
    "../shard-00000.safetensors",
    "../../etc/passwd",
    "a/../../b",
    "./../x",
    "..",
    ".",
    "/",
    "//x",
)
NAMES = (
    *_OUTSIDE, *(f"shards/../{name}" for name in _OUTSIDE[:5]), "", " ", "\0", "shard-00000.safetensors\0", "a\0b",
    "\n", "..\\x", "C:\\x", "C:x", "\\\\host\\x", "~", "~/x", "$HOME/x", "%2e%2e/x", "file:///etc/passwd",
    "http://x/y", "x" * 300, "x/" * 2000, "SHARD-00000.safetensors", "shard-00000.SAFETENSORS",
    "shard-00000.safetensors ", " shard-00000.safetensors", "shard-0.safetensors", "shard-000000.safetensors",
    "shard-00001.safetensors", "shard-00000.json", "manifest.json", "\u202egnp.exe", "shard-0000\u0660.safetensors",
    "\uff53hard-00000.safetensors", "sh\u00adard-00000.safetensors", "link.safetensors", "fifo.safetensors",
    "/dev/zero", "/dev/stdin", "/proc/self/environ", "/proc/self/mem", "con", "nul", ".lock",
    ".shard-00000.safetensors.part", "-rf", "--help", "*", "shard-*.safetensors", "{}", "%s%s%n", "🧙", "\ud800",
    "weights.safetensors/", "./weights.safetensors", "WEIGHTS.safetensors",
)  # fmt: skip
"""What a record may call a file."""

_BEGIN, _END = "begins", "has ended"


def hostile_names(scratch: Path) -> dict[str, Any]:
    """A sidecar and its manifest, and a checkpoint's state, that call a file by such a name: nothing outside is opened.

    Opens are those that strace sees; where it cannot be had, those of Python's own audit hook, and a note says so.
    """
    scratch.mkdir(parents=True)
    why, log = cannot_trace(), scratch / "opens.strace"
    verb = fork(partial(_refuse_all, scratch, log if why else None), scratch / "output.txt", stopped=not why)
    ended = verb.wait() if why else traced(verb, "-e", "trace=open,openat,openat2,creat", log=log)
    assert ended.code == 0, ended.output[-600:]
    opened = [(path, path) for path in log.read_text().splitlines()] if why else _opens(log)
    cases, inside, count = 0, "", 0
    for asked, got in opened:
        folder, _, name = asked.rpartition("/")
        if name in (_BEGIN, _END):
            cases, inside = cases + (name == _BEGIN), folder if name == _BEGIN else ""
        elif inside:
            count += 1
            for path in (asked, got):
                assert path.startswith((f"{inside}/", *_OURS)), f"{inside}: {path} was opened"
    assert cases == 2 * len(NAMES) and count > cases, f"only {cases} cases and {count} opens were seen"
    note = f"{cases} names, {count} opens seen by {'the audit hook: ' + why if why else 'strace'}, none outside"
    return {"refused": cases, "opens": count, "note": note}


_OURS = (sys.prefix, sys.base_prefix, str(Path(__file__).parents[2]), "/proc/self/fd/")
"""Where Python reads its own modules, for those it imports late."""


def _refuse_all(scratch: Path, opens: Path | None) -> None:
    """Read every specimen with every name; between two marks, files that are not there, stand the opens of one."""
    watching: list[str] = []

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            watching.append(str(Path.cwd() / os.fsdecode(arguments[0])))

    if opens:
        sys.addaudithook(watch)
    for number, (kind, name) in enumerate(product(("manifest", "checkpoint"), NAMES)):
        specimen = KINDS[kind](scratch / kind / str(number))
        path = (
            specimen.files[1] if kind == "manifest" else next(one for one in specimen.files if one.name == "state.json")
        )
        (path.parent / "link.safetensors").symlink_to("/etc/passwd")
        os.mkfifo(path.parent / "fifo.safetensors")
        rename_inside(path, name)
        _mark(specimen.folder / _BEGIN)
        told = _told(partial(specimen.read, path))
        _mark(specimen.folder / _END)
        assert told is not None, f"{kind}: {name[:40]!r} was accepted"
        check_line(told, specimen.folder, f"{kind} {name[:40]!r}")
    if opens:
        opens.write_text("\n".join(watching))


def _mark(path: Path) -> None:
    with suppress(FileNotFoundError):
        os.close(os.open(path, os.O_RDONLY))


def _opens(log: Path) -> Iterator[tuple[str, str]]:
    """Of each open of a log the path asked for and the one that was got, both from the root and without dots."""
    for call in calls(log):
        asked = os.path.normpath(Path(call.file or "/", call.paths[0]))
        yield asked, call.opened or asked


# ---- C3: bombs ----------------------------------------------------------------------------------


_BOMBS, _SMALL_BOMBS = {"size": 61_000_000, "string": 99_000_000}, {"size": 6_000_000, "string": 6_000_000}


def bombs(scratch: Path, *, size: int, string: int) -> dict[str, int]:
    """Small or empty files that would be large, slow or deep in memory."""
    specimens = {kind: KINDS[kind](scratch / kind) for kind in KINDS}
    place = {kind: specimen.files[0] for kind, specimen in specimens.items()}
    weights = specimens["checkpoint"].files[1]
    headers = {"many empty tensors": _empty_tensors(size), "a long string": _long_string(string)}
    for (name, content), kind, path in (
        (bomb, *where) for bomb in headers.items() for where in (("shard", place["shard"]), ("checkpoint", weights))
    ):
        _explode(specimens[kind], path, content, f"{name} in a {kind}", seconds=0.1, extra=20e6)
    texts = {
        "deep": b"[" * 100_000 + b"]" * 100_000,
        "wide": b"[" + b"[]," * (min(size, 15_000_000) // 3) + b"0]",
        "long numbers": b"[" + b"9" * 100_000 + b"]",
        "one long string": b'"' + b"x" * min(size, 15_000_000) + b'"',
        "sparse": 200_000_000,
    }
    for name, content in texts.items():
        for kind in ("manifest", "features", "checkpoint", "config"):
            _explode(specimens[kind], place[kind], content, f"{name} in a {kind}", seconds=SECONDS, extra=BYTES)
    _expand(scratch / "expand")
    return {"bombs": 2 * len(headers) + 4 * len(texts) + 1}


def _explode(specimen: Specimen, path: Path, content: bytes | int, what: str, *, seconds: float, extra: float) -> None:
    whole = path.read_bytes()
    if isinstance(content, int):
        os.truncate(path, content)
    else:
        path.write_bytes(content)
    before, started = _peak_from_here(), time.monotonic()
    told = _told(partial(specimen.read, path))
    took, held = time.monotonic() - started, _peak() - before
    path.write_bytes(whole)
    assert told is not None, f"{what} was accepted"
    check_line(told, specimen.folder, what)
    assert took < seconds and held < extra, f"{what}: {took:.2f} s and {held / 1e6:.0f} MB"


def _empty_tensors(size: int) -> bytes:
    entry = '"{:09d}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'
    text = "{" + ",".join(entry.format(number) for number in range(size // 62)) + "}"
    return struct.pack("<Q", len(text)) + text.encode()


def _long_string(size: int) -> bytes:
    text = b'{"__metadata__":{"a":"' + b"x" * size + b'"}}'
    return struct.pack("<Q", len(text)) + text


def _expand(folder: Path) -> None:
    """A pickle of one number that says it is 10^12 of them, read with leave to."""
    path = _dictionary_learning(folder)
    torch.save({"encoder.weight": torch.zeros(1).expand(10**6, 10**6)}, path)
    started = time.monotonic()
    told = _told(lambda: load_dictionary(folder, Run(folder / "run"), model="m", asked=POINT, allow_pickle=True))
    took = time.monotonic() - started
    assert told is not None and took < 5.0, f"{path.stat().st_size} bytes of expand: {told}, {took:.1f} s"
    check_line(told, folder, "the expand bomb")


def _dictionary_learning(folder: Path) -> Path:
    """Where its weights go, beside settings that are right."""
    folder.mkdir(parents=True)
    sizes = {"activation_dim": 4, "dict_size": 6, "k": 2, "submodule_name": "resid_post_layer_1"}
    (folder / "config.json").write_text(json.dumps({"trainer": {"dict_class": "AutoEncoderTopK", **sizes}}))
    return folder / "ae.pt"


# ---- C4: code -----------------------------------------------------------------------------------


class _Canary:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (str(self._path), "w")


def code_execution(ground: Ground, scratch: Path) -> dict[str, int]:
    """Files that run code when they are unpickled, in every place a file is read from: none of them runs."""
    scratch.mkdir(parents=True)
    canary = scratch / "canary"
    evil = pickle.dumps(_Canary(canary))
    pickle.loads(evil).close()
    assert canary.exists(), "the canary itself does not work"
    canary.unlink()
    tried_count = 0
    for what, read in _attacks(scratch, canary, evil):
        told = _told(read)
        assert not canary.exists(), f"{what} ran code"
        assert told is not None, f"{what} was accepted"
        check_line(told, scratch, what)
        tried_count += 1
    for what, files_of_model in _evil_models(canary, evil).items():
        model = scratch / what
        shutil.copytree(ground.model, model)
        for name, content in files_of_model.items():
            (model / name).write_bytes(content)
        if "pytorch_model.bin" in files_of_model:
            (model / "model.safetensors").unlink()
        ended = ground.start(
            ["collect", "--model", str(model), "--run_dir", str(scratch / "run"), *ground.corpora]
        ).wait()
        assert not canary.exists(), f"{what} ran code"
        assert ended.code == 2 and "Traceback" not in ended.output, f"{what}: exit {ended.code}: {ended.output[-300:]}"
        tried_count += 1
    return {"files": tried_count}


def _attacks(scratch: Path, canary: Path, evil: bytes) -> Iterator[tuple[str, Callable[[], object]]]:
    for allow in (False, True):
        for name, save in {
            "zip": lambda path: torch.save({"encoder.weight": _Canary(canary)}, path),
            "legacy": lambda path: torch.save({"k": _Canary(canary)}, path, _use_new_zipfile_serialization=False),
            "bare": lambda path: path.write_bytes(evil),
        }.items():
            folder = scratch / f"ae-{name}-{allow}"
            save(_dictionary_learning(folder))
            yield f"ae.pt ({name}, {allow=})", partial(_load, folder, allow)
    for name, spoilt in {"params.npz": evil, "sae.safetensors": evil, "cfg.json": evil}.items():
        folder = scratch / f"as-{name}"
        folder.mkdir()
        (folder / "cfg.json").write_text('{"d_in": 4, "k": 1, "num_latents": 6}')
        (folder / name).write_bytes(spoilt)
        yield name, partial(_load, folder, True)
    objects = scratch / "objects"
    objects.mkdir()
    arrays = {name: np.array([_Canary(canary)], object) for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")}
    np.savez(objects / "params.npz", **arrays, allow_pickle=True)
    yield "params.npz of objects", partial(_load, objects, True)
    for kind in KINDS:
        specimen = KINDS[kind](scratch / f"kind-{kind}")
        for path in specimen.files:
            whole = path.read_bytes()
            path.write_bytes(evil)
            (path.parent / ".metadata").write_bytes(evil)
            yield f"{path.name} of a {kind}", partial(specimen.read, path)
            path.write_bytes(whole)


def _evil_models(canary: Path, evil: bytes) -> dict[str, dict[str, bytes]]:
    """Files of a model folder: pickled weights, and code of its own that only ``trust_remote_code`` would run."""
    code = f"open({str(canary)!r}, 'w').close()\nclass Own: pass\n".encode()
    own = {"auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}, "model_type": "own-made"}
    return {
        "pickled": {"pytorch_model.bin": evil},
        "own-code": {"config.json": json.dumps(own).encode(), "own.py": code},
    }


def _load(folder: Path, allow_pickle: bool) -> object:
    return load_dictionary(folder, Run(folder / "run"), model="m", asked=POINT, allow_pickle=allow_pickle)


# ---- C5: what the package may not say -----------------------------------------------------------

_PICKLED, _FILES = "sae_forge/sae/formats/pickled.py", "sae_forge/store/files.py"
_CHECKSUMS = "sae_forge/pipeline/verify.py"
_STORED = "sae_forge/sae/formats/stored.py"
"""Reads a zip in which nothing is compressed, and refuses any other."""
_WRITTEN = "sae_forge/sae/formats/written.py"
"""Writes a pickle of tensors where the tool that reads it opens nothing else."""
_TRACKED = "sae_forge/training/tracking.py"
"""Starts this package anew, for a tracker's client to run in."""
_DIRECTORY = "sae_forge/sae/directory.py"
"""Reads the YAML of an installed package, which can run code as it is."""
_TEXTS, _RECORDS = "sae_forge/data/texts/formats.py", "sae_forge/data/texts/records.py"
"""The first reads packed text, a bounded line at a time; the second says what goes wrong there."""
_FAMILIAR = "sae_forge/tasks/memorisation.py"
"""Packs a text to see how short it becomes, and unpacks nothing."""
BANNED_MODULES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"), ()),
    **dict.fromkeys(("copyreg", "ruamel", "tarfile", "ctypes"), ()),
    **dict.fromkeys(("bz2", "gzip"), (_TEXTS,)),
    "yaml": (_DIRECTORY,),
    "torch.distributed.checkpoint": (), "zipfile": (_STORED,), "subprocess": (_PICKLED, _TRACKED),
    "lzma": (_TEXTS, _RECORDS), "zlib": (_CHECKSUMS, _STORED, _RECORDS, _FAMILIAR),
}  # fmt: skip
"""Modules that nothing may import, and who alone may."""
BANNED_CALLS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("np.load", "numpy.load", "eval", "exec", "__import__"), ()),
    **dict.fromkeys(("os.system", "os.popen", "shutil.move"), ()),
    "np.memmap": ("sae_forge/models/digest.py", "sae_forge/models/gguf/weights.py"),
    "torch.load": (_PICKLED,), "torch.save": (_WRITTEN,), "os.rename": (_FILES,), "os.replace": (_FILES,),
}  # fmt: skip
BANNED_WORDS = ("trust_remote_code", "allow_pickle", "shell")
"""Keyword arguments that may not be given as True."""


def bans(scratch: Path) -> dict[str, int]:
    """The package's own syntax trees: no pickle, no YAML, no archive, no foreign code, no final name but by publish."""
    del scratch
    root = Path(__file__).parents[2]
    sources = sorted([*root.glob("sae_forge/**/*.py"), *root.glob("cli/**/*.py"), root / "main.py"])
    for path in sources:
        name = path.relative_to(root).as_posix()
        for node in ast.walk(ast.parse(path.read_text())):
            for said in _said(node):
                assert said is None, f"{name}:{getattr(node, 'lineno', 0)} says {said}"
            if isinstance(node, ast.Import | ast.ImportFrom):
                _allowed(_modules(node), BANNED_MODULES, name)
            elif isinstance(node, ast.Call):
                _allowed([ast.unparse(node.func)], BANNED_CALLS, name)
                renames = isinstance(node.func, ast.Attribute) and node.func.attr == "rename"
                assert not renames or name == _FILES, f"{name}:{node.lineno} gives a file its name"
    return {"files": len(sources)}


def _said(node: ast.AST) -> Iterator[str | None]:
    if isinstance(node, ast.keyword) and node.arg in BANNED_WORDS:
        yield f"{node.arg}=True" if isinstance(node.value, ast.Constant) and node.value.value is True else None


def _modules(node: ast.Import | ast.ImportFrom) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]


def _allowed(found: list[str], banned: dict[str, tuple[str, ...]], file: str) -> None:
    for name in found:
        for forbidden, exempt in banned.items():
            hit = name == forbidden or (banned is BANNED_MODULES and name.startswith(f"{forbidden}."))
            assert not hit or file in exempt, f"{file} uses {name}"


# ---- C6: links ----------------------------------------------------------------------------------


SHAPES = ("outside", "beside", "neighbour", "relative", "dangling", "itself", "folder", "device", "fifo")


def links(scratch: Path) -> dict[str, Any]:
    """A link in a file's place: to a copy, outside, beside or relative; to a neighbour, to nothing, to itself; to a
    folder, a device, a pipe.

    All are refused where only our own files may stand. What ``--sae`` names may be links, as the Hub's cache is: there
    a link to the whole file is followed, and every other refused like the damaged file it leads to.
    """
    count = 0
    for kind in ("shard", "manifest", "checkpoint"):
        specimen = KINDS[kind](scratch / kind)
        for path, shape in product(specimen.files, SHAPES):
            what = f"{path.name} as a link ({shape})"
            with _linked(path, shape, scratch / "copy"), _alarm(5, what):
                told = _told(partial(specimen.read, path))
            if path.parent.name == "sae" and shape in ("outside", "beside", "relative"):
                assert told is None, f"{what} was refused: {told}"
            else:
                assert told is not None, f"{what} was accepted"
                check_line(told, specimen.folder, what)
            count += 1
    return {"links": count + _linked_checkpoint(scratch / "folder")}


@contextmanager
def _linked(path: Path, shape: str, copy: Path) -> Iterator[None]:
    """In the block a link of this shape stands in the file's place."""
    whole, near, fifo = path.read_bytes(), path.with_name(".copy"), copy.with_name("fifo")
    neighbour = next(one for one in sorted(path.parent.iterdir()) if one != path)
    target = {
        "outside": copy, "beside": near, "neighbour": neighbour, "relative": Path(os.path.relpath(copy, path.parent)),
        "dangling": copy.with_name("none"), "itself": path, "folder": copy.parent, "device": Path("/dev/zero"),
        "fifo": fifo,
    }[shape]  # fmt: skip
    copy.write_bytes(whole)
    near.write_bytes(whole)
    if not fifo.exists():
        os.mkfifo(fifo)
    path.unlink()
    path.symlink_to(target)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        near.unlink(missing_ok=True)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(whole)


@contextmanager
def _alarm(seconds: float, what: str) -> Iterator[None]:
    """A block that waits for ever, as on a pipe that nobody writes to, fails."""

    def ring(*_: object) -> None:
        raise AssertionError(f"{what}: it took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _linked_checkpoint(scratch: Path) -> int:
    """A whole checkpoint behind a link is none: training begins without it."""
    specimen = KINDS["checkpoint"](scratch)
    step = next(path.parent for path in specimen.files if path.name == "state.json")
    step.rename(scratch / "elsewhere")
    step.symlink_to(scratch / "elsewhere")
    found = load_checkpoint(step.parent, TopKSAE(5, 11, 2), SILENT)
    assert found is None, "a link to a checkpoint was followed"
    assert (scratch / "elsewhere" / "state.json").exists(), "what a link leads to was removed"
    return 1
