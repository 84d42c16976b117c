"""Group B: no flipped bit, no cut file and no foreign shard is read as if it were whole; the file is named."""

import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from sae_forge.data.manifest import FORMAT, MANIFEST, Fingerprint, Manifest, Sidecar, shard_name
from sae_forge.data.shard_file import ShardFile
from sae_forge.data.shards import ShardReader, ShardWriter, find_shards
from sae_forge.data.windows import WindowPlan
from sae_forge.errors import DataError, ForgeError
from sae_forge.features.selection import Selection
from sae_forge.features.sparsity_files import NAMES, read_sparsity
from sae_forge.pipeline.streaming import PLAN, RECORD
from sae_forge.pipeline.verify import verify
from sae_forge.sae.store import load_sae
from sae_forge.store import files
from sae_forge.store.runs import Run
from sae_forge.training.state import verify_checkpoint
from tests.acceptance.harness import FEW, Ground, Kind, Result, differences, fork, judge

UNREAD = (".png", ".html")
"""Made for people and read by no verb but ``verify``."""


def kinds(ground: Ground) -> dict[str, Kind]:
    """The cases of the group, by kind."""
    return {
        name: partial(work, ground)
        for name, work in {
            "B1": a_flip_in_every_file, "B1.int8": a_flip_in_int8_shards, "B1.windows": a_flip_in_windows,
            "B2": random_flips, "B2.windows": random_flips_in_windows, "B3": truncations,
            "B4": fingerprints, "B5": mixed_shards, "B6": missing_and_stray, "B7": not_finite, "B8": cost,
        }.items()
    }  # fmt: skip


def _files(run: Path) -> list[Path]:
    """Files of a run that hold something, relative to it; logs and locks apart."""
    found = [path.relative_to(run) for path in sorted(run.rglob("*")) if path.is_file() and path.name != ".lock"]
    return [path for path in found if path.parts[0] != "logs"]


def flip(path: Path, byte: int, bit: int) -> None:
    """Turn one bit of a file around."""
    content = bytearray(path.read_bytes())
    content[byte] ^= 1 << bit
    path.write_bytes(content)


# ---- B1: through the command line ---------------------------------------------------------------


def a_flip_in_every_file(ground: Ground) -> Iterator[Result]:
    """One bit of each file turned: ``verify`` ends with 2 and names it, and so does the verb that reads it."""
    yield from _flips(ground, "B1", ground.whole, _files(ground.whole))


def a_flip_in_int8_shards(ground: Ground) -> Iterator[Result]:
    """The same of rows stored as int8 with a scale each: shards and records of one corpus."""
    whole, stored = ground.fresh(), (*FEW, "--storage_dtype", "int8")
    ground.finish(ground.arguments("collect", whole, *stored))
    ground.finish(ground.arguments("train", whole))
    folder = find_shards(whole)[0].relative_to(whole)
    yield from _flips(ground, "B1.int8", whole, [path for path in _files(whole) if path.parent == folder], *stored)


def a_flip_in_windows(ground: Ground) -> Iterator[Result]:
    """The same of a training on windows that was stopped; a damaged window is named and collected again."""
    whole, done = ground.windowed, ground.fresh(ground.windowed)
    ground.finish(ground.in_turns(done))
    paths = _files_of_windows(whole)
    paths = paths[:: len(paths) - 1] if ground.smoke else paths
    yield from _flips(ground, "B1.windows", whole, paths)
    for path in paths:
        if path.name in (PLAN, RECORD):
            continue
        run = ground.fresh(whole)
        flip(run / path, ground.draw.randrange((run / path).stat().st_size), ground.draw.randrange(8))
        ended = ground.start(ground.in_turns(run)).wait()
        said = [] if str(run / path) in ended.output else ["training does not name it"]
        yield judge(f"B1.windows.again {path}", ended.flaws(0) + said + differences(run, done))
        shutil.rmtree(run)


def _files_of_windows(run: Path) -> list[Path]:
    return [path for path in _files(run) if path.parts[0] == "windows"]


