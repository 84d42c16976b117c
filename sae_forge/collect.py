"""Verb ``collect``: the activations of one or more corpora become shards, one pass a corpus for any number of sites.

What a shard holds depends on the corpus, the model and the settings alone: batches all have one shape, and each is
a function of its index. So a run killed at any moment goes on where it stopped and ends in the same bytes.

The model is not kept waiting: a thread tokenises ahead, writers put full shards on disk behind, and on a CUDA device
the next batch is under way before the rows of this one have been copied to memory.

Over several ranks each reads the text and runs the model on the batches of every n-th shard, its own; what lies on disk
at the end, and at any time, does not depend on their number.
"""

import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, NamedTuple

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor

import sae_forge
from sae_forge import ranks
from sae_forge.collect_plan import Job, looked_at
from sae_forge.config.collect import CollectConfig
from sae_forge.data.rounding import STORED
from sae_forge.data.shards import Fingerprint, Manifest, ShardWriter, complete
from sae_forge.data.texts.corpus import Tally, iter_texts
from sae_forge.data.texts.packing import PackedBatch, iter_packed
from sae_forge.data.texts.plain import form_of
from sae_forge.errors import ConfigError, ResourceError, ShardError
from sae_forge.hookpoint import HookPoint
from sae_forge.models.documents import DocumentTokenizer
from sae_forge.models.hooks import capture
from sae_forge.models.loading import LanguageModel
from sae_forge.models.tokens import packing, real_token_mask
from sae_forge.progress import SILENT, Progress, Task
from sae_forge.store import files
from sae_forge.store.remote import AnyPath
from sae_forge.store.runs import Run
from sae_forge.store.tensors import DTYPES

_TOKENS_AHEAD, _BATCHES_AHEAD = 2**19, 512
"""Tokens that may wait for the model: tokenizers take many texts at once, so batches come in bursts."""


