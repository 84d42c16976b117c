"""Which peak rate an SAE wants for how many steps: FVU of rows held out, over rates, steps, widths, k and batches.

Every tenth sequence is held out; sinks are left out of both. A result is a line of ``--log``, and a line that is
there is not made again: stop it at any time, and the same command goes on. Activations are those of any run::

    sae-forge collect --model tiny-llama --run_dir checkpoints/rates
    python tests/benchmarks/rates.py --run_dir checkpoints/rates --layer 1 --d_sae 3072 --k 16 --log rates.jsonl
"""

import argparse
import itertools
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from timing import table
from torch import Tensor

from sae_forge.config.train import SaeShape, TrainConfig
from sae_forge.data.shards import ShardReader, find_shards
from sae_forge.data.sinks import CENSUS_ROWS, sink_norm, without_sinks
from sae_forge.hookpoint import HookPoint
from sae_forge.rng import generator, torch_seed
from sae_forge.sae.losses import FvuMeter
from sae_forge.sae.topk import TopKSAE
from sae_forge.training.initialisation import SAMPLE_ROWS, centre, input_scale
from sae_forge.training.plan import Plan
from sae_forge.training.state import TrainState
from sae_forge.training.step import train_step

HELD_OUT = 10
"""One sequence of so many is held out."""


def per_width(d_sae: int) -> float:
    """What rates are told in: the rate of Gao et al. 2024 for very long runs."""
    return 2e-4 / math.sqrt(d_sae / 16_384)


class Rows(NamedTuple):
    """Activations, in the order of the corpora."""

    train: Float[Tensor, "rows d_in"]
    held_out: Float[Tensor, "rows d_in"]


def main() -> None:
    """Train what is not in the log yet, then print all that is, best first in every group."""
    options = _options()
    kept = _read_log(options.log)
    deadline = time.monotonic() + 60 * options.minutes
    rows = _load(options.run_dir, HookPoint(options.layer))
    name = f"{options.run_dir.name}-{options.layer}"
    for case in _cases(options, name):
        if any(case.items() <= line.items() for line in kept):
            continue
        if time.monotonic() > deadline:
            break
        kept.append(case | _trained(rows, case))
        with options.log.open("a", encoding="utf-8") as log:
            log.write(json.dumps(kept[-1]) + "\n")
    print(_told(kept))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run_dir", type=Path, required=True, help="a run that has collected")
    parser.add_argument("--layer", type=int, required=True)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=7, help="begin no training after so many")
    numbers = {"d_sae": [4608], "k": [32], "batch": [2048], "steps": [100, 500], "seeds": [0]}
    for option, default in numbers.items():
        parser.add_argument(f"--{option}", type=int, nargs="+", default=default)
    parser.add_argument("--times", type=float, nargs="+", default=[1, 2, 4, 8, 16], help="of 2e-4 / sqrt(d_sae/16384)")
    parser.add_argument("--warmup", type=float, nargs="+", default=[0.05])
    parser.add_argument("--decay", type=float, nargs="+", default=[0.2])
    return parser.parse_args()


def _cases(options: argparse.Namespace, name: str) -> Iterator[dict[str, Any]]:
    axes = ("d_sae", "k", "batch", "steps", "times", "warmup", "decay", "seeds")
    for values in itertools.product(*(getattr(options, axis) for axis in axes)):
        case = dict(zip(axes, values, strict=True))
        yield {"rows": name, **case, "seed": case.pop("seeds")}


