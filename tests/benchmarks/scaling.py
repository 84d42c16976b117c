"""What a run takes at full size, as arithmetic: bytes, hours, memory, and which part of the machine it waits for.

The sizes of the models come from their published configs, what a token costs from what ``collect`` and ``train`` do
with it, and the rates of a machine from ``SAID``, which says of each whether it was measured. Nothing is run, but for
three rates with ``--measure``. The tables are printed as they stand in docs/scaling.md, and a test holds them together.
"""

import argparse
import hashlib
import math
import os
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from timing import interleaved, table
from transformers import AutoTokenizer, Gemma2Config, LlamaConfig, PretrainedConfig

from sae_forge import builtin
from sae_forge.data.texts.corpus import iter_texts
from sae_forge.data.texts.packing import iter_packed
from sae_forge.kernels.dispatch import encode_tokens

ORIGIN, BESIDE, SCALE = 16, 0.2, 4
"""Bytes of a row beside its activation: where it came from, its part of sidecar and manifest, and in int8 its scale."""
SUMS = 22 / 65_536
"""Bytes of a row for each of d_in in int8: the sidecar of a shard of the default size says what rounding did to it."""
STATE, HALVES, GRADIENTS = 24, 4, 8
"""Bytes for each of d_sae x d_in: both weights with Adam's two moments, their copies in bf16, their gradients."""
FUSED, SUMMED = 52 + 4, 114 + 4
"""Bytes a step moves for each of d_sae x d_in. Alone: the fused pass reads and writes STATE and writes HALVES, and the
gradient of b_dec reads W_enc once. Where gradients are summed they are written, divided and read whole, Adam, norms and
copies are passes of their own."""


class Rates(NamedTuple):
    """Of one machine with its cards; ``SAID`` says where each number is from."""

    tflops: float = 790
    hbm_gb: float = 4300
    card_gb: float = 141
    link_gb: float = 450
    bus_gb: float = 64
    ram_gb: float = 1000
    read_gb: float = 7
    write_gb: float = 5
    url_gb: float = 3
    encode_us: float = 0.87
    pack_us: float = 0.40
    cores: float = 8
    sha_gb: float = 2.0
    forward_share: float = 0.40
    step_share: float = 0.55
    stream_share: float = 0.90
    order_gb: float = 6.5


SAID = {
    "tflops": ("TFLOP/s of a card in bf16 products", "measured with torch on an H200, 2026-10, 8192 cubed"),
    "hbm_gb": ("GB/s of a card's memory", "measured with torch on an H200, 2026-10, a copy, both ways counted"),
    "card_gb": ("GB of a card's memory", "H200, datasheet"),
    "link_gb": ("GB/s between cards, each way", "H200, NVLink, datasheet"),
    "bus_gb": ("GB/s from RAM to a card", "PCIe 5.0 x16, 32 GT/s on 16 lanes"),
    "ram_gb": ("GB of RAM", "assumption"),
    "read_gb": ("GB/s read from disk", "assumption: one NVMe drive of PCIe 4.0"),
    "write_gb": ("GB/s written to disk", "assumption: the same drive"),
    "url_gb": ("GB/s of an object store", "assumption: 25 Gbit/s of network"),
    "encode_us": ("µs of a token to encode, shared out to the cores", "measured 2026-11-25, one core of an AMD Zen 5"),
    "pack_us": ("µs of a token to list and pack, on one core", "measured with it"),
    "cores": ("CPU cores a rank has, to encode text and to read shards", "assumption"),
    "sha_gb": ("GB/s of sha256", "measured 2026-11-25, one core of an AMD Zen 5"),
    "forward_share": ("share of those products that a forward pass reaches", "assumption, see below"),
    "step_share": ("share of its floor that a step reaches", "assumption: the goal on a GPU, see below"),
    "stream_share": ("share of the disk's rate in shuffled rows", "assumption: the goal of the loader, see below"),
    "order_gb": (
        "GB/s of rows put in order by 2 cores",
        "measured 2026-11-25, from memory, AMD Zen 5",
    ),
}
"""Of each rate what it is and where it is from."""


