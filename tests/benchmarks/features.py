"""The pass that ``features`` makes over a corpus, over its floor: encoding the same rows, which lie in memory already.

No time is taken before the pass has counted what the encoder says: the fires of every latent and their sum.
"""

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from made_up import CASES, Problem, Sizes, problem
from timing import both, conditions, interleaved, milliseconds, ratios, table, write_json
from torch import Tensor

from sae_forge.data.shards import Fingerprint, ShardReader, ShardWriter
from sae_forge.features.stats import ROWS, iter_rows, survey
from sae_forge.sae.topk import TopKSAE

CTX_LEN = 128
SNIPPETS = 5
WATCHED = 0.1
"""Share of the latents whose firings are kept, as candidates of a selection are."""
FLOOR = "encode alone"
HEAD = ("pass", "ms", "thousand tokens / s", "over encode alone")


def main() -> None:
    """Make shards, check, measure, and print a table."""
    options = _options()
    device = torch.device(options.device)
    asked = {name: number for name in Sizes._fields if (number := getattr(options, name))}
    sizes = CASES[options.case]._replace(**asked)
    found = compare(problem(sizes, device=device, batches=options.batches), rounds=options.rounds)
    found["load_after"] = conditions(device)["load"]
    print(found["conditions"] | {"load_after": found["load_after"]})
    print(f"{sizes}, {found['tokens']} tokens in {options.batches} shards", end="\n\n")
    print(show(found))
    write_json(options.json, found)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--case", choices=tuple(CASES), default="small")
    for name in Sizes._fields:
        parser.add_argument(f"--{name}", type=int, help="overrides the case's; tokens are those of a shard")
    parser.add_argument("--batches", type=int, default=8, help="shards")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu", help="where the SAE is; shards are read on the CPU")
    parser.add_argument("--json", type=Path, help="where the single times go")
    return parser.parse_args()


def compare(given: Problem, *, rounds: int) -> dict[str, Any]:
    """Times of each pass over the same rows.

    Raises:
        SystemExit: the pass counts something else than the encoder says; nothing is to be timed.
    """
    sizes, device = given.sizes, given.device
    weights = [weight.cpu() for weight in given.weights()]
    sae = TopKSAE.from_weights(*weights, k=sizes.k).to(device)
    watch = torch.rand(sizes.d_sae, generator=torch.Generator().manual_seed(0)) < WATCHED
    with tempfile.TemporaryDirectory() as folder:
        reader = made_up_shards(given, Path(folder), batches=len(given.batches))
        rows = [acts.to(device, torch.float32) for acts, _, _ in iter_rows(reader)]
        _check(reader, sae, rows)
        cases: dict[str, Callable[[], object]] = {
            FLOOR: partial(_encode, sae, rows),
            "read and encode": partial(_read_and_encode, reader, sae),
            "all counts": partial(survey, reader, sae, title="counts"),
            "counts and snippets (forget)": partial(survey, reader, sae, title="forget", keep_top=SNIPPETS),
            "counts and firings (retain)": partial(survey, reader, sae, title="retain", watch=watch),
        }
        seconds = interleaved(cases, rounds, device)
    return {
        "sizes": sizes._asdict(),
        "tokens": sum(map(len, rows)),
        "rows_at_once": ROWS,
        "conditions": conditions(device),
        "seconds": seconds,
    }


def show(found: dict[str, Any]) -> str:
    """The passes as a table."""
    seconds, tokens = found["seconds"], found["tokens"]
    rows = []
    for name, each in seconds.items():
        times = milliseconds(each)
        rates = both((tokens / times[0], tokens / times[1]), 1)  # tokens a millisecond are thousands a second
        rows.append((name, both(times, 1), rates, both(ratios(each, seconds[FLOOR]))))
    return table(HEAD, rows)


def made_up_shards(given: Problem, folder: Path, *, batches: int) -> ShardReader:
    """The problem's batches in turn, as collect would have stored them, a shard each."""
    sizes = given.sizes
    fingerprint = Fingerprint(
        model="made up",
        weights="",
        tokenizer="",
        hook_point="blocks.0.hook_resid_post",
        d_in=sizes.d_in,
        storage_dtype="bf16",
        ctx_len=CTX_LEN,
        bos="none",
        batch_size=-(-sizes.tokens // CTX_LEN),
        max_tokens=sizes.tokens * batches,
        corpus="made up",
        source="made up",
        role="retain",
    )
    with ShardWriter(folder, fingerprint, shard_rows=sizes.tokens) as writer:
        for number in range(batches):
            batch = given.batches[number % len(given.batches)]
            numbers = torch.arange(number * sizes.tokens, (number + 1) * sizes.tokens)
            writer.write_batch(number, batch, numbers // CTX_LEN, numbers % CTX_LEN, numbers % CTX_LEN)
        writer.finish()
    return ShardReader(folder)


def _check(reader: ShardReader, sae: TopKSAE, rows: list[Tensor]) -> None:
    stats = survey(reader, sae, title="check")
    fires, sums = (torch.zeros(sae.d_sae, dtype=torch.float64) for _ in range(2))
    for part in rows:
        with torch.no_grad():
            values, indices = sae.encode(part)
        for total, each in ((fires, values > 0), (sums, values)):
            total.index_add_(0, indices.flatten().long().cpu(), each.flatten().double().cpu())
    if not torch.equal(fires.long(), stats.fires) or not torch.allclose(sums, stats.sums, rtol=1e-6):
        raise SystemExit("the pass over the shards counts other fires than the encoder gives; nothing was timed")


@torch.no_grad()
def _encode(sae: TopKSAE, rows: list[Tensor]) -> None:
    for part in rows:
        sae.encode(part)


@torch.no_grad()
def _read_and_encode(reader: ShardReader, sae: TopKSAE) -> None:
    for acts, _, _ in iter_rows(reader):
        sae.encode(acts.to(sae.W_dec.device, torch.float32))


if __name__ == "__main__":
    main()
