"""Training: it learns, it goes on to the same bits wherever it was stopped, and it refuses what would spoil it."""

import itertools
import json
import math
import shutil
import signal
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sae_forge.config.train import SaeShape, TrainConfig
from sae_forge.data.shards import Fingerprint, ShardReader, ShardWriter
from sae_forge.data.stream import ActivationStream
from sae_forge.errors import CheckpointError, ConfigError, DataError, NumericalError, ResourceError
from sae_forge.kernels import dispatch
from sae_forge.kernels.moments import Moments
from sae_forge.progress import SILENT
from sae_forge.sae.losses import fvu
from sae_forge.sae.store import CFG, WEIGHTS, Provenance, load_sae
from sae_forge.sae.topk import TopKSAE
from sae_forge.store import files
from sae_forge.training import auxk as auxk_module
from sae_forge.training import code as code_module
from sae_forge.training import sums as sums_module
from sae_forge.training.auxk import auxk, dead_latents
from sae_forge.training.initialisation import centre, geometric_median, input_scale, take_sample
from sae_forge.training.plan import Plan
from sae_forge.training.record import falling
from sae_forge.training.replay import Stepper
from sae_forge.training.schedule import LONG, default_lr, lr_at
from sae_forge.training.state import TrainState
from sae_forge.training.step import rates_of, step, train_step
from sae_forge.training.trainer import Place, train_sae, train_saes
from sae_forge.training.verdict import judged

D_IN, D_SAE, K, BATCH, STEPS = 12, 72, 3, 64, 14
PROVENANCE = Provenance(model="toy", hook_point="blocks.1.hook_resid_post", shards=("a" * 64,))


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_rows(count: int) -> Tensor:
    """Sums of two of 20 directions about a centre far from zero: what a TopK SAE with k=3 can learn."""
    directions = draw(20, D_IN, seed=1)
    directions /= directions.norm(dim=1, keepdim=True)
    code = torch.zeros(count, 20).scatter(1, draw(count, 20, seed=2).topk(2, dim=1).indices, 1.0)
    return (code * (2 + draw(count, 20, seed=3).abs())) @ directions + 5 * draw(D_IN, seed=4)