class Model(NamedTuple):
    """A language model and the layer whose output is collected."""

    name: str
    config: PretrainedConfig
    layer: int
    d_sae: int

    @property
    def d_in(self) -> int:
        return self.config.hidden_size

    @property
    def parameters(self) -> int:
        """In the matrices that run below the hook point: no embedding, which is a look-up, and no norms."""
        return (self.layer + 1) * layer_parameters(self.config)

    def flops(self, ctx_len: int) -> float:
        """Of a token: two for each parameter, and attention to half of a sequence on average, scores and sums."""
        width = self.config.num_attention_heads * self.config.head_dim
        return 2 * self.parameters + (self.layer + 1) * 2 * ctx_len * width


MODELS = {
    "gemma-2-2b": Model(
        "Gemma-2-2b",
        Gemma2Config(
            hidden_size=2304, intermediate_size=9216, num_hidden_layers=26, num_attention_heads=8,
            num_key_value_heads=4, head_dim=256,
        ),
        layer=12,
        d_sae=16_384,
    ),
    "llama-2-7b": Model(
        "Llama-2-7b",
        LlamaConfig(
            hidden_size=4096, intermediate_size=11_008, num_hidden_layers=32, num_attention_heads=32,
            num_key_value_heads=32, head_dim=128,
        ),
        layer=15,
        d_sae=32_768,
    ),
}  # fmt: skip


def layer_parameters(config: PretrainedConfig) -> int:
    """In the matrices of one layer: queries and output, keys and values, and the three of a gated MLP."""
    heads = 2 * config.num_attention_heads + 2 * config.num_key_value_heads
    return config.hidden_size * (heads * config.head_dim + 3 * config.intermediate_size)


def row_bytes(d_in: int, dtype: str) -> int:
    """Of one activation, as it is read."""
    return d_in + SCALE if dtype == "int8" else 2 * d_in


def given_bytes(d_in: int, dtype: str) -> int:
    """Of one activation, as it is put in order and sent to a card: int8 becomes fp32 before that."""
    return 4 * d_in if dtype == "int8" else 2 * d_in


def disk_bytes(d_in: int, dtype: str) -> float:
    """Of one token on disk."""
    return row_bytes(d_in, dtype) + ORIGIN + BESIDE + (SUMS * d_in if dtype == "int8" else 0)


# ---- rates, in tokens a second ------------------------------------------------------------------


class Limit(NamedTuple):
    """The least of several rates, and what it is the rate of."""

    rate: float
    of: str


def least(**rates: float) -> Limit:
    """The rate that all others wait for."""
    name = min(rates, key=rates.__getitem__)
    return Limit(rates[name], name)


def tokenizing(rates: Rates) -> float:
    """Of one rank, which reads the text of all."""
    return 1e6 / (rates.pack_us + rates.encode_us / rates.cores)


def collecting(model: Model, rates: Rates, options: argparse.Namespace, cards: int, dtype: str) -> Limit:
    """Text to shards."""
    forward = rates.forward_share * rates.tflops * 1e12 / model.flops(options.ctx_len)
    disk = rates.write_gb * 1e9 / disk_bytes(model.d_in, dtype)
    return least(model=cards * forward, tokenizer=tokenizing(rates), disk=disk)


def step_seconds(rates: Rates, d_in: int, d_sae: int, k: int, tokens: int, cards: int = 1, way: str = "alone") -> float:
    """The floor of a step on so many tokens in all, in bf16; ``way`` is alone, replicas or latents.

    Per token one product of 2 x d_in x d_sae, its pre-acts written and read, and three gathers of k rows of bf16: for
    the reconstruction with its slopes, and for either gradient. Where latents are spread, reconstruction and slopes are
    two gathers, and every rank gathers k rows of each token. AuxK is left out.
    """
    weights, memory, link = d_in * d_sae, rates.hbm_gb * 1e9, rates.link_gb * 1e9
    around = 2 * (cards - 1) / cards
    product = 2 * weights / (rates.tflops * 1e12) + 4 * d_sae / memory
    gather = 2 * k * d_in / memory
    if way == "latents":
        exchange = (around * 4 * d_in + 4 * k * (cards - 1)) / link
        return tokens * (product / cards + 4 * gather + exchange) + FUSED * weights / cards / memory
    moved = FUSED / memory if way == "alone" else SUMMED / memory + around * GRADIENTS / link
    return tokens / cards * (product + 3 * gather) + moved * weights


def stepping(rates: Rates, options: argparse.Namespace, d_in: int, d_sae: int, cards: int, way: str) -> float:
    """Tokens a second of the steps alone, at the share of their floor that is assumed."""
    tokens = options.batch_size if cards == 1 else options.batch_size // 2 * cards
    return rates.step_share * tokens / step_seconds(rates, d_in, d_sae, options.k, tokens, cards, way)