def _flips(ground: Ground, kind: str, whole: Path, paths: list[Path], *collected: str) -> Iterator[Result]:
    """A flip in each of these files of a run; ``collected`` is how it was, where that is not as always."""
    run = ground.fresh(whole)
    ended = ground.start(["verify", "--run_dir", str(run)]).wait()
    yield judge(f"{kind} whole", ended.flaws(0))
    for path in paths:
        content = (run / path).read_bytes()
        flip(run / path, ground.draw.randrange(len(content)), ground.draw.randrange(8))
        ended = ground.start(["verify", "--run_dir", str(run)]).wait()
        found = [] if ended.code == 2 else [f"verify ended with {ended.code}"]
        found += [] if str(run / path) in ended.output else ["verify does not name it"]
        yield judge(f"{kind}.verify {path}", found)
        if command := _reading_verb(ground, run, path):
            command += collected if command[0] == "collect" else ()
            ended = ground.start(command).wait()
            yield judge(f"{kind}.{command[0]} {path}", ended.flaws(2, path.name))
        (run / path).write_bytes(content)
        assert not differences(run, whole), "a verb that should have refused has written"


def _reading_verb(ground: Ground, run: Path, path: Path) -> list[str]:
    """A verb that reads this file and must refuse; none for checkpoints, which have others to fall back on."""
    match path.parts[0]:
        case "run.json":
            return ground.arguments("collect", run)
        case "shards" if path.suffix == ".safetensors" or path.name.startswith("shard-"):
            return ground.arguments("features", run, "--num_features", "3")
        case "shards":
            return ground.arguments("collect", run)
        case "saes" if {"checkpoints", "level"}.isdisjoint(path.parts) and "-s0" in path.parts[2]:
            return ground.arguments("train", run)
        case "features" if path.suffix == ".json":
            return ground.arguments("report", run)
        case "windows" if path.name in (PLAN, RECORD):
            return ground.in_turns(run)
    return []


# ---- B2, B3: in this process --------------------------------------------------------------------


def _read(run: Path, path: Path) -> None:
    """Read a file as the verbs read it."""
    folder = (run / path).parent
    if path.parts[0] in ("shards", "windows") and (path.name == MANIFEST or path.name.startswith("shard-")):
        for _ in ShardReader(folder).iter_blocks():
            pass
    elif folder.parent.name in ("checkpoints", "level"):
        verify_checkpoint(folder, path.name)
    elif path.name in ("cfg.json", "sae_weights.safetensors"):
        load_sae(folder)
    elif path.parts[0] == "features" and path.suffix == ".json":
        Selection.load(run / path)
    elif path.name in NAMES.values():
        read_sparsity(folder)
    elif path.name == PLAN:
        WindowPlan.read(run / path)
    elif path.suffix in UNREAD:
        for damaged in verify(Run(run)).metrics["damaged"]:
            raise DataError(damaged["reason"])
    else:
        files.read_json(run / path, kind=DataError, what="a record")


def _noticed(run: Path, path: Path) -> str:
    """What is wrong with how damage was answered; nothing when the file was refused by name in one line."""
    try:
        _read(run, path)
    except ForgeError as error:
        text = str(error)
        return "" if path.name in text and "\n" not in text else f"not named, or several lines: {text[:200]}"
    except Exception as error:  # noqa: BLE001 (any other is the finding)
        return f"{type(error).__name__}: {error}"
    return "read as if it were whole"


def random_flips(ground: Ground) -> Iterator[Result]:
    """1000 single bits, drawn uniformly over all bytes of a run: refused by what reads them."""
    yield _drawn_flips(ground, "B2", ground.whole, _files(ground.whole), 40 if ground.smoke else 1000)


def random_flips_in_windows(ground: Ground) -> Iterator[Result]:
    """200 in the plan, the record and the shards of a training on windows that was stopped."""
    paths = _files_of_windows(ground.windowed)
    yield _drawn_flips(ground, "B2.windows", ground.windowed, paths, 20 if ground.smoke else 200)


