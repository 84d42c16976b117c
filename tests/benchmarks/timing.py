"""Timing in interleaved rounds: cases that share a machine are compared within a round, never across days."""

import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch

Seconds = dict[str, list[float]]
"""Of each case, one time a round."""


def interleaved(
    cases: Mapping[str, Callable[[], object]],
    rounds: int,
    device: torch.device,
    *,
    burst: int = 1,
    record: bool = False,
) -> Seconds:
    """Every case once a round, begun by another case each time; a first round warms up and is not counted.

    Args:
        burst: Calls made in one go; a time is that of one of them. A GPU needs several for its work to hide what
            starting it costs.
        record: On a GPU, play a burst from a CUDA graph where the case can be recorded, so that no time is Python's.
    """
    names = list(cases)
    bundles = {name: _bundle(case, burst, device, record=record) for name, case in cases.items()}
    seconds: Seconds = {name: [] for name in names}
    for number in range(rounds + 1):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            spent = _timed(bundles[name], device) / burst
            if number:
                seconds[name].append(spent)
    return seconds


def _bundle(case: Callable[[], object], burst: int, device: torch.device, *, record: bool) -> Callable[[], object]:
    """As many calls as a burst has."""

    def calls() -> None:
        for _ in range(burst):
            case()

    if not record or device.type != "cuda":
        return calls
    case()  # what is compiled or allocated at the first call is no part of a recording
    _wait_for(device)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            calls()
    except RuntimeError:  # it waits for the device somewhere, so it is timed as it is
        return calls
    return graph.replay


def _timed(case: Callable[[], object], device: torch.device) -> float:
    _wait_for(device)
    start = time.perf_counter()
    case()
    _wait_for(device)
    return time.perf_counter() - start


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ratios(over: list[float], under: list[float]) -> tuple[float, float]:
    """The median of each round's ratio, and the ratio of the minima."""
    return median(a / b for a, b in zip(over, under, strict=True)), min(over) / min(under)


def milliseconds(seconds: list[float]) -> tuple[float, float]:
    """Median and minimum."""
    return 1e3 * median(seconds), 1e3 * min(seconds)


def both(pair: tuple[float, float], digits: int = 2) -> str:
    """Median and minimum in one cell of a table."""
    return f"{pair[0]:.{digits}f} / {pair[1]:.{digits}f}"


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def conditions(device: torch.device) -> dict[str, Any]:
    """What a number depends on beside the code, without the machine's name."""
    on_card = device.type == "cuda"
    return {
        "date": time.strftime("%Y-%m-%d"),
        "device": torch.cuda.get_device_name(device) if on_card else f"{os.cpu_count()} CPU cores",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "load": [round(load, 2) for load in os.getloadavg()],
    }


def write_json(path: Path | None, found: dict[str, Any]) -> None:
    """Keep the measurements, round by round, where a file was asked for."""
    if path is not None:
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