def training(
    model: Model, rates: Rates, options: argparse.Namespace, cards: int, dtype: str, held: float = math.inf
) -> Limit:
    """Shards to an SAE; every rank reads and orders all rows, from one disk, and sends its own over its bus.

    Args:
        held: Bytes of shards there are at once. Above half of RAM they are read past the page cache, by each rank anew.
    """
    given, readers = given_bytes(model.d_in, dtype), cards if held > rates.ram_gb * 1e9 / 2 else 1
    way = "alone" if cards == 1 else "replicas"
    return least(
        step=stepping(rates, options, model.d_in, model.d_sae, cards, way),
        disk=rates.stream_share * rates.read_gb * 1e9 / row_bytes(model.d_in, dtype) / readers,
        loader=rates.order_gb * rates.cores / 2 * 1e9 / given,
        bus=cards * rates.bus_gb * 1e9 / given,
    )


def checkpoint_bytes(d_in: int, d_sae: int) -> float:
    """Weights and moments in fp32; biases and counters are left out, a thousandth of it or less."""
    return STATE * d_in * d_sae


def checkpoint_seconds(rates: Rates, d_in: int, d_sae: int) -> float:
    """To write, read back and hash one, in turn."""
    return checkpoint_bytes(d_in, d_sae) * (1 / rates.write_gb + 1 / rates.read_gb + 1 / rates.sha_gb) / 1e9


# ---- tables -------------------------------------------------------------------------------------


def tables(options: argparse.Namespace, rates: Rates) -> dict[str, str]:
    """Every table by its heading."""
    models = [MODELS[name] for name in options.models]
    return {
        "Rates": rate_table(rates),
        "A token": token_table(models, rates, options),
        "Hours": hour_table(models, rates, options),
        "Windows": window_table(models, rates, options),
        "Dictionaries": dictionary_table(models, rates, options),
    }


def rate_table(rates: Rates) -> str:
    """What everything below stands on."""
    rows = [(f"`--{name}`", f"{value:.4g}", *SAID[name]) for name, value in rates._asdict().items()]
    return table(("option", "value", "what", "where from"), rows)


def token_table(models: list[Model], rates: Rates, options: argparse.Namespace) -> str:
    """What one token costs, and what one card or one disk makes of it."""
    one = partial(collecting, rates=rates, options=options, cards=1, dtype="bf16")

    def step(model: Model) -> float:
        return stepping(rates, options, model.d_in, model.d_sae, 1, "alone")

    def batches(model: Model) -> float:
        return 1000 * options.batch_size / step(model)

    def saved(model: Model) -> float:
        return checkpoint_seconds(rates, model.d_in, model.d_sae)

    def both(shown: Callable[[float], str], size: Callable[[int, str], float], model: Model) -> str:
        return " / ".join(shown(size(model.d_in, dtype)) for dtype in ("bf16", "int8"))

    def feeds(model: Model, gigabytes: float) -> str:
        return both(lambda size: thousands(gigabytes * 1e9 / size), row_bytes, model)

    rows: list[tuple[str, Callable[[Model], str]]] = [
        ("`d_in`, layer read", lambda m: f"{m.d_in}, {m.layer} of 0 to {m.config.num_hidden_layers - 1}"),
        ("parameters up to there", lambda m: f"{m.parameters / 1e9:.2f} B"),
        ("collect, FLOP a token", lambda m: f"{m.flops(options.ctx_len) / 1e9:.2f} G"),
        ("collect, floor of a card", lambda m: thousands(rates.tflops * 1e12 / m.flops(options.ctx_len))),
        ("collect, a card as assumed", lambda m: thousands(one(m).rate)),
        ("which writes, bf16 / int8", lambda m: both(lambda b: f"{one(m).rate * b / 1e9:.2f} GB/s", disk_bytes, m)),
        ("cards one tokenizer keeps up with", lambda m: f"{tokenizing(rates) / one(m).rate:.0f}"),
        ("on disk, bf16 / int8", lambda m: both(lambda b: f"{b:.1f} bytes", disk_bytes, m)),
        ("train, `d_sae`", lambda m: f"{m.d_sae}"),
        ("train, floor of a card", lambda m: thousands(step(m) / rates.step_share)),
        ("train, a card as assumed", lambda m: thousands(step(m))),
        ("1000 steps / a checkpoint", lambda m: f"{batches(m):.1f} s / {saved(m):.1f} s"),
        ("which read, bf16 / int8", lambda m: both(lambda b: f"{step(m) * b / 1e9:.1f} GB/s", row_bytes, m)),
        ("which cross the bus", lambda m: both(lambda b: f"{step(m) * b / 1e9:.1f} GB/s", given_bytes, m)),
        ("a disk feeds, bf16 / int8", lambda m: feeds(m, rates.stream_share * rates.read_gb)),
        ("an object store feeds, bf16 / int8", lambda m: feeds(m, rates.url_gb)),
    ]
    return table(("", *(m.name for m in models)), [(what, *map(told, models)) for what, told in rows])