def _drawn_flips(ground: Ground, case: str, whole: Path, paths: list[Path], count: int) -> Result:
    run = ground.fresh(whole)
    found = [reason for path in paths if (reason := _noticed(run, path)) != "read as if it were whole"]
    sizes = [(run / path).stat().st_size for path in paths]
    for path in ground.draw.choices(paths, sizes, k=count):
        content = (run / path).read_bytes()
        byte, bit = ground.draw.randrange(len(content)), ground.draw.randrange(8)
        flip(run / path, byte, bit)
        if reason := _noticed(run, path):
            found.append(f"{path} byte {byte} bit {bit}: {reason}")
        (run / path).write_bytes(content)
    note = f"{count - len(found)} of {count} flips refused by name"
    return judge(case, found, flips=count, bytes=sum(sizes), note=note)


def truncations(ground: Ground) -> Iterator[Result]:
    """Every length of one small shard below its own, and three beyond it."""
    folder = ground.root / "small-shard"
    with ShardWriter(folder, _made_up(d_in=3), shard_rows=10_000) as writer:
        ids = torch.arange(64)
        writer.write_batch(0, torch.randn(64, 3, generator=torch.Generator().manual_seed(0)), ids, ids, ids)
        writer.finish()
    path = Path("shards/corpus/point") / shard_name(0)
    run = ground.fresh()
    shutil.copytree(folder, (run / path).parent)
    whole = (run / path).read_bytes()
    lengths = [*range(0, len(whole), 40 if ground.smoke else 1)]
    found = []
    for content in [*(whole[:length] for length in lengths), *(whole + b"\0" * more for more in (1, 8, 4096))]:
        (run / path).write_bytes(content)
        if reason := _noticed(run, path):
            found.append(f"{len(content)} bytes: {reason}")
    yield judge("B3", found, lengths=len(lengths) + 3, note=f"{len(lengths) + 3} lengths of a shard of {len(whole)} B")


def _made_up(**changes: Any) -> Fingerprint:
    given = {"model": "tiny", "weights": "0" * 64, "tokenizer": "1" * 64, "hook_point": "blocks.1.hook_resid_post"}
    given |= {"d_in": 8, "storage_dtype": "fp32", "ctx_len": 512, "bos": "row", "batch_size": 64, "max_tokens": None}
    given |= {"corpus": "gnomes", "source": "world:corpora/gnomes", "role": "retain"}
    return Fingerprint(**{**given, **changes})


# ---- B4, B5, B6: foreign shards -----------------------------------------------------------------

OTHER = {"d_in": 25, "storage_dtype": "bf16", "ctx_len": 25, "batch_size": 5, "max_tokens": 9, "format": FORMAT + 1}
OTHER |= {"first_batch": 1, "end_batch": 9}


def _reseal(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the body of every sidecar and of the manifest, and give each the seal that goes with it."""
    for path in (*sorted(folder.glob("shard-*.json")), folder / MANIFEST):
        body = files.read_json(path, kind=DataError, what="a record")
        change(body)
        files.publish_json(path, body)


def fingerprints(ground: Ground) -> Iterator[Result]:
    """Shards whole in themselves, one field of which says that they were made in another way: refused by its name."""
    names = list(asdict(_made_up()))
    for name in names[:2] if ground.smoke else names:
        run = ground.fresh(ground.collected)
        folder = find_shards(run)[0]
        found = Manifest.read(folder).fingerprint
        other = OTHER.get(name, "other")
        _reseal(folder, lambda body, name=name, other=other: body["fingerprint"].update({name: other}))
        ended = ground.start(ground.arguments("collect", run)).wait()
        words = (name, "expected") if name not in ("format",) else ("format",)
        yield judge(f"B4 {name}", ended.flaws(2, *words), was=str(getattr(found, name))[:40])
        shutil.rmtree(run)


def _mutations() -> dict[str, Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]]:
    """Ways in which a shard's tensors can be those of another kind."""
    found: dict[str, Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]] = {}
    for name in ("acts", "seq_ids", "positions", "token_ids"):
        found[f"{name} dropped"] = lambda t, n=name: {key: value for key, value in t.items() if key != n}
        found[f"{name} renamed"] = lambda t, n=name: {f"{n}_" if key == n else key: value for key, value in t.items()}
        found[f"{name} a row short"] = lambda t, n=name: {**t, n: t[n][:-1].clone()}
        found[f"{name} of another dtype"] = lambda t, n=name: {**t, n: t[n].to(torch.float16)}
    found["acts a column short"] = lambda t: {**t, "acts": t["acts"][:, :-1].clone()}
    found["acts transposed"] = lambda t: {**t, "acts": t["acts"].T.contiguous()}
    found["rows in another order"] = lambda t: {key: value.flip(0) for key, value in t.items()}
    found["one tensor more"] = lambda t: {**t, "more": torch.zeros(3)}
    return found


