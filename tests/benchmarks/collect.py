"""What storing costs: ``collect`` from text to shards, beside the bare forward pass over the same batches.

The bare pass reads the same layer with the same hook and stores nothing; its batches are packed beforehand. Nothing is
timed before the shards have been seen to hold what the bare pass reads.
"""

import argparse
import json
import tempfile
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from small_model import questions, small_llama
from timing import both, conditions, interleaved, milliseconds, ratios, table, write_json

from sae_forge.collect import collect
from sae_forge.config.collect import CollectConfig
from sae_forge.data.shards import ShardReader
from sae_forge.data.texts.corpus import iter_texts
from sae_forge.data.texts.packing import PackedBatch, iter_packed
from sae_forge.hookpoint import HookPoint
from sae_forge.models.hooks import capture
from sae_forge.models.loading import LanguageModel
from sae_forge.models.tokens import real_token_mask
from sae_forge.store.tensors import DTYPES

BARE, COLLECT = "bare forward pass", "collect"
HEAD = ("case", "ms median / best", "k tokens/s", "speed over bare")


def main() -> None:
    """Run both ways in every round, and print a table."""
    options = _options()
    device = torch.device(options.device)
    made = small_llama(options.layers, options.d_model, options.device)
    lm = replace(made, revision="random weights", folder=None)  # its folder is gone, so its weights cannot be hashed
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        corpus, runs = Path(scratch) / "words.jsonl", (Path(scratch) / f"run-{number}" for number in count())
        corpus.write_text("".join(json.dumps({"text": item.question}) + "\n" for item in _documents(options)))
        batches = _batches(options, lm, corpus)
        point = HookPoint(options.layers // 2)
        tokens = _check(options, lm, corpus, batches, point, next(runs))
        cases = {
            BARE: partial(_bare, lm, batches, point),
            COLLECT: lambda: collect(_config(options, next(runs)), lm, [("retain", str(corpus))]),
        }
        found: dict[str, Any] = {
            "sizes": {name: value for name, value in vars(options).items() if name not in ("json", "device", "folder")},
            "tokens": tokens,
            "conditions": conditions(device),
            "seconds": interleaved(cases, options.rounds, device),
        }
    found["load_after"] = conditions(device)["load"]
    seconds = found["seconds"]
    print(found["conditions"] | {"load_after": found["load_after"]}, found["sizes"], sep="\n", end="\n\n")
    rows = [
        (
            name,
            both(milliseconds(spent), 0),
            f"{tokens / min(spent) / 1e3:.1f}",
            both(ratios(seconds[BARE], spent)),
        )
        for name, spent in seconds.items()
    ]
    print(table(HEAD, rows))
    write_json(options.json, found)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--layers", type=int, default=8, help="layers of the model; the middle one is read")
    parser.add_argument("--d_model", type=int, default=256, help="width of the model, a multiple of 32")
    parser.add_argument("--ctx_len", type=int, default=256)
    parser.add_argument("--model_batch_size", type=int, default=8)
    parser.add_argument("--max_tokens", type=int, default=65_536)
    parser.add_argument("--shard_rows", type=int, default=8192)
    parser.add_argument("--storage_dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", type=Path, help="where the shards go while it runs; unset: the temporary folder")
    parser.add_argument("--json", type=Path, help="where the single times go")
    return parser.parse_args()


def _documents(options: argparse.Namespace) -> tuple[Any, ...]:
    """Texts of made-up words, of about 60 tokens or more each, until there are enough."""
    return questions(options.max_tokens // 40 + 1, seed=3)


def _config(options: argparse.Namespace, run_dir: Path) -> CollectConfig:
    names = ("ctx_len", "model_batch_size", "max_tokens", "shard_rows", "storage_dtype")
    return CollectConfig(
        run_dir=run_dir, layer=(options.layers // 2,), **{name: getattr(options, name) for name in names}
    )


def _batches(options: argparse.Namespace, lm: LanguageModel, corpus: Path) -> list[PackedBatch]:
    config = _config(options, corpus.parent)
    return list(
        iter_packed(
            iter_texts(str(corpus), text_field=config.text_field, split=config.split),
            lm.tokenizer,
            ctx_len=config.ctx_len,
            batch_size=config.model_batch_size,
            bos=config.bos,
            max_tokens=config.max_tokens,
        )
    )


def _bare(lm: LanguageModel, batches: list[PackedBatch], point: HookPoint) -> None:
    for batch in batches:
        capture(lm, [point], batch.token_ids, batch.attention_mask)


def _check(
    options: argparse.Namespace,
    lm: LanguageModel,
    corpus: Path,
    batches: list[PackedBatch],
    point: HookPoint,
    run_dir: Path,
) -> int:
    """The shards hold the bare pass's rows of the real tokens, to the bit; returns how many those are."""
    folder = collect(_config(options, run_dir), lm, [("retain", str(corpus))]).folders[0]
    stored = torch.cat([block.acts for block in ShardReader(folder).iter_blocks()])
    first = 0
    for batch in batches:
        real = real_token_mask(batch.token_ids, batch.attention_mask, lm.special_ids)
        acts = capture(lm, [point], batch.token_ids, batch.attention_mask)[point].cpu()[real].to(stored.dtype)
        if not torch.equal(stored[first : first + len(acts)], acts):
            raise SystemExit("the shards do not hold what the model computes; nothing was timed")
        first += len(acts)
    if first != len(stored):
        raise SystemExit(f"the shards hold {len(stored)} rows where the model gives {first}; nothing was timed")
    return first


if __name__ == "__main__":
    main()