@dataclass(frozen=True, kw_only=True)
class CollectReport:
    """What lies on disk now, and how long this call took to get there."""

    tokens: int
    """Real tokens of all corpora; each has a row at every hook point."""
    bytes: int
    """Size of all shards."""
    shards: int
    dropped: dict[str, int]
    """Tokens without a row: ``nan`` and ``infinite`` rows over all hook points, ``special`` tokens of the corpora."""
    rounding_fvu: float | None
    """Share of the variance of a folder's rows that rounding to int8 took, the largest of all folders; else None."""
    skipped: int
    """Documents of the corpora that cannot be read."""
    control: int
    """Control tokens that stand in the text, under a tokenizer that cannot read their spelling as text."""
    unmeasured: int
    """Folders in int8 whose rows vary by less than can be told, so that nobody knows what rounding took."""
    collected: int = field(compare=False)
    """Tokens this call ran through the model; 0 when everything was there already."""
    seconds: float = field(compare=False)
    folders: tuple[AnyPath, ...]

    @property
    def tokens_per_second(self) -> float:
        """Rate of this call; 0 when everything was there already."""
        return self.collected / self.seconds if self.seconds else 0.0

    def summary(self) -> str:
        """One sentence."""
        bad = {name: count for name, count in self.dropped.items() if count and name != "special"}
        lost = "; dropped rows: " + ", ".join(f"{count:,} {name}" for name, count in bad.items()) if bad else ""
        if self.rounding_fvu is not None:
            most = "at most " if len(self.folders) > 1 else ""
            lost += f"; int8 rounding leaves {most}{self.rounding_fvu:.2g} of the variance unexplained"
        if self.skipped:
            lost += f"; {self.skipped:,} unreadable documents skipped"
        if self.unmeasured:
            lost += f"; rows of {self.unmeasured} folders do not vary measurably: use bf16 or fp32 for them"
        rate = f", {self.tokens_per_second:,.0f} tokens/s" if self.collected else ", all there already"
        return f"{self.tokens:,} tokens in {self.shards} shards, {self.bytes / 1e9:.3f} GB{rate}{lost}"

    def to_json(self) -> dict[str, Any]:
        """The metrics of ``--json``."""
        return {
            "tokens": self.tokens,
            "bytes": self.bytes,
            "shards": self.shards,
            "tokens_per_second": round(self.tokens_per_second, 1),
            "dropped": {**self.dropped, "nonfinite": self.dropped["nan"] + self.dropped["infinite"]},
            "skipped_documents": self.skipped,
            "control_tokens_in_text": self.control,
            "rounding_fvu": self.rounding_fvu,
            "unmeasured": self.unmeasured,
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
        ConfigError: a layer beyond the model, a context longer than it takes, a corpus given twice, or one that another
            run collected and ``fresh`` would delete.
        DataError: a corpus is missing, empty, or has no text field.
        ShardError: a folder holds shards of other settings; names the field. Or the run's pointer leads to nothing.
        ResourceError: the disk cannot hold what is to come, or the device's memory a batch.
        NumericalError: more than 0.1 % of a corpus's activations are not finite.
    """
    started = time.monotonic()
    team, run = ranks.here(), Run(config.run_folder, config.shards_dir)
    config, jobs = looked_at(config, lm, corpora, progress)
    with team.led() as first:
        if first:
            run.begin([name for job in jobs for name in job.folder_names], fresh=config.starts_over)
            _require_own(run, jobs)
            run.open(config.model, lm.weights, opening=lm.opening.to_json())
            run.plan_corpora(job.name for job in jobs)
            run.note_texts({job.name: job.text for job in jobs})
    done = [_collect_corpus(config, lm, job, progress) for job in jobs]
    manifests = [of_corpus for _, of_corpus in done]
    return _report(jobs, manifests, sum(tokens for tokens, _ in done), time.monotonic() - started)


def _require_own(run: Run, jobs: Sequence[Job]) -> None:
    """Refuse to collect more into what another run has collected at a place that runs share."""
    if not run.elsewhere:
        return
    grown = [f"{job.name}/{point}" for job in jobs for point in job.pending if complete(job.folders[point])]
    if foreign := sorted(set(grown).difference(run.begun)):
        raise ConfigError(
            f"{run.shards}/{foreign[0]} was collected by another run, so {run.folder} does not collect more into it; "
            "give another --shards_dir, or the --max_tokens it was collected with"
        )


def _collect_corpus(
    config: CollectConfig, lm: LanguageModel, job: Job, progress: Progress
) -> tuple[int, dict[HookPoint, Manifest]]:
    """Finish every folder of one corpus; returns the tokens that took, and the manifests."""
    collected, team = 0, ranks.here()
    team.at = f"the corpus {job.name}"
    how: dict[str, Any] = {"shard_rows": config.shard_rows, "fresh": config.starts_over, "team": team}
    with ExitStack() as held:
        writers = {
            point: held.enter_context(ShardWriter(folder, job.fingerprints[point], **how))
            for point, folder in job.folders.items()
        }
        with team.led() as first:
            for point, folder in job.folders.items() if first else ():
                _note_settings(config, lm, job.fingerprints[point], folder)
        pending = {point: writer for point, writer in writers.items() if writer.manifest is None}
        if pending:
            tally, behind = Tally(), min(pending.values(), key=lambda writer: writer.next_batch)
            with progress.task(f"collect {job.name}", job.expected, "tokens") as task:
                if behind.rows:
                    progress.say(f"{job.name}: {behind.rows:,} tokens are there; going on")
                    task.advance(behind.rows)
                # The writer furthest behind says where to begin; the others are handed no batch they have.
                with closing(forward_batches(config, lm, job.source, behind.next_batch, tally)) as batches:
                    collected = fill(config, lm, batches, pending, task)
            tally.judge()
            remarks = tuple(tally.lines(job.name))
            for remark in remarks if remarks != job.remarks else ():  # a text from elsewhere is first read here
                progress.say(remark)
            for writer in pending.values():
                writer.finish(skipped=tally.skipped, control=tally.control)
        return collected, {point: writer.finish() for point, writer in writers.items()}


def forward_batches(
    config: CollectConfig, lm: LanguageModel, source: str, start: int = 0, tally: Tally | None = None
) -> Generator[PackedBatch, None, None]:
    """A corpus's forward batches from ``start`` on, made ahead by a thread, which ends with the iterator.

    Args:
        tally: Counts its documents from the first on, those before ``start`` among them.
    """
    tokenizer = DocumentTokenizer(lm, tally, form=form_of(config.normalize_text))
    batches = iter_packed(
        iter_texts(source, text_field=config.text_field, split=config.split, converse=tokenizer.converse, tally=tally),
        tokenizer,
        ctx_len=config.ctx_len,
        batch_size=config.model_batch_size,
        bos=packing(lm, config.bos),
        max_tokens=config.max_tokens,
        start=start,
    )
    ahead = _TOKENS_AHEAD // (config.ctx_len * config.model_batch_size)
    return _made_ahead(batches, min(max(1, ahead), _BATCHES_AHEAD))


def fill(
    config: CollectConfig,
    lm: LanguageModel,
    batches: Iterator[PackedBatch],
    writers: dict[HookPoint, ShardWriter],
    task: Task,
) -> int:
    """Run the model on these batches and hand each writer the rows it lacks; returns the real tokens seen.

    Raises:
        ResourceError: a batch does not fit into the device's memory.
        NumericalError: more than 0.1 % of the activations are not finite.
    """
    started, seen = time.monotonic(), 0
    for reading in _read_all(lm, batches, writers, config):
        tokens = _store(reading, writers)
        seen += tokens
        numbers = sum(writer.rows * lm.width(point) for point, writer in writers.items())
        held = numbers * STORED[config.storage_dtype].itemsize
        rate = seen / (time.monotonic() - started)
        task.advance(tokens, rate=f"{rate:,.0f} tokens/s", stored=f"{held / 1e9:.3f} GB")
    return seen


def _made_ahead(batches: Iterator[PackedBatch], count: int) -> Generator[PackedBatch, None, None]:
    """The same batches, up to ``count`` of them made beforehand by a thread, which ends with the iterator."""
    making = ThreadPoolExecutor(1, thread_name_prefix="tokenize")
    try:
        coming = deque(making.submit(next, batches, None) for _ in range(count))
        while (batch := coming.popleft().result()) is not None:
            coming.append(making.submit(next, batches, None))
            yield batch
    finally:
        making.shutdown(cancel_futures=True)


class _Reading(NamedTuple):
    """A batch that the model has read, or is reading."""

    batch: PackedBatch
    real: Bool[Tensor, "batch ctx"]
    acts: dict[HookPoint, Float[Tensor, "rows d_in"]]
    """Those of the real tokens; not to be touched before ``copied``."""
    copied: tuple[torch.cuda.Event, ...]
    elsewhere: tuple[HookPoint, ...] = ()
    """Points that lack it, if another rank runs the model on it."""


def _read_all(
    lm: LanguageModel, batches: Iterator[PackedBatch], writers: dict[HookPoint, ShardWriter], config: CollectConfig
) -> Iterator[_Reading]:
    """What the model makes of each batch at the points that lack it; a CUDA device has the next one by then."""
    ahead = int(lm.device.type == "cuda")
    under_way: deque[_Reading] = deque()
    behind = min(writers.values(), key=lambda writer: writer.next_batch)
    shard, rows = behind.begun, 0  # as the writers count them, who may not have seen the batches under way
    for batch in batches:
        points = [point for point, writer in writers.items() if writer.next_batch <= batch.index]
        real = real_token_mask(batch.token_ids, batch.attention_mask, lm.special_ids)
        if behind.is_own(shard):
            under_way.append(_read(lm, batch, real, points, DTYPES.get(config.storage_dtype)))
        else:
            under_way.append(_Reading(batch, real, {}, (), tuple(points)))
        rows += int(real.sum())
        if rows >= config.shard_rows:
            shard, rows = shard + 1, 0
        if len(under_way) > ahead:
            yield under_way.popleft()
    yield from under_way


def _read(
    lm: LanguageModel,
    batch: PackedBatch,
    real: Bool[Tensor, "batch ctx"],
    points: Sequence[HookPoint],
    dtype: torch.dtype | None,
) -> _Reading:
    """Begin to read one batch, without waiting for a CUDA device.

    Args:
        dtype: Rows leave the device in it; None: in the model's own, for rows that are rounded in memory.
    """
    # Counted on the CPU, where the mask lies: how many rows there are would have to be waited for on a device.
    kept = rearrange(real, "batch ctx -> (batch ctx)").nonzero()[:, 0]
    acts: dict[HookPoint, Tensor] = {}
    events: dict[torch.device, torch.cuda.Event] = {}
    try:
        for point, x in capture(lm, points, batch.token_ids, batch.attention_mask).items():
            flat = rearrange(x, "batch ctx d_in -> (batch ctx) d_in")
            rows = flat.index_select(0, kept.to(x.device, non_blocking=True))
            # "cpu" with non_blocking is pinned memory, which may not be read before the event below has happened
            acts[point] = rows.to(dtype or x.dtype).to("cpu", non_blocking=True) if x.is_cuda else rows
            if x.is_cuda:
                events.setdefault(x.device, torch.cuda.Event())
    except torch.OutOfMemoryError as error:
        raise ResourceError(
            f"a batch of {tuple(real.shape)} tokens does not fit on {lm.device}; lower --model_batch_size or --ctx_len"
        ) from error
    for device, event in events.items():  # after the copies of all points: one event stands for them all
        event.record(torch.cuda.current_stream(device))
    return _Reading(batch, real, acts, tuple(events.values()))


def _store(reading: _Reading, writers: dict[HookPoint, ShardWriter]) -> int:
    """Hand each writer the rows of a batch's real tokens; returns how many those are."""
    for event in reading.copied:
        event.synchronize()
    batch, real, tokens = reading.batch, reading.real, int(reading.real.sum())
    batch_size, ctx = real.shape
    positions = repeat(torch.arange(ctx), "ctx -> batch ctx", batch=batch_size)
    seq_ids = repeat(batch.seq_ids, "batch -> batch ctx", ctx=ctx)
    for point in reading.elsewhere:
        writers[point].pass_over(batch.index, tokens)
    for point, acts in reading.acts.items():
        writers[point].write_batch(
            batch.index,
            acts,
            seq_ids[real],
            positions[real],
            batch.token_ids[real],
            special=int(batch.attention_mask.sum()) - tokens,
        )
    return tokens


def _note_settings(config: CollectConfig, lm: LanguageModel, fingerprint: Fingerprint, folder: AnyPath) -> None:
    """Write ``config.json``, or check that the shards there were computed in the same arithmetic."""
    path, model = folder / "config.json", lm.fingerprint()
    if files.is_there(path) and not config.starts_over:
        noted = files.read_json(path, kind=ShardError, what="the settings of a shard folder")
        recorded = noted.get("model") if isinstance(noted, dict) else None
        for name in ("dtype", "quantize", "family"):
            was = recorded.get(name) if isinstance(recorded, dict) else None
            if was != (now := model.get(name)):
                raise ShardError(
                    f"{folder} was collected under other settings: {name} expected {now!r}, found {was!r}. "
                    "Repeat those settings, choose another --run_dir or --shards_dir, or start over with --fresh"
                )
        settings = noted.get("settings") if isinstance(noted, dict) else None
        if isinstance(settings, dict) and settings.get("max_tokens", config.max_tokens) != config.max_tokens:
            files.publish_json(path, noted | {"settings": settings | {"max_tokens": config.max_tokens}})
        return
    files.publish_json(
        path,
        {
            "command": "collect",
            "corpus": fingerprint.source,
            "hook_point": fingerprint.hook_point,
            "model": model,
            "role": fingerprint.role,
            "settings": config.deciding("shards"),
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
        tokens=sum(manifest.seen for manifest in first),
        bytes=sum(shard.bytes for manifest in every for shard in manifest.shards),
        shards=sum(len(manifest.shards) for manifest in every),
        dropped={
            **{name: sum(manifest.dropped[name] for manifest in every) for name in ("nan", "infinite")},
            "special": sum(manifest.dropped["special"] for manifest in first),
        },
        skipped=sum(manifest.skipped for manifest in first),
        control=sum(manifest.control for manifest in first),
        rounding_fvu=max((fvu for manifest in every if (fvu := manifest.rounding_fvu) is not None), default=None),
        unmeasured=sum(manifest.rounding is not None and manifest.rounding_fvu is None for manifest in every),
        collected=collected,
        seconds=seconds,
        folders=tuple(folder for job in jobs for folder in job.folders.values()),
    )
