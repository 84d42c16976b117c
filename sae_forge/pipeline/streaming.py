"""``train --max_disk_gb``: more tokens than the disk holds, because collecting and training take turns.

A window of every corpus is collected, trained on and deleted, then the next. The text is tokenised once beforehand, to
know where the windows end. Taking turns wastes nothing as long as both can have all devices, and leaves at any moment
what one ``collect`` or one ``train`` would have left, so a stopped run goes on like theirs: the checkpoint says which
window is needed, and one that is gone or unfinished is collected again, the same bytes.
"""

import math
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from sae_forge import ranks
from sae_forge.collect import fill, forward_batches
from sae_forge.collect_plan import Job, fitted, plan
from sae_forge.config.train import TrainConfig
from sae_forge.data.manifest import Sidecar, complete, shard_number
from sae_forge.data.shard_file import ShardFile
from sae_forge.data.shards import Manifest, ShardReader, ShardWriter, row_bytes
from sae_forge.data.stream import ActivationStream
from sae_forge.data.texts.corpus import Tally
from sae_forge.data.texts.packing import PackedBatch
from sae_forge.data.windows import WindowedStream, WindowPlan, plan_windows
from sae_forge.data.writer import MAX_NONFINITE
from sae_forge.errors import ConfigError, DataError, ShardError
from sae_forge.hookpoint import HookPoint
from sae_forge.models.loading import LanguageModel
from sae_forge.models.tokens import real_token_mask
from sae_forge.pipeline.bench import Bench
from sae_forge.pipeline.collect import corpora
from sae_forge.progress import Task
from sae_forge.store import files

PLAN, RECORD = "plan.json", "collected.json"
_WINDOW = "window-*"


@contextmanager
def windowed(point: HookPoint, config: TrainConfig, bench: Bench) -> Iterator[tuple[WindowedStream, WindowPlan]]:
    """Training batches of every corpus the config names, and the plan of their windows.

    None of them is left after a block that ended well; after another, what is there is used by the next.

    Raises:
        ConfigError: another process trains on windows at this hook point, or a window would hold less than a batch.
        DataError: a corpus is missing, empty, or has no text field.
        ResourceError: the disk cannot hold a window.
        ShardError: windows of a run under other settings are still there, or one was damaged while it was used.
    """
    config = replace(fitted(config, bench.lm), layer=(point.layer,), site=point.site)
    kept = config if config.include_forget else replace(config, forget=None)
    team = ranks.here()
    jobs = {job.name: job for job in plan(config, bench.lm, corpora(kept))}
    with ExitStack() as held:
        folder = bench.run.windows(point)
        asked = _asked(config, bench.lm, jobs, point)
        with team.led() as first:
            if first:
                bench.run.note_texts({job.name: job.text for job in jobs.values()})
                held.enter_context(files.locked(folder))
                _require_free(folder, asked, config)
                _make_plan(folder / files.short_hash(asked), config, bench, jobs, point)
        folder /= files.short_hash(asked)
        windows = WindowPlan.read(folder / PLAN)
        collector = held.enter_context(_Collector(folder, windows, config, bench, jobs))
        rows, largest = sum(windows.rows), max(windows.rows)
        row = row_bytes(next(iter(windows.cuts.values())).fingerprint)
        bench.progress.say(
            f"plan: {rows:,} tokens at {point}, {rows * row / 1e9:.3f} GB, in {windows.count} windows of up to "
            f"{largest:,} tokens, {largest * row / 1e9:.3f} GB"
        )
        stream_of = partial(training_stream, config)
        try:
            yield WindowedStream(windows, collector, batch_size=config.batch_size, stream_of=stream_of), windows
        except ShardError as error:
            if str(folder) not in str(error):
                raise
            damage = str(error).partition("; ")[0]
            raise ShardError(f"{damage}; run the same command again, which collects this window anew") from error
        collector.discard()


def training_stream(config: TrainConfig, readers: Sequence[ShardReader], order: int = 0) -> ActivationStream:
    """The batches of training from these shards, in the order of this number and those after it."""
    return ActivationStream(
        readers,
        batch_size=config.batch_size,
        seed=config.seed,
        shuffle_gb=config.shuffle_gb,
        first_order=order,
    )


def _asked(config: TrainConfig, lm: LanguageModel, jobs: dict[str, Job], point: HookPoint) -> dict[str, Any]:
    """All that decides which windows there are and what is in them."""
    return {
        "max_disk_gb": config.max_disk_gb,
        "shard_rows": config.shard_rows,
        "batch_size": config.batch_size,
        "model": {**lm.fingerprint(), "name": "", "revision": ""},  # by its weights
        "corpora": {name: {**asdict(job.fingerprints[point]), "model": ""} for name, job in jobs.items()},
    }


