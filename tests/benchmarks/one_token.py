"""Decoding a generated token from a half-precision dictionary: the rows it names, against the dictionary made wide.

OMP_NUM_THREADS=1 python tests/benchmarks/one_token.py
"""

import argparse
from functools import partial
from pathlib import Path

import torch
from timing import both, conditions, interleaved, milliseconds, ratios, table, write_json
from torch import Tensor
from torch.nn import functional

from sae_forge.kernels import cpu


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("d_in", 2304), ("d_sae", 16384), ("k", 32), ("rounds", 15)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    draw, device = torch.Generator().manual_seed(0), torch.device("cpu")
    W_dec = torch.randn(asked.d_sae, asked.d_in, generator=draw).bfloat16()
    rows = []
    for tokens in (1, 8, 64):
        indices = torch.randint(asked.d_sae, (tokens, asked.k), generator=draw)
        values = torch.rand(tokens, asked.k, generator=draw)
        cases = {"ours": partial(cpu.decode, values, indices, W_dec), "wide": partial(_wide, values, indices, W_dec)}
        assert torch.equal(cases["ours"](), cases["wide"]())
        seconds = interleaved(cases, asked.rounds, device)
        times = [both(milliseconds(seconds[name])) for name in ("ours", "wide")]
        rows.append((str(tokens), *times, both(ratios(seconds["wide"], seconds["ours"]), 0)))
    print(table(("tokens", "named rows, ms", "whole dictionary, ms", "ratio"), rows))
    write_json(asked.json, {"conditions": conditions(device), "rows": rows})


def _wide(values: Tensor, indices: Tensor, W_dec: Tensor) -> Tensor:
    found = functional.embedding_bag(indices, W_dec.float(), mode="sum", per_sample_weights=values)
    return found.to(W_dec.dtype)


if __name__ == "__main__":
    main()