def hour_table(models: list[Model], rates: Rates, options: argparse.Namespace) -> str:
    """Every size of corpus with as many cards as asked for, in the first mode that the disk has room for."""
    head = ("model", "tokens", "bf16", "int8", "mode", "cards", "tokenise first", "collect", "train", "together",
            "limits")  # fmt: skip
    rows = [
        hours_of(model, tokens, cards, rates, options)
        for model in models
        for tokens in options.tokens
        for cards in options.cards
    ]
    return table(head, rows)


def hours_of(model: Model, tokens: float, cards: int, rates: Rates, options: argparse.Namespace) -> tuple[str, ...]:
    """One row: sizes, mode, and the time of each part with what it waits for."""
    sizes = {dtype: tokens * disk_bytes(model.d_in, dtype) for dtype in ("bf16", "int8")}
    fits = next((dtype for dtype, size in sizes.items() if size <= options.disk_gb * 1e9), None)
    dtype = fits or "bf16"
    collect = collecting(model, rates, options, cards, dtype)
    if fits:  # all ranks would read all of it
        train = training(model, rates, options, 1, dtype)
    else:
        train = training(model, rates, options, cards, dtype, min(options.disk_gb, rates.ram_gb / 2) * 1e9)
    plan = 0.0 if fits else tokens / tokenizing(rates)
    parts = [plan, tokens / collect.rate, tokens / train.rate]
    return (
        model.name,
        amount(tokens),
        *(gigabytes(size) for size in sizes.values()),
        {"bf16": "on disk", "int8": "on disk, int8", None: "windows"}[fits],
        f"{cards}",
        *(duration(part) if part else "" for part in parts),
        duration(sum(parts)),
        f"{collect.of}, {train.of}",
    )


def window_table(models: list[Model], rates: Rates, options: argparse.Namespace) -> str:
    """What ``--max_disk_gb`` makes of a corpus, on one card."""
    head = ("model", "`--max_disk_gb`", "tokens a window", "filled and trained on", "checkpoint", "its share",
            *(f"windows in {amount(tokens)}" for tokens in options.tokens))  # fmt: skip
    rows: list[tuple[str, ...]] = []
    for model in models:
        spent = checkpoint_seconds(rates, model.d_in, model.d_sae)
        each = sum(1 / verb(model, rates, options, 1, "bf16").rate for verb in (collecting, training))
        for size in options.max_disk_gb:
            held = size * 1e9 / disk_bytes(model.d_in, "bf16")
            windows = [f"{-(-tokens // held):.0f}" for tokens in options.tokens]
            times = duration(held * each), f"{spent:.0f} s", f"{spent / (spent + held * each):.1%}"
            rows.append((model.name, f"{size:g}", amount(held), *times, *windows))
    return table(head, rows)


def dictionary_table(models: list[Model], rates: Rates, options: argparse.Namespace) -> str:
    """What a dictionary takes of a card, and how fast the steps on it are."""
    cards = max(options.cards)
    head = ("model", "`d_sae`", "one card", f"each of {cards}", f"each of {cards}, `--shard_latents`", "checkpoint",
            "RAM a rank", "one card", f"{cards} cards", f"{cards} cards, `--shard_latents`")  # fmt: skip
    rows: list[tuple[str, ...]] = []
    for model in models:
        for d_sae in options.d_sae:
            weights = model.d_in * d_sae
            pre_acts = 2 * encode_tokens(d_sae, torch.device("cuda")) * d_sae
            alone, latents = (STATE + HALVES) * weights, (STATE + HALVES) * weights / cards
            taken = (alone + pre_acts, alone + GRADIENTS * weights + pre_acts, latents + pre_acts / cards)
            rate = partial(stepping, rates, options, model.d_in, d_sae)
            speeds = rate(1, "alone"), rate(cards, "replicas"), rate(cards, "latents")
            fits = [size <= rates.card_gb * 1e9 for size in taken]
            rows.append((
                model.name,
                f"{d_sae}",
                *(gigabytes(size) + ("" if fit else ", too much") for size, fit in zip(taken, fits, strict=True)),
                gigabytes(checkpoint_bytes(model.d_in, d_sae)),
                gigabytes(16 * weights),
                *(thousands(speed) if fit else "" for speed, fit in zip(speeds, fits, strict=True)),
            ))  # fmt: skip
    return table(head, rows)