def _read_log(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []


def _load(run: Path, point: HookPoint) -> Rows:
    parts: tuple[list[Tensor], list[Tensor]] = ([], [])
    for reader in map(ShardReader, find_shards(run, str(point))):
        for block in reader.iter_blocks():
            out = block.seq_ids % HELD_OUT == HELD_OUT - 1
            for part, chosen in zip(parts, (~out, out), strict=True):
                part.append(block.acts[chosen])
    found = Rows(*map(torch.cat, parts))
    norm = sink_norm(found.train)
    rows = Rows(*(without_sinks(part, norm) for part in found))
    left = sum(map(len, found)) - sum(map(len, rows))
    print(f"{len(rows.train):,} rows to train on, {len(rows.held_out):,} held out, {left} sinks left out")
    return rows


def train_rows(run: Path, point: HookPoint) -> Float[Tensor, "rows d_in"]:
    """All that a run has collected there but sinks, as it is stored."""
    blocks = [block.acts for reader in map(ShardReader, find_shards(run, str(point))) for block in reader.iter_blocks()]
    rows = torch.cat(blocks)
    return without_sinks(rows, sink_norm(rows[:: max(1, len(rows) // CENSUS_ROWS)]))


class Start(NamedTuple):
    """What every trainer is given: rows, and how many to take when."""

    rows: Float[Tensor, "rows d_in"]
    batch: int
    steps: int

    @property
    def d_in(self) -> int:
        """Width of a row."""
        return self.rows.shape[1]

    def order(self) -> Tensor:
        """Which row comes when: pass after pass, each in an order of its own."""
        wanted = self.steps * self.batch
        passes = range(-(-wanted // len(self.rows)))
        orders = [torch.from_numpy(generator(0, "rates", number).permutation(len(self.rows))) for number in passes]
        return torch.cat(orders)[:wanted]

    def batches(self) -> Iterator[Float[Tensor, "batch d_in"]]:
        """Of fp32, in that order."""
        return (self.rows[part].float() for part in self.order().split(self.batch))


class Trained(NamedTuple):
    """What a training in memory came to."""

    sae: TopKSAE
    falling: float
    """Fall of the loss over the last fifth of the steps at the full rate, as a share."""


def trained_by_us(start: Start, shape: SaeShape, rate: float, **settings: Any) -> Trained:
    """One training in memory, as the trainer takes it."""
    config = TrainConfig(batch_size=start.batch, **settings)
    cpu = torch.device("cpu")
    plan = Plan(config=config, d_in=start.d_in, **shape._asdict(), steps=start.steps, lr=rate, device=cpu)
    sae = TopKSAE(start.d_in, shape.d_sae, shape.k, seed=torch_seed(shape.seed, "sae weights"))
    sample = start.rows[start.order()[:SAMPLE_ROWS]].float()
    middle = centre(sample, config.b_dec_init)
    scale = input_scale(sample, middle)
    with torch.no_grad():
        sae.b_dec.copy_(middle * scale)
    state = TrainState.start(sae, scale)
    losses = [float(train_step(state, x, plan)[1]) for x in start.batches()]
    level = plan.level_until
    before, after = (sum(losses[end - end // 10 - 1 : end]) / (end // 10 + 1) for end in (level - level // 5, level))
    return Trained(sae.folded(scale), 1 - after / before)


def _trained(rows: Rows, case: dict[str, Any]) -> dict[str, float]:
    """One training, and what came of it."""
    began = time.process_time()
    shape = SaeShape(case["k"], case["d_sae"], case["seed"])
    rate = case["times"] * per_width(shape.d_sae)
    start = Start(rows.train, case["batch"], case["steps"])
    made = trained_by_us(start, shape, rate, lr_warmup=case["warmup"], lr_decay=case["decay"])
    held_out, fired = _measured(made.sae, rows.held_out)
    seen, _ = _measured(made.sae, rows.train[start.order()[: len(rows.held_out)]])
    return {
        "lr": rate,
        "fvu": held_out,
        "fvu_train": seen,
        "dead": 1 - float(fired.double().mean()),
        "falling": made.falling,
        "cpu_seconds": round(time.process_time() - began, 1),
    }


@torch.no_grad()
def _measured(sae: TopKSAE, rows: Tensor) -> tuple[float, Tensor]:
    meter, fired = FvuMeter(sae.d_in), torch.zeros(sae.d_sae, dtype=torch.bool)
    for x in rows.split(4096):
        x_hat, acts = sae.reconstruct(x.float())
        meter.add(x.float(), x_hat, acts.values)
        fired[acts.indices[acts.values > 0]] = True
    return meter.fvu, fired


def _told(lines: list[dict[str, Any]]) -> str:
    columns = ("rows", "d_sae", "k", "batch", "steps", "warmup", "decay", "seed", "times", "lr", "fvu", "dead")
    lines = sorted(lines, key=lambda line: (*map(str, (line[name] for name in columns[:8])), line["fvu"]))
    shown = [[f"{line[name]:.3g}" if name in ("lr", "dead") else line[name] for name in columns] for line in lines]
    return table(
        columns, [tuple(f"{cell:.4f}" if isinstance(cell, float) else str(cell) for cell in row) for row in shown]
    )


if __name__ == "__main__":
    main()