def mixed_shards(ground: Ground) -> Iterator[Result]:
    """20 shards whose tensors are not what their sidecar says: refused before the first step."""
    mutations = list(_mutations().items())
    for name, change in mutations[::7] if ground.smoke else mutations:
        run = ground.fresh(ground.collected)
        path = find_shards(run)[0] / shard_name(1)
        save_file(change(load_file(path)), path)
        ended = ground.start(ground.arguments("train", run)).wait()
        found = ended.flaws(2, path.name)
        found += ["a step was taken"] if any("{" in log.read_text() for log in run.glob("logs/train-*")) else []
        yield judge(f"B5 {name}", found)
        shutil.rmtree(run)


def missing_and_stray(ground: Ground) -> Iterator[Result]:
    """A shard missing, doubled, renamed or swapped is refused by name; one too many is ignored and said."""
    changes: dict[str, Callable[[Path, Path], object]] = {
        "missing": lambda one, two: one.unlink(),
        "doubled": lambda one, two: shutil.copy(one, two),
        "renamed": lambda one, two: one.rename(one.with_name(shard_name(77))),
        "swapped": lambda one, two: (
            one.rename(one.with_suffix(".x")),
            two.rename(one),
            one.with_suffix(".x").rename(two),
        ),
    }
    for name, change in changes.items():
        run = ground.fresh(ground.collected)
        folder = find_shards(run)[0]
        change(folder / shard_name(0), folder / shard_name(1))
        ended = ground.start(ground.arguments("train", run)).wait()
        yield judge(f"B6 {name}", ended.flaws(2, "shard-0000"))
        shutil.rmtree(run)
    run = ground.fresh(ground.collected)
    folder = find_shards(run)[0]
    shutil.copy(folder / shard_name(0), folder / shard_name(99))
    ended = ground.start(ground.arguments("train", run)).wait()
    said = [] if shard_name(99) in ended.output else ["the stray shard is not mentioned"]
    yield judge("B6 stray", ended.flaws(0) + said)
    shutil.rmtree(run)


# ---- B7 -----------------------------------------------------------------------------------------


