"""Verb ``collect``: the activations of one or more corpora become shards, one pass a corpus for any number of sites.

What a shard holds depends on the corpus, the model and the settings alone: batches all have one shape, and each is
a function of its index. So a run killed at any moment goes on where it stopped and ends in the same bytes.
"""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch

import sae_forge
from sae_forge import files
from sae_forge.collect_plan import Job, describe, plan
from sae_forge.config import CollectConfig
from sae_forge.data.corpus import PackedBatch, Tokenizer, iter_packed, iter_texts
from sae_forge.data.shards import Fingerprint, Manifest, ShardWriter
from sae_forge.errors import ResourceError, ShardError
from sae_forge.hookpoint import HookPoint
from sae_forge.models.hooks import capture
from sae_forge.models.loading import LanguageModel
from sae_forge.models.tokens import real_token_mask
from sae_forge.progress import SILENT, Progress, Task
from sae_forge.runs import Run
from sae_forge.tensors import DTYPES

_SETTINGS = ("text_field", "split", "max_tokens", "ctx_len", "bos", "model_batch_size", "storage_dtype", "shard_rows")
"""What ``config.json`` repeats of the config: no path, and nothing that leaves the bytes as they are."""


@dataclass(frozen=True, kw_only=True)
class CollectReport:
    """What lies on disk now, and how long this call took to get there."""

    tokens: int
    """Real tokens of all corpora; each has a row at every hook point."""
    bytes: int
    """Size of all shards."""
    shards: int
    dropped: dict[str, int]
    """Tokens without a row: ``nonfinite`` rows over all hook points, ``special`` tokens of the corpora."""
    collected: int = field(compare=False)
    """Tokens this call ran through the model; 0 when everything was there already."""
    seconds: float = field(compare=False)
    folders: tuple[Path, ...]

    @property
    def tokens_per_second(self) -> float:
        """Rate of this call; 0 when everything was there already."""
        return self.collected / self.seconds if self.seconds else 0.0

    def summary(self) -> str:
        """One sentence."""
        lost = f"; dropped {self.dropped['nonfinite']:,} non-finite rows" if self.dropped["nonfinite"] else ""
        rate = f", {self.tokens_per_second:,.0f} tokens/s" if self.collected else ", all there already"
        return f"{self.tokens:,} tokens in {self.shards} shards, {self.bytes / 1e9:.3f} GB{rate}{lost}"

    def to_json(self) -> dict[str, Any]:
        """The metrics of ``--json``."""
        return {
            "tokens": self.tokens,
            "bytes": self.bytes,
            "shards": self.shards,
            "tokens_per_second": round(self.tokens_per_second, 1),
            "dropped": self.dropped,
        }


def collect(
    config: CollectConfig, lm: LanguageModel, corpora: Sequence[tuple[str, str]], progress: Progress = SILENT
) -> CollectReport:
    """Every corpus has a complete folder of shards at every hook point of ``config``.

    Folders that are complete are left alone; one that was begun is finished. Interrupted at any moment, the same call
    goes on.

    Args:
        corpora: (role, source) of each; the role is ``forget`` or ``retain``.

    Raises:
        ConfigError: a layer beyond the model, a context longer than it takes, or a corpus given twice.
        DataError: a corpus is missing, empty, or has no text field.
        ShardError: a folder holds shards of other settings; names the field.
        ResourceError: the disk cannot hold what is to come, or the device's memory a batch.
        NumericalError: more than 0.1 % of a corpus's activations are not finite.
    """
    started = time.monotonic()
    jobs = plan(config, lm, corpora)
    describe(config, lm, jobs, progress)
    files.require_disk(config.run_folder, sum(job.bytes_to_write for job in jobs))
    run = Run(config.run_folder)
    run.open(config.model)
    run.plan_corpora(job.name for job in jobs)
    done = [_collect_corpus(config, lm, job, progress) for job in jobs]
    manifests = [found for _, found in done]
    return _report(jobs, manifests, sum(tokens for tokens, _ in done), time.monotonic() - started)


def _collect_corpus(
    config: CollectConfig, lm: LanguageModel, job: Job, progress: Progress
) -> tuple[int, dict[HookPoint, Manifest]]:
    """Finish every folder of one corpus; returns the tokens that took, and the manifests."""
    collected = 0
    with ExitStack() as held:
        writers = {
            point: held.enter_context(
                ShardWriter(folder, job.fingerprints[point], shard_rows=config.shard_rows, fresh=config.starts_over)
            )
            for point, folder in job.folders.items()
        }
        for point, folder in job.folders.items():
            _note_settings(config, lm, job.fingerprints[point], folder)
        pending = {point: writer for point, writer in writers.items() if writer.manifest is None}
        if pending:
            behind = min(pending.values(), key=lambda writer: writer.next_batch)
            with progress.task(f"collect {job.name}", job.expected, "tokens") as task:
                if behind.rows:
                    progress.say(f"{job.name}: {behind.rows:,} tokens are there; going on")
                    task.advance(behind.rows)
                collected = _run_batches(config, lm, job, pending, task)
        return collected, {point: writer.finish() for point, writer in writers.items()}


