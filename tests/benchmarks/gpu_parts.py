"""What ``gpu.py`` runs, each part in a process of its own: correctness at full width, the benchmarks, the profile.

A part returns what it found and holds it against the goals of issue 4. Limits of an H200 as measured elsewhere stand
here as constants; each run measures its own beside them.
"""

import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, cast

import torch
from made_up import Problem, Sizes, problem
from older_forms import BEFORE, NOW, OLDER
from operations import OPERATIONS, OURS, Parts, floor_share, make_parts, measure, off_by
from operations import show as show_operation
from peers import DENSE, Dense, Ours, methods
from peers import OURS as OUR_STEP
from timing import both, interleaved, milliseconds, ratios, table
from torch import Tensor
from train_step import Running, check, compare, peak_bytes

from sae_forge.config.collect import CollectConfig
from sae_forge.config.train import Backend
from sae_forge.kernels.dispatch import encode_tokens

FLOPS, BYTES = 790e12, 4.3e12
"""Of an H200 a second: bf16 products on random data, and a copy, bytes read and written."""


class Scale(NamedTuple):
    """The sizes of a run: those of an H200, or such as a CPU can take to see that the program runs."""

    device: torch.device
    tiny: bool

    @property
    def gemma(self) -> Sizes:
        return Sizes(256, 64, 512, 8) if self.tiny else Sizes(8192, 2304, 16384, 32)

    @property
    def llama(self) -> Sizes:
        return Sizes(256, 96, 1024, 8) if self.tiny else Sizes(8192, 4096, 32768, 32)

    @property
    def rounds(self) -> int:
        return 2 if self.tiny else 9

    @property
    def burst(self) -> int:
        return 1 if self.tiny else 10

    def given(self, sizes: Sizes, *, half: bool | None = None, dead_share: float = 0.0, batches: int = 8) -> Problem:
        """The problem of these sizes; in bf16 where that is fast."""
        chosen = self.device.type == "cuda" if half is None else half
        return problem(sizes, device=self.device, half=chosen, dead_share=dead_share, batches=batches)


class Goal(NamedTuple):
    """What was asked of a number."""

    what: str
    asked: float
    measured: float
    unit: str = ""
    at_least: bool = False
    """Whether more is better."""

    @property
    def share(self) -> float:
        """1 where the goal is just met, more where it is passed."""
        over, under = (self.measured, self.asked) if self.at_least else (self.asked, self.measured)
        return over / under if under else math.inf

    def line(self) -> tuple[str, ...]:
        """As a row of a table."""
        sign = "≥" if self.at_least else "≤"
        verdict = "met" if self.share >= 1 else "missed"
        return self.what, f"{sign} {self.asked:g} {self.unit}", f"{self.measured:.4g}", f"{self.share:.2f}", verdict


class Found(NamedTuple):
    """What a part brought home."""

    numbers: dict[str, Any]
    goals: tuple[Goal, ...] = ()
    text: str = ""
    """Markdown."""


# ---- correctness --------------------------------------------------------------------------------


def correctness(scale: Scale, width: int, k: int) -> Found:
    """Every kernel at this width and k, for every number of latents and both precisions, against float64.

    Raises:
        AssertionError: names each that is off.
    """
    numbers, wrong = {}, []
    tokens = 64 if scale.tiny else 1024
    for d_sae in (512, 1024) if scale.tiny else (16384, 32768, 65536):
        for half in (False, True):
            sizes = Sizes(tokens, width, d_sae, k)
            backend = "triton" if scale.device.type == "cuda" else "auto"
            parts = make_parts(scale.given(sizes, half=half, batches=1), backend)
            for label, (off, why) in _checked(parts).items():
                numbers[f"{sizes} {'bf16' if half else 'fp32'} {label}"] = off
                if why is not None:
                    wrong.append(f"{sizes} {'bf16' if half else 'fp32'} {label}: {why}")
            _free()
    if wrong:
        raise AssertionError("; ".join(wrong))
    worst = max(numbers, key=lambda name: numbers[name])
    return Found(numbers, text=f"{len(numbers)} checks hold; the farthest from float64: {worst}, {numbers[worst]:.1e}")


