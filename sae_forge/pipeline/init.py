"""``init``: a commented file of settings for a user's own model and texts, with what they will take on this machine."""

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from sae_forge.collect_plan import Job, fitted, peak_bytes, plan
from sae_forge.config.fields import described
from sae_forge.config.train import TrainConfig
from sae_forge.errors import ConfigError
from sae_forge.hookpoint import HookPoint
from sae_forge.models.hooks import capture
from sae_forge.models.loading import LanguageModel
from sae_forge.outcome import Outcome
from sae_forge.pipeline.bench import Bench, device_of
from sae_forge.pipeline.collect import corpora
from sae_forge.store import files

PRODUCT_SHARE = 0.7
"""Share of a training step that the encoder's dense product takes on a CPU, as profiled at 12,288 latents."""
PROBE_SECONDS = 2.0
"""How long the model is tried, after one pass that is not counted."""
GB = 1e9


def init(config: TrainConfig, bench: Bench, out: Path) -> Outcome:
    """Write ``out``: settings that ``run`` takes with ``--config``, each with why it is so.

    Raises:
        ConfigError: the file is there already, or no text to forget was named.
        DataError: a corpus is missing, empty or has no text field.
    """
    if out.exists():
        raise ConfigError(f"{out} is there; name another with --out, or delete it")
    if config.forget is None:
        raise ConfigError("name the text to forget with --forget, and text to keep with --retain")
    lm = bench.lm
    config = fitted(config, lm)
    jobs = plan(config, lm, corpora(config))
    for remark in (remark for job in jobs for remark in job.remarks):
        bench.progress.say(remark)
    tokens = sum(job.expected or 0 for job in jobs)
    rate = tokens_per_second(config, lm, list(jobs[0].folders))
    width = lm.width(next(iter(jobs[0].folders)))
    d_sae = config.saes(width)[0].d_sae
    trained = config.fitted(tokens)  # little text is taken several times, in smaller batches
    step = _step_seconds(trained, width, d_sae)
    steps = trained.max_steps or max(1, trained.epochs * tokens // trained.batch_size)
    weights, buffers = peak_bytes(config, lm, jobs)
    told = {
        "tokens": tokens,
        "shards_bytes": sum(job.bytes_to_write for job in jobs),
        "collect_seconds": tokens / rate,
        "tokens_per_second": rate,
        "d_sae": d_sae,
        "steps": steps,
        "train_seconds": steps * step,
        "memory_bytes": weights + buffers,
    }
    short = ""
    if tokens < trained.batch_size:
        short = f"; less than a batch of {trained.batch_size:,}, refused by train: more text or a smaller --batch_size"
    files.publish_bytes(out, "\n".join(_lines(config, lm, jobs, told)).encode())
    return Outcome(
        run=bench.run,
        outputs={"config": out},
        metrics=told,
        summary=f"{out}: {_reckoned(told)}{short}",
        then=f"sae-forge run --config {out}",
        noted=False,
    )


def tokens_per_second(config: TrainConfig, lm: LanguageModel, points: Sequence[HookPoint]) -> float:
    """How fast this machine reads text up to the hook points, on made-up tokens of the batch that is asked for."""
    shape = (config.model_batch_size, config.ctx_len)
    ids = torch.randint(lm.rows, shape, generator=torch.Generator().manual_seed(config.seed))
    capture(lm, points, ids, torch.ones(shape, dtype=torch.long))
    started, passes = time.monotonic(), 0
    while time.monotonic() - started < PROBE_SECONDS or not passes:
        capture(lm, points, ids, torch.ones(shape, dtype=torch.long))
        passes += 1
    return passes * ids.numel() / (time.monotonic() - started)


def _step_seconds(config: TrainConfig, d_in: int, d_sae: int) -> float:
    """A training step, reckoned from a slice of its dense product."""
    rows, device = min(config.batch_size, 512), device_of(config.sae_device)
    x, weights = torch.randn(rows, d_in, device=device), torch.randn(d_in, d_sae, device=device)
    seconds = []
    for _ in range(3):
        started = time.monotonic()
        (x @ weights).sum().item()
        seconds.append(time.monotonic() - started)
    return min(seconds) * config.batch_size / rows / PRODUCT_SHARE


def _reckoned(told: dict[str, Any]) -> str:
    return (
        f"about {told['tokens']:,} tokens, {told['shards_bytes'] / GB:.2f} GB of shards, "
        f"{_duration(told['collect_seconds'])} to collect; {told['d_sae']:,} latents, {told['steps']:,} steps, "
        f"{_duration(told['train_seconds'])} to train; {told['memory_bytes'] / GB:.1f} GB of memory"
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def _lines(config: TrainConfig, lm: LanguageModel, jobs: Sequence[Job], told: dict[str, Any]) -> Iterator[str]:
    """The file: what is decided as settings, what may be changed as comments."""
    yield f"# Settings for {lm.name} on {lm.device}; use them with: sae-forge run --config FILE"
    yield f"# Reckoned here: {_reckoned(told)}."
    yield "# A flag beats this file; sae-forge COMMAND --help lists all there is."
    yield from _settings(config, "The model", {
        "model": f"{lm.n_layers} layers, {lm.d_model} wide, at most {config.ctx_len} tokens a text here",
        "layer": "edits reach what lies above; a third, half and two thirds of the way up are worth trying",
        "site": None,
    }, layer=(next(iter(jobs[0].folders)).layer,))  # fmt: skip
    seen = "; ".join(f"{job.name}: {'unknown' if job.expected is None else f'{job.expected:,}'} tokens" for job in jobs)
    yield from _settings(config, f"The text ({seen})", {
        "forget": "what the model is to lose",
        "retain": "what it is to keep; text of the same genre tells topic from style",
        "text_field": None,
        "ctx_len": "tokens of a sequence",
        "max_tokens": f"of each corpus; {told['tokens_per_second']:,.0f} tokens a second were read here",
        "storage_dtype": "int8 takes half the disk, where rounding loses little",
    })  # fmt: skip
    yield from _settings(config, "The SAE", {
        "k": "latents a token; several (16,32,64) are trained at once",
        "expansion_factor": f"{told['d_sae']:,} latents; more are finer and take more text",
        "batch_size": "tokens a step",
    })  # fmt: skip
    yield "\n# ---- Questions (JSON lines of question, choices, answer); without any, loss alone is measured ----"
    for role in ("forget", "neighbour", "retain"):
        yield f'# {role}_questions = ["{role}.jsonl"]'
    yield "\n# ---- The edit ----"
    yield '# methods = ["all"]   # every published method in one table'
    yield "# sweep = true        # tuned on one half of the questions, reported on the other"
    yield ""


def _settings(config: TrainConfig, heading: str, why: dict[str, str | None], **decided: Any) -> Iterator[str]:
    """The settings of these names; one that is as it would be anyway is a comment itself."""
    yield f"\n# ---- {heading} ----"
    defaults = described(TrainConfig)
    for name, reason in why.items():
        value = decided.get(name, getattr(config, name))
        if value is None:
            continue
        said = f"{name} = {_toml(value)}"
        open_to = "" if name in config.spelled or name in decided or value != defaults[name].default else "# "
        yield f"{open_to}{said:<39} # {reason}" if reason else f"{open_to}{said}"


def _toml(value: Any) -> str:
    """A value as TOML; its strings are those of JSON."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else str(value)