def _run_batches(
    config: CollectConfig, lm: LanguageModel, job: Job, writers: dict[HookPoint, ShardWriter], task: Task
) -> int:
    """Run every batch that some writer lacks; returns the real tokens seen."""
    started, seen = time.monotonic(), 0
    batches = iter_packed(
        iter_texts(job.source, text_field=config.text_field, split=config.split),
        cast("Tokenizer", lm.tokenizer),
        ctx_len=config.ctx_len,
        batch_size=config.model_batch_size,
        bos=config.bos,
        max_tokens=config.max_tokens,
        start=min(writer.next_batch for writer in writers.values()),
    )
    for batch in batches:
        tokens = _store(lm, batch, {at: writer for at, writer in writers.items() if writer.next_batch == batch.index})
        seen += tokens
        held = sum(writer.rows for writer in writers.values()) * lm.d_model * DTYPES[config.storage_dtype].itemsize
        rate = seen / (time.monotonic() - started)
        task.advance(tokens, rate=f"{rate:,.0f} tokens/s", stored=f"{held / 1e9:.3f} GB")
    return seen


def _store(lm: LanguageModel, batch: PackedBatch, writers: dict[HookPoint, ShardWriter]) -> int:
    """Read one batch and hand each writer the rows of its real tokens; returns how many those are."""
    real = real_token_mask(batch.token_ids, batch.attention_mask, lm.special_ids)
    try:
        acts = capture(lm, list(writers), batch.token_ids, batch.attention_mask)
    except torch.OutOfMemoryError as error:
        raise ResourceError(
            f"a batch of {tuple(real.shape)} tokens does not fit on {lm.device}; lower --model_batch_size or --ctx_len"
        ) from error
    positions = torch.arange(real.shape[1]).expand_as(real)
    tokens = int(real.sum())
    for point, writer in writers.items():
        writer.write_batch(
            batch.index,
            acts[point][real.to(acts[point].device)],
            batch.seq_ids[:, None].expand_as(real)[real],
            positions[real],
            batch.token_ids[real],
            special=int(batch.attention_mask.sum()) - tokens,
        )
    return tokens


def _note_settings(config: CollectConfig, lm: LanguageModel, fingerprint: Fingerprint, folder: Path) -> None:
    """Write ``config.json``, or check that the shards there were computed in the same arithmetic."""
    path, model = folder / "config.json", lm.fingerprint()
    if path.exists() and not config.starts_over:
        found = files.read_json(path, kind=ShardError, what="the settings of a shard folder")
        recorded = found.get("model") if isinstance(found, dict) else None
        for name in ("dtype", "quantize"):
            was = recorded.get(name) if isinstance(recorded, dict) else None
            if was != model[name]:
                raise ShardError(
                    f"{folder} was collected under other settings: {name} expected {model[name]!r}, found {was!r}. "
                    "Repeat those settings, choose another --run_dir, or start over with --fresh"
                )
        return
    settings = config.settings()
    files.publish_json(
        path,
        {
            "command": "collect",
            "corpus": fingerprint.source,
            "hook_point": fingerprint.hook_point,
            "model": model,
            "role": fingerprint.role,
            "settings": {name: settings[name] for name in _SETTINGS},
            "versions": {"sae_forge": sae_forge.__version__}
            | {name: version(name) for name in ("datasets", "tokenizers", "torch", "transformers")},
        },
    )


def _report(
    jobs: Sequence[Job], manifests: Sequence[dict[HookPoint, Manifest]], collected: int, seconds: float
) -> CollectReport:
    every = [manifest for corpus in manifests for manifest in corpus.values()]
    first = [next(iter(corpus.values())) for corpus in manifests]
    return CollectReport(
        tokens=sum(manifest.rows + manifest.dropped["nonfinite"] for manifest in first),
        bytes=sum(shard.bytes for manifest in every for shard in manifest.shards),
        shards=sum(len(manifest.shards) for manifest in every),
        dropped={
            "nonfinite": sum(manifest.dropped["nonfinite"] for manifest in every),
            "special": sum(manifest.dropped["special"] for manifest in first),
        },
        collected=collected,
        seconds=seconds,
        folders=tuple(folder for job in jobs for folder in job.folders.values()),
    )