def _checked(parts: Parts) -> dict[str, tuple[float, str | None]]:
    """Of ours, how far each operation is off, and what is wrong with it."""
    found = {}
    for name, make in OPERATIONS.items():
        operation = make(parts)
        for label in (OURS, "ours, gradients kept"):
            if label in operation.forms:
                found[f"{name}, {label}"] = off_by(operation.forms[label], operation.bound)
    return found


def same_step(scale: Scale) -> Found:
    """A step played from a CUDA graph moves the weights as one launched does, to the bit, and as dense products do."""
    wrong, numbers = [], {}
    for share in (0.0, 0.1):
        given = scale.given(scale.gemma, dead_share=share)
        ends = {}
        for name, played in (("played", True), ("launched", False), ("played again", True)):
            trainer = Ours(given, played=played)
            for number in range(12):
                trainer.step(given.batches[number % len(given.batches)])
            ends[name] = trainer.weights()
        for name in ("launched", "played again"):
            pairs = zip(ends["played"], ends[name], strict=True)
            apart = [field for field, (a, b) in zip(ends[name]._fields, pairs, strict=True) if not torch.equal(a, b)]
            if apart:
                wrong.append(f"{len(given.dead) if given.dead is not None else 0} dead: {name} differs in {apart}")
        try:
            numbers[f"curve, {share:.0%} dead"] = check(given, 20)
        except SystemExit as error:
            wrong.append(str(error))
        _free()
    if wrong:
        raise AssertionError("; ".join(wrong))
    return Found(numbers, text="Played, launched and played again: the same bits. The loss curve is the definition's.")


# ---- limits and kernels -------------------------------------------------------------------------