# ---- measured here ------------------------------------------------------------------------------


def measured(rounds: int = 3) -> dict[str, float]:
    """The rates of this machine that need no card and no disk, in one thread: the least time of a few rounds."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer = AutoTokenizer.from_pretrained(str(builtin.model_folder("tiny-llama")))
    texts = [text for domain in builtin.domains() for text in iter_texts(builtin.source("corpora", domain))] * 4
    content = bytes(2**28)
    packing = {"ctx_len": 1024, "batch_size": 8, "bos": "row"}
    cases = {
        "encode": lambda: [
            tokenizer.backend_tokenizer.encode_batch_fast(texts[first : first + 256], add_special_tokens=False)
            for first in range(0, len(texts), 256)
        ],
        "pack": lambda: sum(batch.token_ids.numel() for batch in iter_packed(texts, tokenizer, **packing)),
        "sha": lambda: hashlib.sha256(content).digest(),
    }
    tokens = cases["pack"]()
    spent = {name: min(times) for name, times in interleaved(cases, rounds, torch.device("cpu")).items()}
    encode, whole = (1e6 * spent[name] / tokens for name in ("encode", "pack"))
    return {"encode_us": encode, "pack_us": whole - encode, "sha_gb": len(content) / 1e9 / spent["sha"]}


# ---- words --------------------------------------------------------------------------------------


def amount(tokens: float) -> str:
    """``100 M``"""
    return f"{tokens / 1e9:.3g} B" if tokens >= 1e9 else f"{tokens / 1e6:.3g} M"


def thousands(rate: float) -> str:
    """Tokens a second."""
    return f"{rate / 1e6:.2f} M/s" if rate >= 999_500 else f"{rate / 1e3:.0f} k/s"


def gigabytes(size: float) -> str:
    """To three digits, in GB or TB."""
    return f"{size / 1e12:.3g} TB" if size >= 999.5e9 else f"{size / 1e9:.3g} GB"


def duration(seconds: float) -> str:
    """Minutes below two hours, days above a hundred."""
    minutes, hours = seconds / 60, seconds / 3600
    if hours < 2:
        return f"{minutes:.0f} min"
    return f"{hours:.1f} h" if hours < 10 else f"{hours:.0f} h" if hours < 100 else f"{hours / 24:.1f} days"


def asked(arguments: list[str] | None = None) -> tuple[argparse.Namespace, Rates]:
    """What the tables are to be of; without arguments, what docs/scaling.md shows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    several: dict[str, Any] = {"nargs": "+", "type": float}
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--tokens", **several, default=[1e8, 1e9, 1e11])
    parser.add_argument("--cards", nargs="+", type=int, default=[1, 8], help="of one machine, a rank each")
    parser.add_argument("--disk_gb", type=float, default=4000, help="room for shards, which decides the mode")
    parser.add_argument("--max_disk_gb", **several, default=[200, 1000, 4000], help="windows to compare")
    parser.add_argument("--d_sae", nargs="+", type=int, default=[2**14, 2**16, 2**20], help="dictionaries to compare")
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--batch_size", type=int, default=8192, help="of one card; each of several takes half as much")
    parser.add_argument("--ctx_len", type=int, default=1024)
    parser.add_argument("--measure", action="store_true", help="take encode_us, pack_us and sha_gb from this machine")
    for name, value in Rates._field_defaults.items():
        parser.add_argument(f"--{name}", type=float, default=value, help="; ".join(SAID[name]))
    options = parser.parse_args(arguments)
    rates = Rates(**{name: getattr(options, name) for name in Rates._fields})
    return options, rates._replace(**measured()) if options.measure else rates


def main() -> None:
    """Print every table."""
    for heading, text in tables(*asked()).items():
        print(f"{heading}\n\n{text}\n")


if __name__ == "__main__":
    main()