def _require_free(folder: Path, asked: dict[str, Any], config: TrainConfig) -> None:
    """Refuse to put a second set of windows beside one that is still in use; with ``--fresh`` all of them go."""
    for rest in (*folder.glob(".????????.part"), *folder.glob(f"*/.{_WINDOW}.part")):  # of a run killed while deleting
        files.discard_rest(rest)
    if config.starts_over:
        files.discard_folder(folder / files.short_hash(asked))
    for window in folder.glob(f"*/{_WINDOW}"):
        if config.starts_over:
            files.discard_folder(window)
        elif window.parent.name != files.short_hash(asked):
            raise ShardError(
                f"{window.parent} holds a window of a run under other settings that was not finished; repeat those "
                "(--max_disk_gb, the corpora, --max_tokens, --batch_size …), or delete it with --fresh"
            )


def _make_plan(folder: Path, config: TrainConfig, bench: Bench, jobs: dict[str, Job], point: HookPoint) -> None:
    """Count the real tokens of every forward batch and cut the corpora; once for these settings."""
    if (folder / PLAN).exists():
        return
    assert config.max_disk_gb is not None
    most_bytes = int(config.max_disk_gb * 1e9)
    # refused before the text is read, which may take hours
    row = max(row_bytes(job.fingerprints[point]) for job in jobs.values())
    if (need := config.batch_size * row) > most_bytes:
        raise ConfigError(
            f"--max_disk_gb {config.max_disk_gb:g} holds no batch of {config.batch_size:,} tokens, which takes "
            f"{need / 1e9:.3g} GB; give several times that, or lower --batch_size"
        )
    counts = {name: (job.fingerprints[point], _count(config, bench, job)) for name, job in jobs.items()}
    least = config.batch_size + math.ceil(MAX_NONFINITE * config.batch_size)  # so many may be dropped as not finite
    windows = plan_windows(counts, shard_rows=config.shard_rows, most_bytes=most_bytes, least=least)
    windows.publish(folder / PLAN)


def _count(config: TrainConfig, bench: Bench, job: Job) -> np.ndarray:
    """Real tokens of each forward batch of a corpus."""
    tokens, special, tally = [], bench.lm.special_ids, Tally()
    with (
        bench.progress.task(f"count {job.name}", job.expected, "tokens") as task,
        closing(forward_batches(config, bench.lm, job.source, tally=tally)) as batches,
    ):
        for batch in batches:
            tokens.append(int(real_token_mask(batch.token_ids, batch.attention_mask, special).sum()))
            task.advance(tokens[-1])
    tally.judge()
    for remark in tally.lines(job.name):
        bench.progress.say(remark)
    return np.array(tokens, np.int64)


