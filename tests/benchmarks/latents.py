"""Fifty latents of a Gemma-Scope-sized SAE: alone from a cold file, again from the cache, or cut from the whole.

python tests/benchmarks/latents.py --folder SCRATCH   # 2.4 GB of disk and 1.4 GB of memory
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from timing import conditions, table, write_json

from sae_forge.errors import CheckpointError
from sae_forge.interventions.apply import delta
from sae_forge.methods.edits.scale import scale
from sae_forge.sae.filed import filed
from sae_forge.sae.formats import build
from sae_forge.sae.formats import table as formats
from sae_forge.sae.formats.format import Hints
from sae_forge.store import files
from sae_forge.store.tensors import publish_tensors

CASES = ("whole", "alone", "again")
MEANS = {"whole": "all of it", "alone": "the latents alone", "again": "the latents, from the cache"}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("d_in", 2304), ("d_sae", 65536), ("latents", 50), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--kind", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.case:
        print(json.dumps(_measured(asked.folder / asked.kind, asked.case, asked.latents)))
        return
    rows, found = [], {}
    for kind in ("safetensors", "npz"):
        _made(asked.folder / kind, kind, asked.d_in, asked.d_sae)
        runs: dict[str, list[dict[str, Any]]] = {case: [] for case in CASES}
        for _ in range(asked.rounds):
            for case in CASES:
                runs[case].append(_in_a_process_of_its_own(asked, kind, case))
        found[kind] = runs
        if len({run["edit"] for case in CASES for run in runs[case]}) != 1:
            raise SystemExit(f"{kind}: the edit is not the same to the bit")
        size = (asked.folder / kind / _weights(kind)).stat().st_size
        rows += [_row(kind, case, runs, size) for case in CASES]
    print(json.dumps(conditions(torch.device("cpu"))))
    heads = ("file", "read", "bytes", "of the file", "s", "times faster", "processor s", "times less")
    heads = (*heads, "peak MB", "kept MB")
    print(table(heads, rows))
    write_json(asked.json, {"conditions": conditions(torch.device("cpu")), "runs": found})


def _row(kind: str, case: str, runs: dict[str, list[dict[str, Any]]], size: int) -> tuple[str, ...]:
    mine, whole = ({name: median(run[name] for run in runs[each]) for name in ("read", "s", "cpu", "peak", "kept")}
                   for each in (case, "whole"))  # fmt: skip
    ratios = (f"{whole['s'] / mine['s']:.1f}", f"{whole['cpu'] / mine['cpu']:.1f}")
    return (
        kind, MEANS[case], f"{mine['read']:,.0f}", f"{mine['read'] / size:.1%}", f"{mine['s']:.3f}", ratios[0],
        f"{mine['cpu']:.3f}", ratios[1], f"{mine['peak'] / 1e6:.1f}", f"{mine['kept'] / 1e6:.1f}",
    )  # fmt: skip


def _weights(kind: str) -> str:
    return "params.npz" if kind == "npz" else "params.safetensors"


def _made(folder: Path, kind: str, d_in: int, d_sae: int) -> None:
    """A made-up SAE of Gemma Scope (``npz``) or Gemma Scope 2, row after row as those are."""
    if (folder / _weights(kind)).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    draw = torch.Generator().manual_seed(0)
    tensors = {
        "W_enc": torch.randn(d_in, d_sae, generator=draw), "b_enc": torch.randn(d_sae, generator=draw),
        "W_dec": torch.randn(d_sae, d_in, generator=draw), "b_dec": torch.randn(d_in, generator=draw),
        "threshold": 40 + torch.rand(d_sae, generator=draw),
    }  # fmt: skip
    if kind == "npz":
        arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in tensors.items()}
        np.savez(folder / "params.npz", **arrays)
    else:
        theirs = {name.lower() if name.startswith("W_") else name: tensor for name, tensor in tensors.items()}
        publish_tensors(folder / "params.safetensors", theirs)


def _in_a_process_of_its_own(asked: argparse.Namespace, kind: str, case: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--folder", str(asked.folder), "--case", case, "--kind", kind]
    command += ["--latents", str(asked.latents)]
    cache = asked.folder / "cache"
    if case == "alone":  # nothing of it is kept yet
        subprocess.run(["rm", "-rf", str(cache)], check=True)
    environment = {**os.environ, "SAE_FORGE_CACHE": str(cache)}
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)


def _measured(folder: Path, case: str, count: int) -> dict[str, Any]:
    """One cold load, and the edit that it makes, by its hash."""
    found = formats.on_disk(folder)
    assert found is not None
    told = found.format.describe(found, Hints())
    latents = torch.randperm(65536, generator=torch.Generator().manual_seed(1))[:count].tolist()
    with found.weights.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    torch.zeros(1) + 1
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak from here on, not that of the imports
    before, read = _memory("VmRSS"), _read()
    wall, cpu = time.perf_counter(), time.process_time()
    if case == "whole":
        sae: Any = build.read(found.weights, told, allow_pickle=False, what="it")
        kept = sum(each.nbytes for each in sae.parameters())
    else:
        sae = filed(found.weights, told, weights="0" * 64, centre=False)
        if sae is None:
            raise CheckpointError(f"{folder} cannot be read in part")
        kept = sum(each.nbytes for each in sae.part(latents).parameters())
    spent = {"s": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "read": _read() - read}
    peak = _memory("VmHWM") - before
    x = torch.randn(1, 64, sae.d_in, generator=torch.Generator().manual_seed(2)) * 2
    moved = delta(sae, scale(tuple(latents), -3.0), x, torch.ones(1, 64, dtype=torch.bool))
    return {**spent, "peak": peak, "kept": kept, "edit": files.digest(moved.flatten().tolist())}


def _read() -> int:
    """Bytes this process has asked files for."""
    return next(int(line.split()[1]) for line in Path("/proc/self/io").read_text().splitlines() if "rchar" in line)


def _memory(which: str) -> int:
    """Bytes this process holds (VmRSS), or held at the most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(which))


if __name__ == "__main__":
    main()
