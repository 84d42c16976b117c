"""``doctor``: what is installed and reachable here, and how large a model, its shards and an SAE may be."""

import os
import platform
import re
import shutil
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, version
from pathlib import Path
from textwrap import fill
from typing import Any

import huggingface_hub
import torch

import sae_forge
from sae_forge import builtin
from sae_forge.config.model import expanded
from sae_forge.models.gguf import packaged
from sae_forge.outcome import Outcome
from sae_forge.store import hub_errors
from sae_forge.store.cache import cache_folder
from sae_forge.store.runs import CHECKPOINTS, Run

LIBRARIES = ("torch", "transformers", "tokenizers", "datasets", "safetensors", "huggingface-hub")
HEADROOM = 0.8
"""Share of free memory that weights may take; a batch, its activations and Python need the rest."""
MODEL_BYTES = {"fp32": 4.0, "bf16": 2.0, "8bit": 1.0, "4bit": 0.56}
"""Bytes a parameter takes; in 4 bits with the scales of its blocks (64 weights, a float32 each)."""
TRAINING_BYTES = 16
"""Bytes a weight of an SAE takes in training: itself, its gradient and two moments of Adam, in fp32."""
ROW_BYTES = 16
"""Bytes a token takes in a shard beside its activation: seq_ids int64, positions and token_ids int32."""
WIDTHS = (768, 2048, 4096)
"""Widths of activations that stand for small, middling and 7B models."""
GB = 1e9


@dataclass(frozen=True)
class _Line:
    topic: str
    said: str
    wrong: bool = False
    """Whether nothing can be run before it is mended."""


