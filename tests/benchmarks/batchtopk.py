"""A BatchTopK step of ours against those of SAELens and dictionary_learning, and what as many steps of each come to.

All start from the same weights, take the same batches in turn and are held to one yardstick. Steps are timed in rounds,
by the time of the processor too: on a machine that others use the clock counts their work.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from made_up import CASES, Problem, Sizes, Weights, problem
from peers import DictionaryLearning, Method, Ours, SaeLens, Trainer
from timing import conditions, table, write_json
from torch import Tensor

JUDGED_BATCHES = 2
"""Batches at the end that no method was trained on."""
MADE: dict[str, Method] = {
    "sae_forge": Method(lambda given: Ours(given, architecture="batchtopk")),
    "sae_forge, clipped": Method(
        lambda given: Ours(given, architecture="batchtopk", max_grad_norm=1 / given.sizes.d_in)
    ),  # as the others, who clip at 1 a loss that is d_in times ours
    "SAELens": Method(lambda given: SaeLens(given, batch=True), "sae_lens"),
    "dictionary_learning": Method(lambda given: DictionaryLearning(given, batch=True), "dictionary_learning"),
    "dictionary_learning, einsum patched": Method(
        lambda given: DictionaryLearning(given, batch=True, patched=True), "dictionary_learning"
    ),
}
THRESHOLDS: dict[type, Callable[[Any], float]] = {
    Ours: lambda ours: float(ours.state.own["threshold"]),
    SaeLens: lambda peer: float(peer.sae.topk_threshold),
    DictionaryLearning: lambda peer: float(peer.trainer.ae.threshold),
}


def main() -> None:
    """Time the steps in turn, train on as far as was asked, and print both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--case", choices=tuple(CASES), default="small")
    for name in Sizes._fields:
        parser.add_argument(f"--{name}", type=int, help="overrides the case's")
    parser.add_argument("--methods", nargs="*", default=list(MADE))
    parser.add_argument("--rounds", type=int, default=7, help="timed steps; one before them is not counted")
    parser.add_argument("--steps", type=int, default=0, help="steps in all, the timed ones among them")
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--batches", type=int, default=8, help="taken in turn")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    asked = {name: number for name in Sizes._fields if (number := getattr(options, name))}
    sizes = CASES[options.case]._replace(**asked)
    given = problem(sizes, device=torch.device("cpu"), lr=options.lr, batches=options.batches + JUDGED_BATCHES)
    judged = torch.cat(given.batches[options.batches :])
    given = given._replace(batches=given.batches[: options.batches])
    absent = {name: MADE[name].missing for name in options.methods if MADE[name].missing}
    running = {name: MADE[name].make(given) for name in options.methods if name not in absent}
    seconds = _timed(running, given, options.rounds)
    for name, trainer in running.items():
        for number in range(options.rounds + 1, options.steps):
            trainer.step(given.batches[number % len(given.batches)])
        print(f"{name}: {max(options.steps, options.rounds + 1)} steps", flush=True)
    ends = {name: _judged(trainer, judged, sizes.k) for name, trainer in running.items()}
    shown = {"sizes": sizes._asdict(), "conditions": conditions(given.device), "absent": absent}
    shown |= {"steps": max(options.steps, options.rounds + 1), "seconds": seconds, "ends": ends}
    print(f"\n{sizes}, {shown['steps']} steps, {shown['conditions']}; absent: {absent or 'none'}\n")
    print(_table(seconds, ends, sizes.k))
    write_json(options.json, shown)


def _timed(running: dict[str, Trainer], given: Problem, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of each step of each method, of the clock and of the processor, in an order that changes."""
    names = list(running)
    seconds: dict[str, dict[str, list[float]]] = {name: {"clock": [], "processor": []} for name in names}
    for number in range(rounds + 1):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            clock, processor = time.perf_counter(), time.process_time()
            running[name].step(given.batches[number % len(given.batches)])
            if number:
                seconds[name]["clock"].append(time.perf_counter() - clock)
                seconds[name]["processor"].append(time.process_time() - processor)
    return seconds


@torch.no_grad()
def _judged(trainer: Trainer, x: Tensor, k: int) -> dict[str, float]:
    """FVU where k fire a token in the mean of all judged rows, and FVU and L0 under the trainer's own threshold."""
    W_enc, b_enc, W_dec, b_dec = Weights(*(weight.float() for weight in trainer.weights()))
    pre_acts = (x - b_dec) @ W_enc + b_enc
    acts = pre_acts.relu() * W_dec.norm(dim=1)  # what SAELens compares; rows of the others have unit norm
    spread = (x - x.mean(dim=0)).square().sum()
    equal = float(torch.topk(acts.flatten(), k * len(x), sorted=False).values.min())
    own = THRESHOLDS[type(trainer)](trainer)

    def fvu(fires: Tensor) -> float:
        return float((x - (pre_acts * fires) @ W_dec - b_dec).square().sum() / spread)

    fires = acts > max(own, 0.0)
    l0 = float(fires.sum() / len(x))
    return {"fvu": fvu(acts >= equal), "threshold": own, "saved_l0": l0, "saved_fvu": fvu(fires)}


def _table(seconds: dict[str, dict[str, list[float]]], ends: dict[str, dict[str, float]], k: int) -> str:
    ours = seconds["sae_forge"]
    rows = []
    for name, spent in seconds.items():
        cells = [name]
        for kind in ("processor", "clock"):
            over = [a / b for a, b in zip(spent[kind], ours[kind], strict=True)]
            cells += [f"{1e3 * median(spent[kind]):.0f} ({1e3 * min(spent[kind]):.0f})"]
            cells += [f"{median(over):.2f} / {min(spent[kind]) / min(ours[kind]):.2f}"]
        end = ends[name]
        rows.append((*cells, f"{end['fvu']:.4f}", f"{end['saved_fvu']:.4f} at {end['saved_l0']:.1f}"))
    head = (
        "method",
        "processor ms (min)",
        "over ours",
        "clock ms (min)",
        "over ours",
        f"FVU at L0 {k}",
        "FVU as saved",
    )
    return table(head, rows)


if __name__ == "__main__":
    main()
