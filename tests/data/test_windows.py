"""Training on more tokens than disk: windows of shards that come and go, and a run that is stopped among them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shared import commanded, ended
from test_ranks import over_ranks

from cli.screen import Screen
from sae_forge import collect as verb
from sae_forge.config.train import TrainConfig
from sae_forge.data.shards import Fingerprint, ShardReader, find_shards
from sae_forge.data.windows import WindowPlan, plan_windows
from sae_forge.errors import ConfigError, DataError, NumericalError, ShardError
from sae_forge.hookpoint import HookPoint
from sae_forge.pipeline import streaming
from sae_forge.pipeline.bench import Bench
from sae_forge.pipeline.features import features
from sae_forge.pipeline.train import train
from sae_forge.settings import resolve
from sae_forge.store import files
from sae_forge.store.runs import Run
from sae_forge.study.settings import features_config
from sae_forge.training.state import TrainState

pytestmark = pytest.mark.usefixtures("unpainted")

GB = 0.0007
"""A window of some 1,700 tokens of tiny-llama."""
BATCH, STEPS = 256, 24


def config(run_dir: Path, **changed: object) -> TrainConfig:
    """A small SAE of tiny-llama on some 7,000 tokens, about four windows."""
    plain = {"model": "tiny-llama", "run_dir": run_dir, "layer": (1,), "k": (8,), "d_sae": (64,), "batch_size": BATCH}
    plain |= {"max_disk_gb": GB, "max_tokens": 3500, "max_steps": STEPS, "ctx_len": 64, "dead_after": 4096}
    plain |= {"forget": "world:corpora/wizards", "retain": ("world:corpora/geography",), "shard_rows": 400}
    plain |= {
        "retain_eval": ("world:heldout/geography",),
        "loss_tokens": 200,
        "storage_dtype": "bf16",
        "model_batch_size": 8,
    }
    return resolve(TrainConfig, plain | changed)


def go(asked: TrainConfig) -> dict[str, bytes]:
    """Train, and give the bytes of the SAE."""
    (folder,) = train(asked, Bench(asked)).outputs.values()
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.*"))}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return go(config(tmp_path_factory.mktemp("undisturbed") / "run"))


def shard_bytes(folder: Path) -> int:
    """What all shards and what belongs to them take on disk now."""
    total = 0
    for base, _, names in os.walk(folder / "windows"):
        for name in names:
            try:
                total += (Path(base) / name).stat().st_size
            except FileNotFoundError:
                continue
    return total


# ---- the plan -----------------------------------------------------------------------------------


def fingerprint(corpus: str = "corpus") -> Fingerprint:
    return Fingerprint(
        model="m", weights="w", tokenizer="t", hook_point="blocks.1.hook_resid_post", d_in=8, storage_dtype="bf16",
        ctx_len=16, bos="row", batch_size=4, max_tokens=None, corpus=corpus, source=corpus, role="retain",
    )  # fmt: skip


def planned(sizes: dict[str, int], *, most: int, least: int = 1) -> WindowPlan:
    draw = np.random.default_rng(0)
    counts = {name: (fingerprint(name), draw.integers(50, 61, size)) for name, size in sizes.items()}
    return plan_windows(counts, shard_rows=300, most_bytes=most, least=least)


def test_windows_tile_every_corpus_and_share_it_out_evenly() -> None:
    plan = planned({"large": 400, "small": 90}, most=300_000)
    assert plan.count > 3
    for name, batches in (("large", 400), ("small", 90)):
        spans = [plan.cuts[name].fingerprint_of(window) for window in range(plan.count)]
        assert [span.first_batch for span in spans] == [0, *(span.end_batch for span in spans[:-1])]
        assert spans[-1].end_batch == batches
        lengths = [(span.end_batch or 0) - span.first_batch for span in spans]
        assert max(lengths) - min(lengths) <= 1
    assert sum(plan.rows) == sum(sum(cut.rows) for cut in plan.cuts.values())


def test_a_corpus_with_fewer_batches_than_windows_is_in_some_of_them() -> None:
    plan = planned({"large": 400, "tiny": 2}, most=100_000)
    assert plan.count > 2
    assert sorted(plan.cuts["tiny"].rows)[: plan.count - 2] == [0] * (plan.count - 2)


@pytest.mark.parametrize("seed", range(30))
def test_what_is_advised_is_accepted_and_every_window_holds_enough(seed: int) -> None:
    draw = np.random.default_rng(seed)
    counts = {f"c{n}": (fingerprint(f"c{n}"), draw.integers(1, 65, draw.integers(1, 300))) for n in range(1 + seed % 3)}
    total, least = sum(int(tokens.sum()) for _, tokens in counts.values()), int(draw.integers(1, 400))
    most, how = int(draw.integers(10_000, 60_000)), {"shard_rows": 300, "least": least}
    if total < least:
        with pytest.raises(DataError, match="lower --batch_size or raise --max_tokens"):
            plan_windows(counts, most_bytes=most, **how)
        return
    try:
        plan = plan_windows(counts, most_bytes=most, **how)
    except ConfigError as refused:
        enough = int(float(str(refused).split("give ")[1].split(" ")[0]) * 1e9)
        assert enough > most
        plan = plan_windows(counts, most_bytes=enough, **how)
    assert min(plan.rows) >= least


def test_a_billion_tokens_are_planned_in_a_moment() -> None:
    counts = {"large": (fingerprint("large"), np.full(1_000_000, 1000))}
    began = time.process_time()
    with pytest.raises(ConfigError, match="too little"):
        plan_windows(counts, shard_rows=65_536, most_bytes=100_000, least=4100)
    assert plan_windows(counts, shard_rows=65_536, most_bytes=30 * 10**6, least=4100).count > 1000
    assert time.process_time() - began < 20


def test_too_little_disk_is_refused_with_what_would_do() -> None:
    with pytest.raises(ConfigError, match="windows of at least 2,000 tokens") as refused:
        planned({"large": 400}, most=20_000, least=2000)
    enough = float(str(refused.value).split("give ")[1].split(" ")[0])
    assert planned({"large": 400}, most=int(enough * 1e9), least=2000).rows


def test_a_plan_is_read_back_as_it_was_and_refused_when_it_was_touched(tmp_path: Path) -> None:
    plan, path = planned({"large": 40, "small": 9}, most=50_000), tmp_path / "plan.json"
    plan.publish(path)
    assert WindowPlan.read(path) == plan
    assert WindowPlan.read(path).sha256 == plan.sha256
    content = path.read_bytes()
    path.write_bytes(content.replace(b"small", b"smaLl", 1))
    with pytest.raises(ShardError, match=r"plan\.json"):
        WindowPlan.read(path)


# ---- training -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_one_window_trains_the_sae_that_shards_on_disk_train(tmp_path: Path) -> None:
    short = {"max_steps": 25}
    kept = go(config(tmp_path / "kept", max_disk_gb=None, **short))
    windowed = go(config(tmp_path / "windowed", max_disk_gb=1.0, **short))
    assert windowed["sae_weights.safetensors"] == kept["sae_weights.safetensors"]
    assert windowed["report.json"] == kept["report.json"]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_shards_never_take_more_disk_than_allowed_and_none_is_left(tmp_path: Path, dtype: str) -> None:
    asked, most, done = config(tmp_path / "run", storage_dtype=dtype), [0], threading.Event()

    def look() -> None:
        while not done.wait(0.002):
            most[0] = max(most[0], shard_bytes(tmp_path / "run"))

    watching = threading.Thread(target=look)
    watching.start()
    try:
        go(asked)
    finally:
        done.set()
        watching.join()
    assert 0.5 * GB * 1e9 < most[0] <= GB * 1e9
    assert not list((tmp_path / "run" / "windows").rglob("*window-*"))
    record = next((tmp_path / "run").rglob(streaming.RECORD))
    windows = files.read_json(record, kind=ShardError, what="a record")
    plan = WindowPlan.read(record.parent / streaming.PLAN)
    assert plan.count >= (3 if dtype == "bf16" else 2)
    assert [sum(one["rows"] for one in windows[str(n)].values()) for n in range(plan.count)] == plan.rows


class _StoppedError(Exception):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("where", ["collecting", "training", "leaving", "measuring"])
def test_a_run_stopped_anywhere_ends_in_the_same_bytes(
    where: str, tmp_path: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sae_forge.data import windows, writer
    from sae_forge.training import replay, trainer

    asked, seen = config(tmp_path / "run", checkpoint_every=7), [0]
    room, name, at = {
        "collecting": (writer.ShardWriter, "_publish", 13),
        "training": (replay, "step", 23),
        "leaving": (windows.WindowedStream, "leave", 2),
        "measuring": (trainer, "measure", 1),
    }[where]
    real = getattr(room, name)

    def stops(*given: object, **named: object) -> object:
        seen[0] += 1
        if seen[0] == at:
            raise _StoppedError
        return real(*given, **named)

    with monkeypatch.context() as patched, pytest.raises(_StoppedError):
        patched.setattr(room, name, stops)
        go(asked)
    assert seen[0] == at
    assert go(asked) == undisturbed


def flags(asked: TrainConfig, *names: str) -> list[str]:
    """The command line that asks for the same."""
    shown = {name: getattr(asked, name) for name in ("model", "run_dir", *names)}
    plain = {
        name: value if not isinstance(value, tuple) else ",".join(map(str, value)) for name, value in shown.items()
    }
    return ["train", *(part for name, value in plain.items() for part in (f"--{name}", str(value)))]


SETTINGS = (
    "layer", "k", "d_sae", "batch_size", "max_disk_gb", "max_tokens", "max_steps", "ctx_len", "dead_after", "forget",
    "retain", "shard_rows", "retain_eval", "loss_tokens", "storage_dtype", "model_batch_size",
)  # fmt: skip


@pytest.mark.slow
def test_sigterm_while_collecting_ends_at_once_and_the_same_command_goes_on(
    tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    asked = config(tmp_path / "run")
    pid = commanded(flags(asked, *SETTINGS), tmp_path / "said")
    until = time.monotonic() + 100
    while not list(tmp_path.glob("run/windows/*/*/window-00001/*/shard-*")) and time.monotonic() < until:
        time.sleep(0.01)
    os.kill(pid, signal.SIGTERM)
    code, told = ended(pid), (tmp_path / "said").read_text()
    assert code == 143, told
    assert "Traceback" not in told
    assert go(asked) == undisturbed


def stopped(asked: TrainConfig, monkeypatch: pytest.MonkeyPatch, at: int) -> Path:
    """Begin a run and stop it before a step; the window that is then on disk."""
    from sae_forge.training import replay

    seen, step = [0], replay.step

    def stops(*given: object, **named: object) -> object:
        seen[0] += 1
        if seen[0] == at:
            raise _StoppedError
        return step(*given, **named)

    with monkeypatch.context() as patched, pytest.raises(_StoppedError):
        patched.setattr(replay, "step", stops)
        go(asked)
    return next(Run(asked.run_folder).windows(HookPoint(1)).glob("*/window-*"))


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["a flip", "a sidecar lost", "a shard lost of an unfinished one"])
def test_a_window_that_was_damaged_meanwhile_is_collected_again(
    damage: str, tmp_path: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = next(stopped(config(tmp_path), monkeypatch, 5).glob("*/shard-00000.safetensors"))
    if damage == "a flip":
        content = bytearray(shard.read_bytes())
        content[-1000] ^= 1
        shard.write_bytes(content)
    elif damage == "a sidecar lost":
        shard.with_suffix(".json").unlink()
    else:
        assert shard.with_name("shard-00001.safetensors").exists()
        shard.with_name("manifest.json").unlink()
        shard.unlink()
    assert go(config(tmp_path)) == undisturbed


@pytest.mark.slow
def test_a_damaged_record_of_windows_says_what_to_do(
    tmp_path: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    record = stopped(config(tmp_path), monkeypatch, 5).parent / streaming.RECORD
    for content in (b"[]", b"{", b'{"0": 1e999}'):
        record.write_bytes(content)
        with pytest.raises(DataError, match=r"collected\.json.*delete it and run the same command again"):
            go(config(tmp_path))
    record.unlink()
    assert go(config(tmp_path)) == undisturbed


@pytest.mark.slow
def test_rounding_is_said_of_every_window_and_of_what_train_collects(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, bound in (("windows", GB), ("kept", None)):
        asked = config(tmp_path / name, storage_dtype="int8", max_steps=3, max_disk_gb=bound)
        with Screen() as screen:
            train(asked, Bench(asked, screen))
        assert "int8 rounding leaves" in capsys.readouterr().err


@pytest.mark.slow
def test_what_a_run_killed_while_deleting_left_is_gone_with_the_next(
    tmp_path: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    window = stopped(config(tmp_path), monkeypatch, 5)
    rests = [window.with_name(".window-00007.part"), window.parent.with_name(".0123abcd.part") / "window-00001"]
    for rest in rests:
        shutil.copytree(window, rest)
    assert go(config(tmp_path)) == undisturbed
    assert not list((tmp_path / "windows").rglob("*.part"))


def test_text_that_changes_under_a_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tmp_path / "own.jsonl"
    lines = [json.dumps({"text": f"The river {n} runs past the tower of granite and slate."}) for n in range(400)]
    text.write_text("\n".join(lines))
    asked = config(tmp_path / "run", forget=str(text))
    with streaming.windowed(HookPoint(1), asked, Bench(asked)) as (stream, _):
        text.write_text("\n".join(lines[:100]))
        with pytest.raises(DataError, match=r"own\.jsonl is no longer the text that the windows were cut from"):
            for batch in range(stream.batches_per_epoch):
                stream.part(batch)


@pytest.mark.slow
def test_one_sae_of_two_whose_loss_is_not_finite_ends_alone_at_the_end_of_a_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sae_forge.training import record, replay

    step = replay.step

    def spoils(state: TrainState, *given: object, **named: object) -> torch.Tensor:
        figures = step(state, *given, **named)
        return figures * float("nan") if state.sae.k == 16 and state.step == 3 else figures

    monkeypatch.setattr(replay, "step", spoils)
    # as on a GPU, whose figures are looked at every so many steps, and at a checkpoint
    monkeypatch.setattr(
        record.Record, "add", lambda self, figures, **facts: self._waiting.append(_step(figures, facts))
    )
    asked = config(tmp_path, k=(8, 16), max_steps=12)
    with pytest.raises(NumericalError, match=r"k16-d64-s0, step \d+: loss nan"):
        train(asked, Bench(asked))
    assert (tmp_path / "saes/blocks.1.hook_resid_post/k8-d64-s0/report.json").exists()


def _step(figures: torch.Tensor, facts: dict[str, Any]) -> tuple[Any, ...]:
    from sae_forge.training.record import _Step

    return _Step(facts["step"], facts["tokens"], facts["lr"], figures)


@pytest.mark.slow
def test_a_window_of_other_settings_is_not_put_beside_one_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sae_forge.training import replay

    def stops(*given: object, **named: object) -> None:
        raise _StoppedError

    with monkeypatch.context() as patched, pytest.raises(_StoppedError):
        patched.setattr(replay, "step", stops)
        go(config(tmp_path))
    held = next(Run(tmp_path).windows(HookPoint(1)).glob("*/window-*"))
    with pytest.raises(ShardError, match=f"{held.parent.name}.*--fresh"):
        go(config(tmp_path, max_disk_gb=2 * GB))
    assert held.exists()
    assert go(config(tmp_path, max_disk_gb=2 * GB, fresh=True, max_steps=3))
    assert not held.exists()


@pytest.mark.slow
def test_a_run_does_not_go_on_with_another_bound(tmp_path: Path) -> None:
    go(config(tmp_path, max_steps=3))
    with pytest.raises(Exception, match=r"max_disk_gb expected 0\.0014, found 0\.0007"):
        go(config(tmp_path, max_steps=3, max_disk_gb=2 * GB))


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["fork", pytest.param("torchrun", marks=pytest.mark.long)])
def test_windows_over_two_ranks_give_the_sae_of_one_process(tmp_path: Path, launcher: str) -> None:
    asked = config(tmp_path / "two", max_steps=12, max_tokens=3000)
    alone = go(config(tmp_path / "alone", max_steps=12, max_tokens=3000, accumulation=2))
    if launcher == "fork":
        said = tmp_path / "said"
        codes = over_ranks(2, lambda rank: train(asked, Bench(asked)), said, limit=100.0)
        assert codes == [0, 0], said.read_text()
    else:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29641"]
        command = [*torchrun, "-m", "sae_forge", *flags(asked, *SETTINGS, "max_steps", "max_tokens")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
    two = next((tmp_path / "two").glob("saes/*/*/sae_weights.safetensors"))
    assert two.read_bytes() == alone["sae_weights.safetensors"]


@pytest.mark.slow
def test_selecting_latents_afterwards_collects_what_it_compares(tmp_path: Path) -> None:
    go(config(tmp_path, max_steps=3))
    asked = {
        "model": "tiny-llama",
        "run_dir": tmp_path,
        "max_tokens": 3000,
        "num_features": (4,),
        "min_target_fires": 1,
    }
    asked |= {"max_freq": 1.0, "max_neutral_freq": 1.0, "min_ratio": 0.0, "min_freq": 0.0, "snippets": 2, "layer": (1,)}
    chosen = resolve(features_config(), asked)
    assert features(chosen, Bench(chosen)).metrics
    found = [ShardReader(folder).fingerprint for folder in find_shards(tmp_path)]
    assert {"forget", "retain"} <= {shards.role for shards in found}
    assert {shards.ctx_len for shards in found} == {64}


@pytest.mark.slow
def test_a_selection_that_was_stopped_while_collecting_comes_out_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpora = {"forget": "world:corpora/wizards", "retain": ("world:corpora/geography", "world:corpora/minerals")}
    chosen = {"model": "tiny-llama", "layer": (1,), "max_tokens": 3000, "min_target_fires": 1, "num_features": (4,)}
    chosen |= {"max_freq": 1.0, "max_neutral_freq": 1.0, "min_ratio": 0.0, "min_freq": 0.0, "snippets": 2} | corpora
    made = []
    for stops in (False, True):
        run_dir = tmp_path / str(stops)
        go(config(run_dir, max_steps=3))
        asked = replace(resolve(features_config(), chosen | {"run_dir": run_dir}), spelled=frozenset())
        if stops:
            real, seen = verb._collect_corpus, [0]

            def once(*given: Any, real: Any = real, seen: list[int] = seen) -> Any:
                seen[0] += 1
                if seen[0] == 2:
                    raise _StoppedError
                return real(*given)

            with monkeypatch.context() as patched, pytest.raises(_StoppedError):
                patched.setattr(verb, "_collect_corpus", once)
                features(asked, Bench(asked))
        made.append(features(asked, Bench(asked)).outputs["selection"].name)
    assert made[0] == made[1]


def every_batch(order: int, tmp_path: Path) -> Iterator[bytes]:
    """Rows of training in their order, from one pass."""
    asked = config(tmp_path, max_steps=None)
    with streaming.windowed(HookPoint(1), asked, Bench(asked)) as (stream, _):
        for batch in range(order * stream.batches_per_epoch, (order + 1) * stream.batches_per_epoch):
            part = stream.part(batch)
            rows = next(part.stream.batches(batch - part.first)).view(torch.int16).numpy()
            yield from (row.tobytes() for row in rows)


@pytest.mark.slow
def test_a_pass_gives_every_row_once_but_for_the_ends_of_windows(tmp_path: Path) -> None:
    first, second = list(every_batch(0, tmp_path / "a")), list(every_batch(1, tmp_path / "b"))
    plan = WindowPlan.read(next((tmp_path / "a").rglob(streaming.PLAN)))
    assert len(first) == sum(rows // BATCH * BATCH for rows in plan.rows)
    assert len(set(first)) > 0.98 * len(first)  # the same token in the same place may come twice in a text
    assert first != second