def doctor(model: str | None, run_dir: Path | None, tokens: int) -> Outcome:
    """What this machine has and can hold; the exit code is 2 where something keeps every command from running.

    Args:
        model: One whose access is tried: on the Hub, or of those that are installed. None: none is.
        tokens: How many the shards are reckoned for.
    """
    run = Run(run_dir or CHECKPOINTS)
    memory, device = _memory()
    disk = shutil.disk_usage(_standing(run.folder)).free
    room = memory * HEADROOM
    holds = {
        "parameters": {dtype: int(room / size) for dtype, size in MODEL_BYTES.items()},
        "shards": {  # in bf16
            str(width): {"bytes": tokens * (2 * width + ROW_BYTES), "tokens": disk // (2 * width + ROW_BYTES)}
            for width in WIDTHS
        },
        "latents": {str(width): int(room / (2 * width * TRAINING_BYTES)) for width in WIDTHS},  # encoder and decoder
    }
    access = [] if model is None else [_access(model)]
    lines = [*_software(), *_places(run.folder), *access, *_told(holds, device, tokens)]
    wrong = [line for line in lines if line.wrong]
    return Outcome(
        run=run,
        outputs={},
        metrics={
            "versions": {name: _version(name) for name in LIBRARIES},
            "device": device,
            "free_memory": memory,
            "free_disk": disk,
            "cache": str(cache_folder()),
            "extras": _extras(),
            "token": huggingface_hub.get_token() is not None,
            "access": {str(model): line.said for line in access},
            "holds": holds,
            "wrong": [f"{line.topic}: {line.said}" for line in wrong],
        },
        summary="\n".join(
            fill(f"{'! ' if line.wrong else '  '}{line.topic:<11}{line.said}", 80, subsequent_indent=" " * 13)
            for line in lines
        ),
        exit_code=2 if wrong else 0,
        noted=False,
    )


def _software() -> Iterator[_Line]:
    yield _Line("sae_forge", f"{sae_forge.__version__}, Python {platform.python_version()}, {platform.machine()}")
    versions = {name: _version(name) for name in LIBRARIES}
    for topic, some in (("libraries", LIBRARIES[:3]), ("", LIBRARIES[3:])):
        yield _Line(topic, ", ".join(f"{name} {versions[name]}" for name in some))
    if absent := [name for name, number in versions.items() if number is None]:
        yield _Line("", f"{', '.join(absent)} missing: pip install sae-forge", wrong=True)
    extras = _extras()
    for state, words in ((True, "extras"), (False, "without")):
        if names := [name for name, whole in extras.items() if whole is state]:
            yield _Line(words, ", ".join(names) + ("" if state else "  (pip install 'sae-forge[NAME]')"))
    real = {name: packaged.missing_of(name) for name in packaged.MODELS}
    yield _Line("models", ", ".join([*builtin.MODELS, *(name for name, why in real.items() if why is None)]))
    for name, why in real.items():
        if why is not None:
            short = (
                "terms not accepted"
                if "Terms" in why
                else why.removeprefix(f"{name} ").removeprefix("is ").partition(": ")[0]
            )
            yield _Line("", f"{name}: {short}")


def _places(folder: Path) -> Iterator[_Line]:
    for topic, place in (("runs", folder), ("cache", cache_folder())):
        standing = _standing(place)
        writable = os.access(standing, os.W_OK)
        free = shutil.disk_usage(standing).free / GB
        named = str(place) if len(str(place)) <= 40 else f"…{str(place)[-39:]}"
        yield _Line(topic, f"{named}: {free:,.0f} GB free" if writable else f"{named} cannot be written", not writable)
    held = huggingface_hub.get_token() is not None
    yield _Line("token", "there is one" if held else "none; gated models need `hf auth login` or HF_TOKEN")


def _access(model: str) -> _Line:
    """Whether a model may be fetched, found out by fetching its smallest file."""
    if model in packaged.MODELS:
        why = packaged.missing_of(model)
        return _Line("access", f"{model}: installed" if why is None else why, why is not None)
    if expanded(model).exists() or model in builtin.MODELS:
        return _Line("access", f"{model}: on this disk")
    try:
        huggingface_hub.hf_hub_download(model, "config.json", etag_timeout=5)
    except (OSError, ValueError, RuntimeError) as error:
        asked = hub_errors.Asked(name=model, page=f"huggingface.co/{model}", flag="--model")
        return _Line("access", str(hub_errors.told(error, asked)), wrong=True)
    return _Line("access", f"{model}: granted")


def _memory() -> tuple[int, str]:
    """Bytes free where a model would go, and what that is."""
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return free, f"{torch.cuda.get_device_name()}, {total / GB:.0f} GB ({torch.cuda.device_count()} of them)"
    try:
        (kilobytes,) = re.findall(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
        free = int(kilobytes) * 1024
    except (OSError, ValueError):  # no Linux: all there is
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return free, f"CPU, {os.cpu_count()} cores"


def _told(holds: dict[str, Any], device: str, tokens: int) -> Iterator[_Line]:
    yield _Line("device", device)
    sizes = ", ".join(f"{count / GB:.1f}B in {dtype}" for dtype, count in holds["parameters"].items())
    yield _Line("holds", f"a model of {sizes}")
    for width, shards in holds["shards"].items():
        latents = holds["latents"][width]
        yield _Line(
            "" if width != str(WIDTHS[0]) else "by width",
            f"d {width}: {tokens:,} tokens {shards['bytes'] / GB:,.0f} GB, disk holds {shards['tokens'] / 1e6:,.0f}M; "
            f"SAE {latents // 1000:,}k latents",
        )


def _extras() -> dict[str, bool]:
    """Whether all packages of each extra are there."""
    return {
        extra: all(_version(package) is not None for package in packages)
        for extra, packages in _declared().items()
        if extra not in ("test", "dev")
    }


def _declared() -> dict[str, list[str]]:
    """Packages by extra: as the checkout says that runs, for what was noted when it was installed may be older."""
    pyproject = Path(sae_forge.__file__).parents[1] / "pyproject.toml"
    if pyproject.is_file():
        extras = tomllib.loads(pyproject.read_text())["project"]["optional-dependencies"]
        return {extra: [re.split(r"[^\w.-]", need)[0] for need in needs] for extra, needs in extras.items()}
    try:
        said = metadata("sae-forge")
    except PackageNotFoundError:
        return {}
    extras = {extra: [] for extra in said.get_all("Provides-Extra") or ()}
    for line in said.get_all("Requires-Dist") or ():
        if need := re.fullmatch(r"([\w.-]+).*extra == ['\"]([\w-]+)['\"].*", line):
            extras[need[2]].append(need[1])
    return extras


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _standing(place: Path) -> Path:
    """The place itself, or the folder it would be made in."""
    while not os.path.exists(place):  # noqa: PTH110 (Path.exists raises where a folder may not be looked into)
        place = place.parent
    return place