def limits(scale: Scale) -> Found:
    """What this device does: the encoder's product, a copy, and gathers of rows from all of memory or of the cache."""
    tokens, d_in, d_sae, k = scale.gemma
    dtype = torch.bfloat16 if scale.device.type == "cuda" else torch.float32
    random = partial(torch.randn, device=scale.device, dtype=dtype)
    x, W_enc, copied = random(tokens, d_in), random(d_in, d_sae), random(2**20 if scale.tiny else 2**29)
    far, near = random(d_sae * (1 if scale.tiny else 16), d_in), random(min(d_sae, 4096), d_in)
    draw = partial(torch.randint, size=(tokens * k // 4,), device=scale.device)
    from_far, from_near = draw(len(far)), draw(len(near))
    other = torch.empty_like(copied)
    pieces = sorted({min(tokens, rows) for rows in (encode_tokens(d_sae, scale.device), 512, 1024, 2048, tokens)})
    products = {f"product of {rows} tokens": rows for rows in pieces}
    cases: dict[str, Callable[[], object]] = {
        **{name: partial(torch.mm, x[:rows], W_enc) for name, rows in products.items()},
        "copy": lambda: other.copy_(copied),
        "gather, far": partial(torch.index_select, far, 0, from_far),
        "gather, near": partial(torch.index_select, near, 0, from_near),
    }
    seconds = interleaved(cases, scale.rounds, scale.device, burst=scale.burst, record=True)
    size, gathered = dtype.itemsize, 2 * len(from_far) * d_in * dtype.itemsize
    done = {
        **{name: 2e-12 * rows * d_in * d_sae for name, rows in products.items()},
        "copy": 2e-9 * copied.numel() * size,
        "gather, far": 1e-9 * gathered,
        "gather, near": 1e-9 * gathered,
    }
    rates = {name: done[name] / median(seconds[name]) for name in cases}
    units = {name: "TFLOP/s" if name in products else "GB/s" for name in cases}
    goals = (
        Goal("encoder product", 0.85 * FLOPS / 1e12, rates[f"product of {tokens} tokens"], "TFLOP/s", at_least=True),
    )
    rows = [(name, f"{rates[name]:.0f} {units[name]}") for name in cases]
    return Found({"seconds": seconds, "rates": rates}, goals, table(("limit", "rate"), rows))


KERNEL_GOALS = {"decode_loss": 400e-6, "rows_adam": 1.45e-3, "topk": 125e-6}
"""Seconds at most, at Gemma's sizes; at Llama's as many as the bytes are more."""


def kernels(scale: Scale, llama: bool) -> Found:
    """Each operation of a step alone, and the share of its time in which its bytes could be copied."""
    sizes = scale.llama if llama else scale.gemma
    parts = make_parts(scale.given(sizes, batches=1))
    grown = _moved(scale.llama) / _moved(scale.gemma) if llama else 1.0
    numbers, goals, texts = {}, [], []
    for name, make in OPERATIONS.items():
        found = measure(make(parts), rounds=scale.rounds, burst=scale.burst, device=scale.device, but=("definition",))
        numbers[name] = found
        texts.append(show_operation(name, found))
        if "seconds" not in found:
            raise AssertionError(f"{name}: {found['wrong'][OURS]}")
        taken = median(found["seconds"][OURS])
        if name in KERNEL_GOALS:
            factor = grown if name == "rows_adam" else sizes.d_in / scale.gemma.d_in
            factor = sizes.d_sae / scale.gemma.d_sae if name == "topk" else factor
            goals.append(Goal(f"{name}, {sizes}", 1e6 * KERNEL_GOALS[name] * factor, 1e6 * taken, "µs"))
            goals.append(Goal(f"{name}, share of copying its bytes", 0.7, floor_share(found)[0], at_least=True))
        _free()
    return Found(numbers, tuple(goals), "\n\n".join(texts))


def _moved(sizes: Sizes) -> float:
    """Bytes of two gathers and a pass of Adam."""
    tokens, d_in, d_sae, k = sizes
    return 4.0 * tokens * k * d_in + 52.0 * d_sae * d_in


def older(scale: Scale, name: str) -> Found:
    """A form of today beside the one before it, at the wide SAE the roofline was laid on and at Gemma's sizes."""
    numbers, goals, rows = {}, [], []
    for sizes in (scale.gemma._replace(d_sae=4 * scale.gemma.d_sae), scale.gemma):
        cases = OLDER[name](scale.given(sizes, batches=1))
        seconds = interleaved(cases, scale.rounds, scale.device, burst=scale.burst, record=True)
        numbers[str(sizes)] = seconds
        over = ratios(seconds[NOW], seconds[BEFORE])
        goals.append(Goal(f"{name}, now over before, {sizes}", 1.0, over[0]))
        rows.append((str(sizes), *(both(milliseconds(seconds[form]), 3) for form in (BEFORE, NOW)), both(over)))
        _free()
    return Found(numbers, tuple(goals), table(("sizes", "before, ms", "now, ms", "now over before"), rows))


# ---- steps --------------------------------------------------------------------------------------

TIMES = {"sparsify, Adam": 2.0, "SAELens, default": 3.0, "dictionary_learning, einsum patched": 3.0}
"""How many of our steps a step of each peer has to take."""


def floor_seconds(sizes: Sizes) -> float:
    """The least a step can take by arithmetic: product, pre-acts written and read, three gathers, a pass of Adam."""
    tokens, d_in, d_sae, k = sizes
    product = 2.0 * tokens * d_in * d_sae / FLOPS
    return product + (4.0 * tokens * d_sae + 6.0 * tokens * k * d_in + 52.0 * d_sae * d_in) / BYTES


def steps(scale: Scale, llama: bool) -> Found:
    """A step of ours and of all that is installed, the floor, and the memory each takes."""
    sizes = scale.llama if llama else scale.gemma
    given = scale.given(sizes, batches=4)
    chosen = {name: method for name, method in methods(half=given.half).items() if name != "dictionary_learning"}
    found = compare(chosen, given, rounds=scale.rounds, burst=scale.burst)
    seconds = found["seconds"]
    _free()
    found["peak_bytes"] = {
        name: peak_bytes(chosen[name], given) for name in (OUR_STEP, f"{DENSE}, autocast") if name in seconds
    }
    ours, floor = median(seconds[OUR_STEP]), floor_seconds(sizes)
    goals = [
        Goal(f"step, {sizes}", 11.2 if llama else 4.0, 1e3 * ours, "ms"),
        Goal("share of the floor by arithmetic", 0.55, floor / ours, at_least=True),
        Goal("share of the floor, stretch", 0.70, floor / ours, at_least=True),
        *(
            Goal(f"times {name}", least, min(ratios(seconds[name], seconds[OUR_STEP])), at_least=True)
            for name, least in TIMES.items()
            if name in seconds
        ),
    ]
    rows = [
        (name, both(milliseconds(each)), both(ratios(each, seconds[OUR_STEP])), f"{found['fvu'][name]:.4f}")
        for name, each in seconds.items()
    ]
    parts = ", ".join(f"{name} {1e3 * median(each):.3f} ms" for name, each in found["floor"].items())
    rate = f"{sizes.tokens / ours / 1e6:.2f} million tokens / s; floor by arithmetic {1e3 * floor:.3f} ms, here {parts}"
    absent = "".join(f"\n{name}: {why}" for name, why in found["absent"].items())
    peaks = {name: _mib(peak) for name, peak in found["peak_bytes"].items()}
    text = f"{table(('method', 'ms', 'over ours', 'FVU after'), rows)}\n\n{rate}; peaks {peaks}{absent}"
    return Found(found, tuple(goals), text)


def crossover(scale: Scale) -> Found:
    """Steps by sparse sums and by dense products over k, and what ``auto`` makes of it: never slower than dense."""
    every = (4, 32) if scale.tiny else (32, 64, 128, 256)
    sparse: Backend = "triton" if scale.device.type == "cuda" else "cpu"
    backends: tuple[Backend, ...] = (sparse, "dense", "auto")
    numbers, goals, rows = {}, [], []
    for k in every:
        given = scale.given(scale.gemma._replace(k=k, tokens=scale.gemma.tokens // 2), batches=2)
        cases: dict[str, Running] = {name: Running(Ours(given, backend=name), given) for name in backends}
        _warm(cases)
        seconds = interleaved(cases, scale.rounds, scale.device, burst=scale.burst)
        numbers[k] = seconds
        goals.append(Goal(f"auto over dense, k={k}", 1.02, ratios(seconds["auto"], seconds["dense"])[0]))
        rows.append((str(k), *(both(milliseconds(seconds[name]), 3) for name in backends)))
        _free()
    return Found(numbers, tuple(goals), table(("k", *(f"{name} ms" for name in backends)), rows))


def auxk(scale: Scale) -> Found:
    """What AuxK adds to a step when a tenth of the latents is dead."""
    alive, dying = (scale.given(scale.gemma, dead_share=share, batches=4) for share in (0.0, 0.1))
    cases = {"without": Running(Ours(alive), alive), "with": Running(Ours(dying), dying)}
    cases["with, dense"] = Running(Dense(dying, autocast=dying.half), dying)
    _warm(cases)
    seconds = interleaved(cases, scale.rounds, scale.device, burst=scale.burst)
    goal = Goal("step with AuxK over without", 1.15, ratios(seconds["with"], seconds["without"])[0])
    rows = [
        (name, both(milliseconds(each), 3), both(ratios(each, seconds["without"]))) for name, each in seconds.items()
    ]
    return Found(seconds, (goal,), table(("AuxK", "ms", "over without"), rows))


def _warm(cases: dict[str, Running]) -> None:
    """Steps until a graph is recorded."""
    for case in cases.values():
        for _ in range(5):
            case()


# ---- feeding ------------------------------------------------------------------------------------


def feeding(scale: Scale) -> Found:
    """Steps fed from shards on the disk, over the longer of what steps and reading take alone."""
    from features import made_up_shards

    from sae_forge.data.stream import ActivationStream
    from sae_forge.training.feed import feed

    count = 3 if scale.tiny else 40
    sizes = scale.gemma
    given = scale.given(sizes, batches=4)
    with tempfile.TemporaryDirectory() as folder:
        reader = made_up_shards(given, Path(folder), batches=count)
        names = [reader.folder / shard.file for shard in reader.manifest.shards]
        stream = ActivationStream([reader], batch_size=sizes.tokens, seed=0)
        trainer = Ours(given)
        run = Running(trainer, given)
        _warm({"": run})

        def load() -> Iterator[Tensor]:
            _forget(names)
            with closing(cast("Any", stream.batches(0))) as batches:
                yield from islice(feed(batches, scale.device), stream.batches_per_epoch)

        def only_load() -> None:
            for _ in load():
                pass

        def only_steps() -> None:
            for _ in range(stream.batches_per_epoch):
                run()

        def together() -> None:
            for batch in load():
                trainer.step(batch)

        def in_order() -> None:
            _forget(names)
            for name in names:
                with name.open("rb", buffering=0) as file:
                    while file.read(2**23):
                        pass

        cases = {"file": in_order, "load": only_load, "steps": only_steps, "both": together}
        seconds = interleaved(cases, 2 if scale.tiny else 3, scale.device)
        moved = 1e-9 * sum(name.stat().st_size for name in names)
    longest = [max(a, b) for a, b in zip(seconds["load"], seconds["steps"], strict=True)]
    goals = (
        Goal("loader over reading in order", 0.8, ratios(seconds["file"], seconds["load"])[0], at_least=True),
        Goal("steps fed over the longer of both", 1.1, ratios(seconds["both"], longest)[0]),
    )
    rows = [(name, both(milliseconds(each), 0), f"{moved / median(each):.2f}") for name, each in seconds.items()]
    return Found(seconds, goals, table(("an epoch", "ms", "GB / s"), rows))


def _forget(names: list[Path]) -> None:
    """Drop the files from memory, as far as the system does so when asked."""
    for name in names:
        with name.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def features(scale: Scale) -> Found:
    """The pass that ``features`` makes, over encoding alone."""
    from features import compare as compare_passes
    from features import show

    found = compare_passes(scale.given(scale.gemma, batches=2 if scale.tiny else 4), rounds=2 if scale.tiny else 3)
    return Found(found, text=show(found))


# ---- with a model -------------------------------------------------------------------------------


def generation(scale: Scale) -> Found:
    """Cached generation with an edit after the middle layer of a model of full width, over the bare model."""
    from wide_model import texts, wide_llama

    from sae_forge.hookpoint import HookPoint
    from sae_forge.interventions.apply import applied
    from sae_forge.methods.edits.clamp import clamp
    from sae_forge.methods.edits.scale import scale as scaled
    from sae_forge.sae.topk import TopKSAE
    from sae_forge.tasks.engines.generation import Sampling, write

    sizes = scale.llama
    lm = wide_llama(2 if scale.tiny else 32, sizes.d_in, scale.device)
    sae, point = TopKSAE(sizes.d_in, sizes.d_sae, sizes.k, seed=1).to(scale.device), HookPoint(lm.n_layers // 2)
    latents = tuple(range(0, sizes.d_sae, sizes.d_sae // 100))[:100]
    edits = {"bare model": None, "scale": scaled(latents), "clamp": clamp(latents)}
    prompts, sampling = texts(8), Sampling(max_new_tokens=4 if scale.tiny else 32)

    def ask(name: str) -> None:
        edit = edits[name]
        with nullcontext() if edit is None else applied(lm, sae, point, edit):
            write(lm, prompts, sampling, batch_size=len(prompts))

    seconds = interleaved({name: partial(ask, name) for name in edits}, 2 if scale.tiny else 5, scale.device)
    over = {name: ratios(seconds[name], seconds["bare model"]) for name in edits}
    goals = tuple(Goal(f"generation with {name} over bare", 1.05, over[name][0]) for name in edits if edits[name])
    rows = [(name, both(milliseconds(seconds[name]), 0), both(over[name], 3)) for name in edits]
    return Found(seconds, goals, table(("edit", "ms", "over bare"), rows))


def collecting(scale: Scale) -> Found:
    """Text to shards through four layers of full width, over the same batches read at the same layer and not stored."""
    from wide_model import texts, wide_llama

    from sae_forge.collect import collect
    from sae_forge.data.texts.packing import iter_packed
    from sae_forge.hookpoint import HookPoint
    from sae_forge.models.hooks import capture

    lm = wide_llama(2 if scale.tiny else 4, scale.llama.d_in, scale.device)
    point, tokens = HookPoint(lm.n_layers - 1), 2048 if scale.tiny else 131_072
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus.jsonl"
        lines = texts(tokens // 64)
        corpus.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines), encoding="utf-8")
        config = CollectConfig(
            model=lm.name,
            layer=(point.layer,),
            run_dir=Path(folder) / "run",
            ctx_len=128 if scale.tiny else 1024,
            max_tokens=tokens,
            fresh=True,
        )
        batches = [*iter_packed(lines, cast("Any", lm.tokenizer), **_packing(config))]

        def bare() -> None:
            for batch in batches:
                capture(lm, (point,), batch.token_ids, batch.attention_mask)

        cases = {"bare": bare, "collect": partial(collect, config, lm, [("retain", str(corpus))])}
        seconds = interleaved(cases, 2 if scale.tiny else 4, scale.device)
    share = ratios(seconds["bare"], seconds["collect"])
    rows = [(name, both(milliseconds(each), 0), f"{tokens / median(each):.0f}") for name, each in seconds.items()]
    goal = Goal("collect's share of the bare speed", 0.95, share[0], at_least=True)
    stored = 1e-9 * tokens * lm.d_model * 2 / median(seconds["collect"])
    text = f"{table(('pass', 'ms', 'tokens / s'), rows)}\n\n{both(share)} of the bare speed; {stored:.2f} GB / s stored"
    return Found(seconds, (goal,), text)


def _packing(config: CollectConfig) -> dict[str, Any]:
    return {
        "ctx_len": config.ctx_len,
        "batch_size": config.model_batch_size,
        "bos": config.bos,
        "max_tokens": config.max_tokens,
    }


# ---- profile ------------------------------------------------------------------------------------


def profile(scale: Scale) -> Found:
    """Where a step's time goes, kernel by kernel, and how much of it no kernel runs."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    given = scale.given(scale.gemma, dead_share=0.0, batches=4)
    run = Running(Ours(given), given)
    _warm({"": run})
    on_card = scale.device.type == "cuda"
    wanted = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_card else [])]
    count = 2 if scale.tiny else 5
    with profiled(activities=wanted) as seen:
        start = time.perf_counter()
        for _ in range(count):
            run()
        if on_card:
            torch.cuda.synchronize()
        spent = (time.perf_counter() - start) / count
    field = "self_device_time_total" if on_card else "self_cpu_time_total"
    per_step = {
        event.key: getattr(event, field) / count
        for event in seen.key_averages()
        if not on_card or str(event.device_type).endswith("CUDA")
    }
    most = sorted(per_step, key=lambda name: -per_step[name])[:30]
    busy = 1e-6 * sum(per_step.values())
    rows = [(name[:90], f"{per_step[name]:.1f}", f"{1e-4 * per_step[name] / spent:.1f}") for name in most]
    text = (
        f"{table(('kernel', 'µs a step', '% of it'), rows)}\n\n{1e3 * spent:.3f} ms a step, {1e3 * busy:.3f} in kernels"
    )
    return Found({"step_seconds": spent, "us_per_step": {name: per_step[name] for name in most}}, text=text)


def _mib(count: int | None) -> str:
    return "unknown" if count is None else f"{count / 2**20:.0f} MiB"


def _free() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class Part(NamedTuple):
    """One of them, and the seconds it may take."""

    run: Callable[[Scale], Found]
    seconds: int


WIDTHS, KS = (2304, 4096), (32, 64, 128)
CORRECTNESS: dict[str, Part] = {
    f"correctness, d={width} k={k}": Part(partial(correctness, width=width, k=k), 200) for width in WIDTHS for k in KS
}
"""Side by side: most of their time a CPU compiles."""
PARTS: dict[str, Part] = {
    "same step": Part(same_step, 60),
    "limits": Part(limits, 40),
    "kernels, Gemma": Part(partial(kernels, llama=False), 60),
    "steps, Gemma": Part(partial(steps, llama=False), 60),
    "AuxK": Part(auxk, 40),
    "kernels, Llama": Part(partial(kernels, llama=True), 60),
    "steps, Llama": Part(partial(steps, llama=True), 70),
    "profile": Part(profile, 40),
    "crossover": Part(crossover, 60),
    "generation": Part(generation, 70),
    "collecting": Part(collecting, 60),
    "feeding": Part(feeding, 60),
    "features": Part(features, 40),
    **{f"before and now: {name}": Part(partial(older, name=name), 40) for name in OLDER},
}