class _Collector:
    """Fills one window after the other, in one read of each corpus as long as they are asked for in order."""

    def __init__(
        self, folder: Path, windows: WindowPlan, config: TrainConfig, bench: Bench, jobs: dict[str, Job]
    ) -> None:
        self._folder, self._plan, self._config, self._bench, self._jobs = folder, windows, config, bench, jobs
        self._texts: dict[str, Generator[PackedBatch, None, None]] = {}
        self._next: dict[str, int] = {}
        self._whole: int | None = None
        """The window that this process has filled and not yet deleted."""

    def __enter__(self) -> "_Collector":
        return self

    def __exit__(self, *error: object) -> None:
        for texts in self._texts.values():
            texts.close()

    def fill(self, window: int) -> list[ShardReader]:
        """The shards of this window, complete; those of every other are gone."""
        team = ranks.here()
        team.at = f"window {window + 1}"
        target = self._folder / f"window-{window:05d}"
        held = [name for name, cut in self._plan.cuts.items() if cut.rows[window]]
        if window != self._whole:
            with team.led() as first:
                if first:
                    self._discard_all_but(target)
                    self._discard_damaged(target)
                    need = sum(row_bytes(cut.fingerprint) * cut.rows[window] for cut in self._plan.cuts.values())
                    there = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
                    files.require_disk(self._folder, max(0, need - there))
            progress, rows = self._bench.progress, sum(cut.rows[window] for cut in self._plan.cuts.values())
            with progress.task(f"collect window {window + 1} of {self._plan.count}", rows, "tokens") as task:
                manifests = {name: self._fill(name, window, target / name, task) for name in held}
            bad = {reason: sum(one.dropped[reason] for one in manifests.values()) for reason in ("nan", "infinite")}
            if any(bad.values()):
                told = ", ".join(f"{count:,} {reason}" for reason, count in bad.items() if count)
                progress.say(f"window {window + 1}: dropped rows: {told}")
            if lost := [fvu for one in manifests.values() if (fvu := one.rounding_fvu) is not None]:
                progress.say(f"window {window + 1}: int8 rounding leaves {max(lost):.2g} of the variance unexplained")
            with team.led() as first:
                if first:
                    self._note(window, manifests)
            self._whole = window
        return [ShardReader(target / name) for name in held]

    def discard(self) -> None:
        """No window is on disk any more."""
        self._whole = None
        with ranks.here().led() as first:
            if first:
                self._discard_all_but(None)

    def _fill(self, name: str, window: int, folder: Path, task: Task) -> Manifest:
        """One corpus's part of a window, from where it was left.

        Raises:
            DataError: the text is no longer that which the windows were cut from.
        """
        config, lm, cut = self._config, self._bench.lm, self._plan.cuts[name]
        fingerprint = cut.fingerprint_of(window)
        end = cut.ends[window]
        with ShardWriter(folder, fingerprint, shard_rows=config.shard_rows, team=ranks.here()) as writer:
            task.advance(writer.rows)
            if writer.manifest is None:
                if self._next.get(name) != writer.next_batch:  # not where the window before it ended: read anew
                    if name in self._texts:
                        self._texts[name].close()
                    source = self._jobs[name].source
                    self._texts[name] = forward_batches(config, lm, source, writer.next_batch)
                batches = islice(self._texts[name], end - writer.next_batch)
                fill(config, lm, batches, {HookPoint.parse(fingerprint.hook_point): writer}, task)
                self._next[name] = writer.next_batch
            if writer.next_batch != end:
                raise self._other_text(name, f"it ends before forward batch {end}")
            manifest = writer.finish()
        if manifest.seen != cut.rows[window]:
            how = f"window {window + 1} holds {manifest.seen:,} tokens of it, not {cut.rows[window]:,}"
            raise self._other_text(name, how)
        return manifest

    def _other_text(self, name: str, how: str) -> DataError:
        return DataError(
            f"{self._jobs[name].source} is no longer the text that the windows were cut from: {how}; restore it, or "
            "start over with --fresh"
        )

    def _discard_damaged(self, target: Path) -> None:
        """Read what a run that was stopped left of a window, and delete it if it is damaged: it is collected again."""
        try:
            for folder in target.glob("*"):
                numbers = [n for path in folder.glob("shard-*.json") if (n := shard_number(path.name)) is not None]
                # up to the last that is there, so that a gap before it counts as damage
                last = len(Manifest.read(folder).shards) - 1 if complete(folder) else max(numbers, default=-1)
                for index in range(last + 1):
                    ShardFile(folder, Sidecar.read(folder, index)).verify()
        except ShardError as error:
            self._bench.progress.say(f"{str(error).partition('; ')[0]}; collecting this window again")
            files.discard_folder(target)

    def _discard_all_but(self, target: Path | None) -> None:
        for path in self._folder.glob(_WINDOW):
            if path != target:
                files.discard_folder(path)

    def _note(self, window: int, manifests: dict[str, Manifest]) -> None:
        """Keep what names the bytes of a window after it is gone, and say when they are others than before."""
        known = self._record()
        noted = {name: {"sha256": one.sha256, "rows": one.rows, **one.dropped} for name, one in manifests.items()}
        before = known.get(str(window))
        if before not in (None, noted):
            self._bench.progress.say(
                f"window {window + 1} did not come out as when it was first collected: another device, library or "
                "number of threads? What follows is not bit for bit what it would have been"
            )
        if before != noted:
            files.publish_json(self._folder / RECORD, {**known, str(window): noted})

    def _record(self) -> dict[str, Any]:
        """What is known of windows that were collected before.

        Raises:
            DataError: the record is damaged; nothing but a comparison is lost with it.
        """
        path, advice = self._folder / RECORD, "delete it and run the same command again"
        if not path.exists():
            return {}
        try:
            known = files.read_json(path, kind=DataError, what="a record of windows", proven=True)
        except DataError as error:
            raise DataError(f"{error}; {advice}") from error
        if not isinstance(known, dict):
            raise DataError(f"{path} is not a record of windows; {advice}")
        return known