@pytest.fixture(scope="session")
def reader(tmp_path_factory: pytest.TempPathFactory) -> ShardReader:
    folder = tmp_path_factory.mktemp("shards")
    fingerprint = Fingerprint(
        model="toy", weights="w", tokenizer="t", hook_point="blocks.1.hook_resid_post", d_in=D_IN, storage_dtype="fp32",
        ctx_len=32, bos="row", batch_size=16, max_tokens=None, corpus="c", source="c", role="retain",
    )  # fmt: skip
    places = torch.arange(512)
    with ShardWriter(folder, fingerprint, shard_rows=1024) as writer:
        for index, rows in enumerate(make_rows(3072).split(512)):
            writer.write_batch(index, rows, places // 32 + 16 * index, (places % 32).int(), places.int())
        writer.finish()
    return ShardReader(folder)


@pytest.fixture
def stream(reader: ShardReader) -> ActivationStream:
    return ActivationStream([reader], batch_size=BATCH, seed=0)


def config(**settings) -> TrainConfig:
    given = {
        "model": "toy",
        "k": (K,),
        "d_sae": (D_SAE,),
        "batch_size": BATCH,
        "max_steps": STEPS,
        "lr": 0.01,
        "sae_device": "cpu",
    }
    return TrainConfig(**{**given, **settings})


HARD = {"dead_after": BATCH, "max_grad_norm": 0.5, "checkpoint_every": 4}
"""Every part of the state at work: AuxK with dead counters, clipping, checkpoints on the way."""


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


class Watcher:
    """Progress that calls back after each step, and keeps what was said."""

    def __init__(self, after_step=lambda step: None) -> None:
        self.said: list[str] = []
        self._after_step = after_step

    def say(self, line: str) -> None:
        self.said.append(line)

    @contextmanager
    def task(self, title, total, unit):
        watcher, done = self, 0

        class Task:
            def advance(self, amount: int, **facts: float | str) -> None:
                nonlocal done
                done += amount
                if unit == "step" and facts:
                    watcher._after_step(done)

        yield Task()


@pytest.fixture(scope="session")
def unbroken(reader: ShardReader, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What the hard run leaves when nothing stops it."""
    folder = tmp_path_factory.mktemp("unbroken") / "sae"
    train_sae(ActivationStream([reader], batch_size=BATCH, seed=0), config(**HARD), folder, PROVENANCE)
    return contents(folder)


# ---- learning -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_training_learns_and_reports_the_saved_weights(stream, reader, tmp_path):
    report = train_sae(stream, config(max_steps=300, lr=0.03), tmp_path / "sae", PROVENANCE)
    sae, provenance = load_sae(tmp_path / "sae")
    assert provenance.sink_norm and provenance == replace(PROVENANCE, sink_norm=provenance.sink_norm)
    x = torch.cat([block.acts for block in reader.iter_blocks()]).float()
    assert report.fvu < 0.05
    assert report.fvu == pytest.approx(float(fvu(x, sae(x))), rel=1e-3)  # the window is one epoch here
    acts = sae.encode(x)
    assert report.l0 == pytest.approx(float((acts.values > 0).float().sum(dim=1).mean()), rel=1e-3)
    fired = acts.indices[acts.values > 0].unique()
    assert report.dead_share == pytest.approx(1 - len(fired) / D_SAE)
    assert torch.allclose(sae.W_dec.norm(dim=1), torch.ones(D_SAE), atol=1e-6)
    assert (report.steps, report.tokens) == (300, 300 * BATCH)
    further = [f"level/step-000240/{part}" for part in ("optim.safetensors", "state.json", "weights.safetensors")]
    assert sorted(contents(tmp_path / "sae")) == sorted([CFG, "config.json", "report.json", WEIGHTS, *further])


def test_held_out_rows_are_what_the_report_is_measured_on(stream, tmp_path, reader):
    held_out = ActivationStream([reader], batch_size=256, seed=9)
    seen = []
    original = held_out.batches
    held_out.batches = lambda start=0: (seen.append(len(b)) or b for b in original(start))
    train_sae(stream, config(), tmp_path, PROVENANCE, held_out=held_out)
    assert sum(seen) == 3072


def test_epochs_count_whole_passes(stream, tmp_path):
    report = train_sae(stream, config(max_steps=None, epochs=2), tmp_path, PROVENANCE)
    assert report.steps == 2 * 3072 // BATCH


@pytest.mark.slow
def test_bf16_products_learn_nearly_as_well(stream, tmp_path):
    exact = train_sae(stream, config(max_steps=100), tmp_path / "fp32", PROVENANCE)
    half = train_sae(stream, config(max_steps=100, sae_dtype="bf16"), tmp_path / "bf16", PROVENANCE)
    assert half.fvu != exact.fvu
    assert half.fvu == pytest.approx(exact.fvu, abs=0.05)


@pytest.mark.slow
def test_auxk_revives_latents_that_plain_training_leaves_dead():
    directions = draw(40, 24, seed=1)
    directions /= directions.norm(dim=1, keepdim=True)
    dead = {}
    for alpha in (0.0, 1 / 32):
        settings = config(max_steps=150, auxk_alpha=alpha, dead_after=512)
        plan = Plan(config=settings, d_in=24, k=K, d_sae=48, seed=0, steps=150, lr=0.01, device=torch.device("cpu"))
        state = TrainState.start(TopKSAE(24, 48, K), 1.0)
        with torch.no_grad():
            state.sae.b_enc[:32] = -4.0  # so low that the other 16, too few for 40 directions, always come first
        for number in range(plan.steps):
            chosen = draw(128, 40, seed=number + 2).topk(2, dim=1)
            code = torch.zeros(128, 40).scatter(1, chosen.indices, 1 + chosen.values)
            train_step(state, code @ directions, plan)
        dead[alpha] = int((state.tokens_since_fired[:32] >= 512).sum())
    assert dead[1 / 32] <= 20 < 30 <= dead[0.0], dead


def test_the_log_holds_one_line_a_step(stream, tmp_path):
    log = tmp_path / "logs" / "train.jsonl"
    train_sae(stream, config(**HARD), tmp_path / "sae", PROVENANCE, log=log)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    names = {"step", "tokens", "loss", "fvu", "l0", "dead_share", "lr", "grad_norm", "tokens_per_second"}
    names |= {"read_gb_per_second", "waited"}
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert all(set(line) == names for line in lines)
    assert lines[-1]["tokens"] == STEPS * BATCH
    assert lines[0]["fvu"] == lines[0]["loss"] and lines[-1]["fvu"] < lines[0]["fvu"]
    assert any(line["loss"] > line["fvu"] for line in lines), "AuxK never joined the loss"
    train_sae(stream, config(), tmp_path / "other", PROVENANCE, log=tmp_path / "plain.jsonl")
    assert "grad_norm" not in json.loads((tmp_path / "plain.jsonl").read_text().splitlines()[0])


# ---- going on -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("stopped_after", [1, 4, 5, 13, STEPS])
@pytest.mark.parametrize(("signum", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_run_stopped_by_a_signal_ends_in_the_same_bytes(stream, tmp_path, unbroken, stopped_after, signum, raised):
    def terminate(*_: object) -> None:
        raise SystemExit(143)

    def stop(step: int) -> None:
        if step == stopped_after:
            signal.raise_signal(signum)

    handlers = {signal.SIGTERM: terminate, signal.SIGINT: signal.default_int_handler}
    before = {signum: signal.signal(signum, handler) for signum, handler in handlers.items()}
    try:
        with pytest.raises(raised):
            train_sae(stream, config(**HARD), tmp_path, PROVENANCE, progress=Watcher(stop))
        assert {signum: signal.getsignal(signum) for signum in handlers} == handlers
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert not (tmp_path / CFG).exists()
    assert (tmp_path / "checkpoints" / f"step-{stopped_after:06d}" / "state.json").exists()
    watcher = Watcher()
    train_sae(stream, config(**HARD), tmp_path, PROVENANCE, progress=watcher)
    assert watcher.said == [f"going on from step {stopped_after} of {STEPS}"]
    assert contents(tmp_path) == unbroken


def on_step(number: int, signum: signal.Signals):
    return Watcher(lambda step: signal.raise_signal(signum) if step == number else None)


def test_half_a_training_is_no_whole_one_even_if_the_signals_handler_returns(stream, tmp_path):
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with pytest.raises(KeyboardInterrupt):
            train_sae(stream, config(**HARD), tmp_path, PROVENANCE, progress=on_step(3, signal.SIGTERM))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not (tmp_path / CFG).exists()


def test_a_signal_the_process_ignores_stops_nothing(stream, tmp_path, unbroken):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        train_sae(stream, config(**HARD), tmp_path, PROVENANCE, progress=on_step(3, signal.SIGINT))
    finally:
        signal.signal(signal.SIGINT, before)
    assert contents(tmp_path) == unbroken


class KilledError(Exception):
    """Stands for a process that ends without a word."""


def kill_at(step: int):
    def stop(done: int) -> None:
        if done == step:
            raise KilledError

    return Watcher(stop)


def test_a_run_killed_between_checkpoints_ends_in_the_same_bytes(stream, tmp_path, unbroken):
    for stop in (3, 7, 12):
        with pytest.raises(KilledError):
            train_sae(stream, config(**HARD), tmp_path, PROVENANCE, progress=kill_at(stop))
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*")) == ["step-000004", "step-000008"]
    train_sae(stream, config(**HARD), tmp_path, PROVENANCE)
    assert contents(tmp_path) == unbroken


FLAT = {**HARD, "lr_warmup": 0.0}
"""A schedule whose beginning does not hang on the number of steps."""


@pytest.mark.parametrize("killed", [None, 7, 9, 11])
def test_a_training_that_is_asked_to_go_on_is_as_if_it_had_been_asked_at_once(stream, tmp_path, killed):
    """Finished after 9 steps or stopped on the way there, then 14: the rate falls at the end of all of them alone."""
    with pytest.raises(KilledError) if killed == 7 else nullcontext():
        train_sae(
            stream, config(**FLAT, max_steps=9), tmp_path / "a", PROVENANCE, progress=kill_at(7 if killed == 7 else 99)
        )
    if killed in (9, 11):
        with pytest.raises(KilledError):
            train_sae(stream, config(**FLAT), tmp_path / "a", PROVENANCE, progress=kill_at(killed))
    train_sae(stream, config(**FLAT), tmp_path / "a", PROVENANCE)
    train_sae(stream, config(**FLAT), tmp_path / "b", PROVENANCE)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_what_going_on_comes_to_is_said(stream, tmp_path):
    train_sae(stream, config(**FLAT, max_steps=9), tmp_path / "flat", PROVENANCE)
    watcher = Watcher()
    train_sae(stream, config(**FLAT), tmp_path / "flat", PROVENANCE, progress=watcher)
    assert (
        f"{tmp_path / 'flat'} is trained for 9 steps and goes on to {STEPS}, as if {STEPS} had been" in watcher.said[0]
    )
    assert watcher.said[1] == f"going on from step 7 of {STEPS}"
    train_sae(stream, config(max_steps=40, lr_warmup=0.1), tmp_path / "warm", PROVENANCE)
    other = replace(PROVENANCE, shards=("more",))
    train_sae(stream, config(max_steps=60, lr_warmup=0.1), tmp_path / "warm", other, progress=watcher)
    assert "on other shards and its first steps warmed up as for 40" in watcher.said[2]
    with pytest.raises(CheckpointError, match="is trained for 60 steps, and 40 were asked for; start over"):
        train_sae(stream, config(max_steps=40, lr_warmup=0.1), tmp_path / "warm", other)
    with pytest.raises(CheckpointError, match="is trained on other shards"):
        train_sae(stream, config(max_steps=60, lr_warmup=0.1), tmp_path / "warm", PROVENANCE)
    shutil.rmtree(tmp_path / "warm" / "level")
    with pytest.raises(CheckpointError, match="by a version that kept no state to go on from"):
        train_sae(stream, config(max_steps=80, lr_warmup=0.1), tmp_path / "warm", other)


def test_a_rate_that_nobody_named_follows_the_steps(stream, tmp_path):
    def note(**changed: float) -> dict:
        noted = json.loads((tmp_path / "config.json").read_bytes())
        (tmp_path / "config.json").write_text(json.dumps(noted | changed))
        return noted

    train_sae(stream, config(lr=None, max_steps=9), tmp_path, PROVENANCE)
    assert note(lr=1e-5)["lr"] == default_lr(D_SAE, 9)
    watcher = Watcher()
    train_sae(stream, config(lr=None), tmp_path, PROVENANCE, progress=watcher)
    assert "its first steps were at the rate of 9 (1e-05, now" in watcher.said[0]
    assert note(lr=1e-5)["lr"] == default_lr(D_SAE, STEPS)  # as a version with another rule left it
    train_sae(stream, config(lr=None), tmp_path, PROVENANCE, progress=watcher)
    assert "trained already" in watcher.said[-1]
    with pytest.raises(CheckpointError, match=r"lr expected 0\.01, found 1e-05"):
        train_sae(stream, config(), tmp_path, PROVENANCE)


def test_a_training_that_another_version_began_does_not_change_its_rate_midway(stream, tmp_path):
    with pytest.raises(KilledError):
        train_sae(stream, config(lr=None, max_steps=9), tmp_path, PROVENANCE, progress=kill_at(7))
    noted = json.loads((tmp_path / "config.json").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(noted | {"lr": 1e-5}))
    with pytest.raises(CheckpointError, match=f"lr expected {noted['lr']}, found 1e-05"):
        train_sae(stream, config(lr=None, max_steps=9), tmp_path, PROVENANCE)
    train_sae(stream, config(lr=1e-5, max_steps=9), tmp_path, PROVENANCE)


def damage_bytes(path: Path) -> None:
    content = bytearray((path / "weights.safetensors").read_bytes())
    content[-3] ^= 4
    (path / "weights.safetensors").write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage",
    [
        damage_bytes,
        lambda path: (path / "optim.safetensors").write_bytes(b"not tensors"),
        lambda path: (path / "optim.safetensors").unlink(),
        lambda path: (path / "state.json").write_text("{"),
        lambda path: (path / "state.json").write_text('{"step": 8}'),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(stream, tmp_path, unbroken, damage):
    with pytest.raises(KilledError):
        train_sae(stream, config(**HARD), tmp_path, PROVENANCE, progress=kill_at(9))
    damage(tmp_path / "checkpoints" / "step-000008")
    watcher = Watcher()
    train_sae(stream, config(**HARD), tmp_path, PROVENANCE, progress=watcher)
    assert "step-000008" in watcher.said[0] and "going back" in watcher.said[0]
    assert watcher.said[1] == f"going on from step 4 of {STEPS}"
    assert contents(tmp_path) == unbroken


def test_a_run_stopped_while_it_is_measured_trains_no_step_again(stream, tmp_path, unbroken, monkeypatch):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("sae_forge.training.trainer.measure", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_sae(stream, config(**HARD), tmp_path, PROVENANCE)
    log = tmp_path.parent / "measured.jsonl"
    report = train_sae(stream, config(**HARD), tmp_path, PROVENANCE, log=log)
    assert log.read_text() == "" and report.tokens_per_second is None
    assert contents(tmp_path) == unbroken


def test_a_finished_run_returns_its_report_and_touches_nothing(stream, tmp_path):
    first = train_sae(stream, config(), tmp_path, PROVENANCE)
    held = contents(tmp_path)
    watcher = Watcher()
    again = train_sae(stream, config(checkpoint_every=3, backend="reference"), tmp_path, PROVENANCE, progress=watcher)
    assert again.to_json() | {"tokens_per_second": 0} == first.to_json() | {"tokens_per_second": 0}
    assert "trained already" in watcher.said[0]
    assert contents(tmp_path) == held


def test_fresh_starts_over_and_gets_the_same(stream, tmp_path):
    train_sae(stream, config(), tmp_path, PROVENANCE)
    held = contents(tmp_path)
    report = train_sae(stream, config(fresh=True), tmp_path, PROVENANCE)
    assert report.tokens_per_second is not None
    assert contents(tmp_path) == held


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"lr": 0.02}, "lr expected 0.02, found 0.01"),
        ({"max_steps": 13}, "is trained for 14 steps, and 13 were asked for"),
        ({"seed": 1}, "seed expected 1, found 0"),
        ({"shuffle_gb": 1.0}, "shuffle_gb expected 1.0, found 2.0"),
        ({"max_grad_norm": 1.0}, "max_grad_norm expected 1.0, found None"),
    ],
)
def test_other_settings_in_the_same_place_name_the_field(stream, tmp_path, change, said):
    train_sae(stream, config(), tmp_path, PROVENANCE)
    held = contents(tmp_path)
    with pytest.raises(CheckpointError, match=f"{said}; start over with --fresh or choose another --run_dir"):
        train_sae(stream, config(**change), tmp_path, PROVENANCE)
    other = Provenance(model="toy", hook_point="blocks.1.hook_resid_post", shards=("b" * 64,))
    with pytest.raises(CheckpointError, match=r"data\.shards"):
        train_sae(stream, config(), tmp_path, other)
    assert contents(tmp_path) == held


def test_a_damaged_finished_sae_is_not_taken_for_finished(stream, tmp_path):
    train_sae(stream, config(), tmp_path, PROVENANCE)
    (tmp_path / WEIGHTS).write_bytes((tmp_path / WEIGHTS).read_bytes()[:-1] + b"\x7f")
    with pytest.raises(CheckpointError, match=r"damaged.*--fresh"):
        train_sae(stream, config(), tmp_path, PROVENANCE)


# ---- refusals -----------------------------------------------------------------------------------


def poison(stream: ActivationStream, at: int, value: float) -> None:
    """Put one number that is not finite into the batch with this index."""
    original = stream.batches

    def batches(start: int = 0):
        for index, batch in enumerate(original(start), start):
            rows = batch.clone()
            rows[3, 2] = value if index == at else rows[3, 2]
            yield rows

    stream.batches = batches


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_a_step_that_is_not_finite_moves_no_weight_and_is_named(stream, tmp_path, value):
    plan = Plan.make(config(), SaeShape(K, D_SAE, 0), stream)
    state = TrainState.start(TopKSAE(D_IN, D_SAE, K), 1.0)
    batch = next(iter(stream.batches()))
    train_step(state, batch, plan)
    before = {name: slot.weight.clone() for name, slot in state.slots.items()}
    moments = {name: slot.exp_avg.clone() for name, slot in state.slots.items()}
    figures = train_step(state, batch.clone().fill_(value), plan)
    assert not math.isfinite(float(figures.sum()))
    for name, slot in state.slots.items():
        assert torch.allclose(slot.weight, before[name], rtol=0, atol=3e-7), name  # rows come to unit norm again
        assert torch.equal(slot.exp_avg, moments[name]), name


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_run_that_meets_numbers_that_are_not_finite_ends_and_saves_nothing_of_it(
    stream, tmp_path, value, monkeypatch
):
    monkeypatch.setattr("sae_forge.training.initialisation.SAMPLE_ROWS", 2 * BATCH)
    settings = config(checkpoint_every=5)
    poison(stream, 9, value)
    with pytest.raises(NumericalError, match="step 10: loss nan") as caught:
        train_sae(stream, settings, tmp_path, PROVENANCE)
    assert caught.value.exit_code == 3
    assert [path.name for path in (tmp_path / "checkpoints").glob("step-*")] == ["step-000005"]
    assert not (tmp_path / CFG).exists()
    poison(stream, 9, 0.0)
    assert math.isfinite(train_sae(stream, settings, tmp_path, PROVENANCE).fvu)


def test_more_latents_a_token_than_there_are_is_refused(stream, tmp_path):
    with pytest.raises(ConfigError, match="k=25 latents per token, but the SAE has only d_sae=24"):
        train_sae(stream, config(k=(25,), d_sae=None, expansion_factor=(2,)), tmp_path, PROVENANCE)
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("device", ["cuda:99", "abacus"])
def test_a_device_that_is_not_there_is_refused(stream, tmp_path, device):
    with pytest.raises(ConfigError, match=f"--sae_device {device}"):
        train_sae(stream, config(sae_device=device), tmp_path, PROVENANCE)


def test_a_disk_too_small_is_refused_before_writing(stream, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=4096)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ResourceError, match="GB free"):
        train_sae(stream, config(checkpoint_every=5), tmp_path, PROVENANCE)
    assert not list((tmp_path / "checkpoints").glob("*step*"))


def test_two_runs_in_one_folder_are_refused(stream, tmp_path):
    with files.locked(tmp_path / "checkpoints"), pytest.raises(ConfigError, match="another process"):
        train_sae(stream, config(), tmp_path, PROVENANCE)


# ---- parts --------------------------------------------------------------------------------------


def test_the_geometric_median_is_the_middle_and_ignores_a_far_row():
    line = torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0], [3.0, 3.0], [40.0, 40.0]])
    assert torch.allclose(geometric_median(line), torch.tensor([2.0, 2.0]), atol=1e-2)
    cloud = draw(500, 7) + 3
    far = torch.cat([cloud, torch.full((5, 7), 1e5)])
    assert (
        float((geometric_median(far) - geometric_median(cloud)).norm())
        < 0.1
        < float((far.mean(0) - cloud.mean(0)).norm())
    )
    assert torch.equal(geometric_median(torch.ones(4, 3)), torch.ones(3))


@pytest.mark.parametrize("how", ["geometric_median", "mean", "zero"])
def test_centre_and_scale_bring_activations_to_one_size(how):
    sample = draw(1000, 30) * 0.01 + 7
    middle = centre(sample, how)
    scale = input_scale(sample, middle)
    assert float(((sample - middle) * scale).square().sum(dim=1).median()) == pytest.approx(30, rel=1e-3)
    assert (how == "zero") == bool((middle == 0).all())


def test_activations_nothing_can_start_from_are_refused():
    with pytest.raises(DataError, match="do not vary"):
        input_scale(torch.ones(5, 3), torch.ones(3))
    with pytest.raises(NumericalError, match="not finite"):
        input_scale(torch.full((5, 3), float("nan")), torch.ones(3))


def test_the_sample_is_the_start_of_the_stream_and_bounded(stream, monkeypatch):
    monkeypatch.setattr("sae_forge.training.initialisation.SAMPLE_ROWS", 100)
    first = torch.cat(list(itertools.islice(stream.batches(), 2)))[:100]
    assert torch.equal(take_sample(stream.batches(), D_IN), first)


def test_the_rate_rises_stays_and_falls_and_is_never_zero():
    rates = [lr_at(step, steps=100, peak=3.0, warmup=0.1, decay=0.2) for step in range(100)]
    assert rates[0] == pytest.approx(0.3) and rates[-1] == pytest.approx(0.15)
    assert rates[9:81] == [3.0] * 72
    assert all(b > a for a, b in itertools.pairwise(rates[:10])) and all(
        b < a for a, b in itertools.pairwise(rates[80:])
    )
    assert [lr_at(step, steps=3, peak=1.0, warmup=0.0, decay=0.0) for step in range(3)] == [1.0] * 3
    assert lr_at(0, steps=1, peak=1.0, warmup=0.05, decay=0.2) > 0


def test_a_short_training_takes_a_higher_rate_and_a_long_one_that_of_the_papers():
    assert default_lr(16_384, LONG) == default_lr(16_384, 10 * LONG) == 2e-4
    assert default_lr(4608, 500) == pytest.approx(8 * 2e-4 / (4608 / 16_384) ** 0.5)
    assert default_lr(4608, 100) == default_lr(4608, 500) > default_lr(4608, 5000) > default_lr(4608, LONG)


# ---- a step against autograd --------------------------------------------------------------------


def auxk_loss(weights: dict[str, Tensor], x: Tensor, x_hat: Tensor, dead: Tensor) -> Tensor:
    """AuxK as it is defined, to be differentiated."""
    residual, half = (x - x_hat).detach(), D_IN // 2
    kept = min(half, len(dead))
    acts = (x - weights["b_dec"].detach()) @ weights["W_enc"][:, dead] + weights["b_enc"][dead]
    acts = acts * torch.zeros_like(acts).scatter(1, acts.topk(kept, dim=1).indices, 1.0)
    left = (residual - acts @ weights["W_dec"][dead]).square().sum()
    return left / (residual - residual.mean(dim=0)).square().sum() * kept / half


def topk_acts(pre_acts: Tensor) -> Tensor:
    """TopK as it is defined."""
    top = pre_acts.topk(K, dim=1)
    return torch.zeros_like(pre_acts).scatter(1, top.indices, top.values.relu())


class Textbook:
    """The same training with autograd and torch's Adam, in float64 and dense."""

    def __init__(self, state: TrainState, most: float | None, acts: Callable[[Tensor], Tensor] = topk_acts) -> None:
        self.acts = acts
        self.weights = {name: getattr(state.sae, name).detach().double().requires_grad_() for name in WEIGHT_NAMES}
        self.adam = torch.optim.Adam(self.weights.values(), betas=(0.9, 0.999), eps=6.25e-10)
        self.most = most

    def step(self, x: Tensor, dead: Tensor, lr: float) -> float:
        W_enc, b_enc, W_dec, b_dec = (self.weights[name] for name in WEIGHT_NAMES)
        pre_acts = (x - b_dec) @ W_enc + b_enc
        x_hat = self.acts(pre_acts) @ W_dec + b_dec
        loss = fvu(x, x_hat)
        if len(dead):
            loss = loss + auxk_loss(self.weights, x, x_hat, dead) / 32
        self.adam.zero_grad()
        loss.backward()
        with torch.no_grad():
            W_dec.grad -= (W_dec.grad * W_dec).sum(dim=1, keepdim=True) * W_dec
            if self.most:
                torch.nn.utils.clip_grad_norm_(self.weights.values(), self.most)
            self.adam.param_groups[0]["lr"] = lr
            self.adam.step()
            W_dec /= W_dec.norm(dim=1, keepdim=True)
        return float(loss.detach())


WEIGHT_NAMES = ("W_enc", "b_enc", "W_dec", "b_dec")


@pytest.mark.parametrize("backend", ["reference", "cpu", "dense"])
@pytest.mark.parametrize("most", [None, 0.05])
@pytest.mark.parametrize("few_dead", [True, False])
def test_a_step_is_what_autograd_and_adam_would_do(backend, most, few_dead):
    settings = config(backend=backend, max_grad_norm=most, dead_after=4 * BATCH)
    plan = Plan(
        config=settings, d_in=D_IN, k=K, d_sae=D_SAE, seed=0, steps=100, lr=0.01, device=torch.device("cpu")
    )  # fmt: skip
    state = TrainState.start(TopKSAE(D_IN, D_SAE, K), 0.7)
    with torch.no_grad():
        state.sae.b_dec.copy_(draw(D_IN, seed=9))
        state.sae.b_enc[: 3 if few_dead else 20] = -60.0  # never among the top k; more and fewer than d_in / 2
    textbook = Textbook(state, most)
    state.tokens = plan.config.dead_after
    state.tokens_since_fired[: 3 if few_dead else 20] = plan.config.dead_after
    for index, rows in enumerate(make_rows(6 * BATCH).split(BATCH)):
        dead = torch.nonzero(state.tokens_since_fired >= plan.config.dead_after).squeeze(1)
        assert len(dead) >= 3
        expected = textbook.step(rows.double() * 0.7, dead, plan.lr_at(index))
        figures = train_step(state, rows, plan)
        assert float(figures[0]) == pytest.approx(expected, rel=1e-5)
        for name, weight in textbook.weights.items():
            assert torch.allclose(getattr(state.sae, name).double(), weight, rtol=0, atol=1e-5), (index, name)


class NoWaiting(TorchDispatchMode):
    """Refuses what would make a GPU hand a number to Python, or a shape depend on one."""

    WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique", "bincount", "is_nonzero", "equal")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().removeprefix("aten::").split(".")[0]
        assert not any(name.startswith(wait) for wait in self.WAITS), f"{name} waits for the device"
        assert name != "_to_copy" or (kwargs or {}).get("device") is None, "a copy between devices waits"
        by = args[1] if name.startswith("index") and isinstance(args[1], list) else ()
        assert not any(index is not None and index.dtype == torch.bool for index in by), f"{name} by a mask waits"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("most", [None, 0.05])
def test_a_step_never_waits_for_the_device(most, accumulation, monkeypatch):
    monkeypatch.setattr(dispatch, "_choose_topk", lambda *given: lambda pre_acts, k: torch.topk(pre_acts, k))
    monkeypatch.setattr(auxk_module, "among_largest", dispatch._among_largest)
    settings = config(backend="dense", max_grad_norm=most, dead_after=BATCH, accumulation=accumulation)
    plan = Plan(
        config=settings, d_in=D_IN, k=K, d_sae=D_SAE, seed=0, steps=100, lr=0.01, device=torch.device("cpu")
    )  # fmt: skip
    state = TrainState.start(TopKSAE(D_IN, D_SAE, K), 1.0)
    state.tokens_since_fired[5:20], state.aux_places = BATCH, 32
    rates = rates_of(state, plan)
    with NoWaiting():
        step(state, make_rows(BATCH), plan, rates)
    assert state.rows.W_dec.exp_avg.any()


@pytest.mark.parametrize("accumulation", [1, 2])
def test_what_a_kernel_summed_of_the_batch_is_the_variance_the_loss_is_divided_by(accumulation, monkeypatch):
    settings = config(accumulation=accumulation)
    plan = Plan(
        config=settings, d_in=D_IN, k=K, d_sae=D_SAE, seed=0, steps=100, lr=0.01, device=torch.device("cpu")
    )  # fmt: skip
    asked = []

    def kernel(batch, b_dec, scale, sink_norm, dtype, *, backend):
        asked.append((len(batch), scale, sink_norm, dtype, backend))
        target = scale * batch - b_dec
        target[batch.norm(dim=1) > sink_norm] = 0.0
        total, squares = Moments.of(target)
        return target, Moments(2 * total, 4 * squares)

    states = [TrainState.start(TopKSAE(D_IN, D_SAE, K), 0.7) for _ in range(2)]
    batch = make_rows(BATCH)
    for state in states:
        state.sink_norm = float(batch.norm(dim=1).median())
    fvu_without = train_step(states[0], batch, plan)[1]
    monkeypatch.setattr(code_module, "centred", kernel)
    fvu_with = train_step(states[1], batch, plan)[1]
    assert asked == [(BATCH // accumulation, 0.7, states[0].sink_norm, torch.float32, "auto")] * accumulation
    assert float(fvu_without / fvu_with) == pytest.approx(4.0, rel=1e-5)


def test_room_for_more_dead_than_there_are_changes_nothing():
    state = TrainState.start(TopKSAE(D_IN, D_SAE, K), 1.0)
    state.tokens_since_fired[5:20] = 100
    target, residual = draw(31, D_IN), draw(31, D_IN, seed=2)
    exact = auxk(state.rows, target, residual, dead_latents(state.tokens_since_fired, 100, 15), 1.0)
    roomy = auxk(state.rows, target, residual, dead_latents(state.tokens_since_fired, 100, 40), 1.0)
    assert float(roomy[0]) == pytest.approx(float(exact[0]))
    for name in ("W_enc", "W_dec", "b_enc"):
        more, less = getattr(roomy[1], name), getattr(exact[1], name)
        assert torch.allclose(more[:15], less, atol=1e-6) and not more[15:].any(), name
    assert torch.equal(roomy[1].row_of, exact[1].row_of)
    first = dead_latents(state.tokens_since_fired, 100, 4)
    assert first.latents.tolist() == [5, 6, 7, 8] and first.present.all()
    assert (first.row_of >= 0).nonzero().flatten().tolist() == [5, 6, 7, 8]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_auxk_takes_the_pre_acts_that_the_encoders_product_made(accumulation, monkeypatch):
    settings = config(dead_after=BATCH, accumulation=accumulation)
    plan = Plan(
        config=settings, d_in=D_IN, k=K, d_sae=D_SAE, seed=0, steps=100, lr=0.01, device=torch.device("cpu")
    )  # fmt: skip
    products = []
    monkeypatch.setattr(auxk_module, "product", lambda a, b: products.append(len(a)) or dispatch.product(a, b))
    states = []
    for room in (sums_module._ROOM, 0):
        monkeypatch.setattr(sums_module, "_ROOM", room)
        products.clear()
        states.append(TrainState.start(TopKSAE(D_IN, D_SAE, K), 0.7))
        states[-1].tokens, states[-1].tokens_since_fired[5:20] = BATCH, BATCH
        train_step(states[-1], make_rows(BATCH), plan)
        assert states[-1].aux_places == 16  # of 15, which products would be slower over
        assert len(products) == (4 if room else 5) * accumulation
    for kept, made in zip(states[0].rows, states[1].rows, strict=True):
        assert torch.allclose(kept.exp_avg, made.exp_avg, rtol=1e-5, atol=1e-8)


def test_auxk_is_zero_when_the_dead_explain_the_residual_and_fades_with_few_dead():
    x, since = draw(6, 4).abs(), torch.tensor([0, 9, 9, 9, 9])
    state = TrainState.start(TopKSAE(4, 5, 1, seed=None), 1.0)
    with torch.no_grad():
        state.sae.W_enc[:, 1:], state.sae.W_dec[1:] = torch.eye(4), torch.eye(4)
    residual = torch.zeros_like(x)
    residual[:, :2] = x[:, :2]  # two directions, and d_in / 2 = 2 latents are kept
    explained, _ = auxk(state.rows, residual, -residual, dead_latents(since, 9, 4), 1.0)
    assert float(explained) == pytest.approx(0.0, abs=1e-6)
    silent = TrainState.start(TopKSAE(4, 5, 1, seed=None), 1.0)
    whole, half = (
        float(auxk(silent.rows, x, -x, dead_latents(since * torch.tensor([0, 1, more, 0, 0]), 9, 1 + more), 1.0)[0])
        for more in (1, 0)
    )
    assert half == pytest.approx(whole / 2)


# ---- several from one read ----------------------------------------------------------------------


@pytest.mark.slow
def test_saes_trained_from_one_read_are_those_trained_alone(reader, tmp_path):
    several = config(k=(2, K), sae_seeds=(0, 5), **HARD)
    stream = ActivationStream([reader], batch_size=BATCH, seed=0)
    reads = []
    original = stream.batches
    stream.batches = lambda start=0: reads.append(start) or original(start)
    places = {shape: Place(folder=tmp_path / f"together-{shape.k}-{shape.seed}") for shape in several.saes(D_IN)}
    reports = train_saes(stream, several, places, PROVENANCE)
    assert list(reports) == list(places) and len(places) == 4
    assert len(reads) == 1 + 1 + 4  # a look at the first rows, training, and measuring each
    for shape, place in places.items():
        alone = tmp_path / f"alone-{shape.k}-{shape.seed}"
        single = config(k=(shape.k,), sae_seeds=(shape.seed,), **HARD)
        train_sae(ActivationStream([reader], batch_size=BATCH, seed=0), single, alone, PROVENANCE)
        assert contents(alone) == contents(place.folder), shape


@pytest.mark.slow
def test_one_of_several_that_is_ahead_waits_for_the_others(reader, tmp_path):
    both = config(k=(2, K), **HARD)
    places = {shape: Place(folder=tmp_path / str(shape.k)) for shape in both.saes(D_IN)}

    def make() -> ActivationStream:
        return ActivationStream([reader], batch_size=BATCH, seed=0)

    def stop(done: int) -> None:
        if done == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_sae(make(), config(k=(K,), **HARD), tmp_path / str(K), PROVENANCE, progress=Watcher(stop))
    train_saes(make(), both, places, PROVENANCE)
    for shape, place in places.items():
        train_sae(make(), config(k=(shape.k,), **HARD), tmp_path / f"alone-{shape.k}", PROVENANCE)
        assert contents(tmp_path / f"alone-{shape.k}") == contents(place.folder)


def test_who_waits_for_the_folders_to_open_hears_of_none_that_is_refused(reader, tmp_path):
    settings, asked = config(k=(K,), **HARD), []
    places = {shape: Place(folder=tmp_path / "sae") for shape in settings.saes(D_IN)}

    def again(seed: int) -> None:
        stream = ActivationStream([reader], batch_size=BATCH, seed=seed)
        train_saes(stream, replace(settings, seed=seed), places, PROVENANCE, opened=lambda: asked.append(seed))

    again(0)
    with pytest.raises(CheckpointError, match="trained under other settings"):
        again(1)
    path = tmp_path / "sae" / "cfg.json"
    path.write_bytes(path.read_bytes().replace(b"1", b"2"))
    with pytest.raises(CheckpointError, match="damaged"):
        again(0)
    assert asked == [0]


def test_one_that_is_not_finite_does_not_take_the_others_with_it(reader, tmp_path, monkeypatch):
    both = config(k=(2, K), **HARD)
    places = {shape: Place(folder=tmp_path / str(shape.k)) for shape in both.saes(D_IN)}
    take = Stepper.__call__

    def poisoned(self: Stepper, batch: Tensor) -> Tensor:
        if self._state.sae.k == 2 and self._state.step == 5:
            self._state.sae.b_enc.fill_(float("nan"))
        return take(self, batch)

    monkeypatch.setattr(Stepper, "__call__", poisoned)
    stream = ActivationStream([reader], batch_size=BATCH, seed=0)
    with pytest.raises(NumericalError, match=r"^2, step 6: loss nan"):
        train_saes(stream, both, places, PROVENANCE)
    train_sae(stream, config(k=(K,), **HARD), tmp_path / "alone", PROVENANCE)
    assert contents(tmp_path / str(K)) == contents(tmp_path / "alone")
    assert [path.name for path in (tmp_path / "2" / "checkpoints").glob("step-*")] == ["step-000004"]


def test_a_gradient_that_overflows_is_no_step(stream):
    plan = Plan.make(config(), SaeShape(K, D_SAE, 0), stream)
    state = TrainState.start(TopKSAE(D_IN, D_SAE, K), 1.0)
    figures = train_step(state, torch.full((BATCH, D_IN), 2.0**-6), plan)  # all alike: a huge, finite loss
    assert math.isfinite(float(figures[0])) and not math.isfinite(float(figures[4]))
    assert not state.rows.W_dec.exp_avg.any()


def test_a_run_killed_after_its_report_leaves_no_checkpoints(stream, tmp_path):
    train_sae(stream, config(), tmp_path, PROVENANCE)
    whole = contents(tmp_path)
    (tmp_path / "checkpoints" / "step-000014").mkdir(parents=True)
    train_sae(stream, config(), tmp_path, PROVENANCE)
    assert contents(tmp_path) == whole and not (tmp_path / "checkpoints").exists()


def test_one_folder_takes_one_sae(stream, tmp_path):
    with pytest.raises(ConfigError, match="2 SAEs were asked for and one folder was given"):
        train_sae(stream, config(k=(2, 3)), tmp_path, PROVENANCE)


def test_progress_of_the_library_is_silent_by_default(stream, tmp_path, capsys):
    train_sae(stream, config(), tmp_path, PROVENANCE, progress=SILENT)
    assert capsys.readouterr() == ("", "")


# ---- verdict ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, "fit"),
        (
            {"fvu": 0.71, "steps": 19},
            "not fit: FVU 0.71, where a PCA of rank k leaves 0.53. 19 steps on 995,328 tokens are few",
        ),
        ({"ce_recovered": 0.9}, "usable, with care: CE recovered 0.90. A larger --k or --expansion_factor would help"),
        ({"ce_recovered": 0.7}, "not fit: CE recovered 0.70"),
        ({"dead_share": 0.7}, "usable, with care: 70% of the latents are dead. A smaller --expansion_factor"),
        (
            {"falling": 0.05},
            "fit; the loss was still falling at the end (5.0% over a tenth of the steps). More --epochs",
        ),
        ({"ce_recovered": None, "fvu_pca": None}, "fit"),
    ],
)
def test_a_verdict_says_why_and_what_would_help(changed, said):
    found = {
        "fvu": 0.15, "fvu_pca": 0.53, "ce_recovered": 0.988, "dead_share": 0.005, "falling": 0.001, "steps": 486,
        "tokens": 995_328,
    } | changed  # fmt: skip
    verdict = judged(**found)
    assert verdict.said.startswith(said) and verdict.fit is not said.startswith("not fit")
    assert said != "fit" or verdict.said == "fit"


def test_what_the_loss_did_at_the_end_is_read_off_the_log(tmp_path):
    log = tmp_path / "log.jsonl"
    lines = [json.dumps({"step": step, "fvu": 1.0 if step <= 90 else 0.9}) for step in range(1, 121)]
    log.write_text("\n".join([*lines[:95], '{"step": 96, "fv', *lines[90:]]))  # stopped at 95, gone on with from 90
    assert falling(log, 100) == pytest.approx(0.1)
    assert falling(log, 80) == 0
    assert falling(log, 200) is None and falling(log, 20) is None and falling(tmp_path / "none", 100) is None
    assert falling(None, 100) is None


@pytest.mark.parametrize(
    ("rows", "given", "batch", "epochs"),
    [
        (64_000, {}, 1024, 5),  # 62 batches a pass
        (500_000, {}, 1024, 1),
        (1_000_000, {}, 2048, 1),
        (2_000_000, {}, 4096, 1),
        (5_000, {}, 1024, 20),
        (3_000, {}, 4096, 1),  # less than a batch: to be refused
        (64_000, {"epochs": 1}, 4096, 1),
        (64_000, {"batch_size": 4096}, 4096, 1),
        (64_000, {"max_steps": 9}, 4096, 1),
    ],
)
def test_little_text_is_taken_in_smaller_batches_several_times_unless_asked_otherwise(rows, given, batch, epochs):
    fitted = TrainConfig(**given, spelled=frozenset(given)).fitted(rows)
    assert (fitted.batch_size, fitted.epochs) == (batch, epochs)