def not_finite(ground: Ground) -> Iterator[Result]:
    """Rows with a NaN or an infinity planted among a thousand times as many: counted by reason, none stored."""
    bad, d_in = (100 if ground.smoke else 1000), 4
    apart = 1010  # above 0.1 % a run is refused
    rows, draw = apart * bad, torch.Generator().manual_seed(0)
    planted = apart * torch.arange(bad) + torch.randint(apart, (bad,), generator=draw)
    values = torch.tensor([torch.nan, torch.inf, -torch.inf, 7e4])  # the last overflows fp16
    acts = torch.randn(rows, d_in, generator=draw)
    acts[planted, torch.arange(bad) % d_in] = values[torch.arange(bad) % len(values)]
    folder, ids = ground.root / "planted", torch.arange(rows)
    with ShardWriter(folder, _made_up(d_in=d_in, storage_dtype="fp16"), shard_rows=200_000) as writer:
        for index, batch in enumerate(acts.split(20_000)):
            at = ids[20_000 * index :][: len(batch)]
            writer.write_batch(index, batch, at, at.int(), at.int())
        manifest = writer.finish()
    blocks = list(ShardReader(folder).iter_blocks())
    kept = torch.cat([block.seq_ids for block in blocks])
    expected = torch.ones(rows, dtype=torch.bool)
    expected[planted] = False
    wanted = {"nan": len(range(0, bad, 4)), "special": 0}
    wanted["infinite"] = bad - wanted["nan"]
    found = [] if manifest.dropped == wanted else [f"counted {manifest.dropped} where {wanted} were planted"]
    found += [] if torch.equal(kept, ids[expected]) else ["other rows were dropped than were planted"]
    found += [] if all(block.acts.isfinite().all() for block in blocks) else ["a row that is not finite is stored"]
    note = f"{manifest.dropped['nan']} NaN and {manifest.dropped['infinite']} infinite rows counted of {bad} planted"
    yield judge("B7", found, planted=bad, note=note)


# ---- B8 -----------------------------------------------------------------------------------------


def cost(ground: Ground) -> Iterator[Result]:
    """Cold sequential reads with and without checking, and ``verify`` beside them: shard by shard, in changing order.

    Judged by medians of the ratios of reads that followed one another: other work on the machine disturbs them alike.
    """
    if ground.smoke:
        yield Result("B8", "skipped", "a time means nothing beside other work; the full run measures it")
        return
    folder = ground.root / "large"
    ended = fork(lambda: _write_large(folder), ground.root / "large.txt").wait()
    assert ended.code == 0, ended.output
    scratch = ShardReader(folder).make_scratch()
    shards = [_open_shard(folder, index) for index in range(len(list(folder.glob("*.safetensors"))))]
    kinds: dict[str, Callable[[ShardFile], object]] = {
        "bare": lambda shard: _read_bare(shard.path),
        "checked": lambda shard: deque(shard.iter_acts(range(shard.block_count), scratch, cached=True), maxlen=0),
        "verify": lambda shard: shard.verify(),
    }
    names, rates = list(kinds), {name: [] for name in kinds}
    for turn, shard in enumerate(6 * shards):
        for name in names[turn % 3 :] + names[: turn % 3]:
            _forget([shard.path])
            began = time.perf_counter()
            kinds[name](shard)
            if turn >= len(shards):
                rates[name].append(shard.path.stat().st_size / (time.perf_counter() - began))
    middle = {name: median(found) for name, found in rates.items()}
    checked, verified = (
        median(rate / bare for rate, bare in zip(rates[name], rates["bare"], strict=True))
        for name in ("checked", "verify")
    )
    found = [f"reading with checks runs at {checked:.2f} of bare reads, less than 0.9"] if checked < 0.9 else []
    found += [f"verify runs at {verified:.2f} of bare reads, less than 0.8"] if verified < 0.8 else []
    facts = {f"{name}_gb_s": round(rate / 1e9, 3) for name, rate in middle.items()}
    yield judge("B8", found, **facts, note=f"checked {checked:.2f} and verify {verified:.2f} of bare cold reads")


def _write_large(folder: Path) -> None:
    """2 GiB of made-up activations, 2304 wide."""
    rows, d_in = 8192, 2304
    acts, ids = torch.randn(rows, d_in).bfloat16(), torch.arange(rows)
    with ShardWriter(folder, _made_up(d_in=d_in, storage_dtype="bf16"), shard_rows=7 * rows) as writer:
        for index in range(56):
            writer.write_batch(index, acts, ids + index * rows, ids.int(), ids.int())
        writer.finish()


def _open_shard(folder: Path, index: int) -> ShardFile:
    return ShardFile(folder, Sidecar.read(folder, index))


def _read_bare(path: Path) -> None:
    buffer = bytearray(2**20)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def _forget(paths: list[Path]) -> None:
    """Ask the system to drop these files from its cache."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)
