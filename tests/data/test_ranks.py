"""Several processes are one: the same bytes as a single one, whoever is killed, and nobody waits for the dead.

Ranks are forks of this process under real gloo, because imports take longer than all they do here; one test starts them
with torchrun's environment from the command line. The long protocol is ``tests/acceptance/ranks.py``.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from test_training import BATCH, D_SAE, PROVENANCE, Watcher, config, contents, reader  # noqa: F401 (a fixture)

from sae_forge import ranks
from sae_forge.data.shards import Fingerprint, ShardReader, ShardWriter
from sae_forge.data.stream import ActivationStream
from sae_forge.errors import CheckpointError, ConfigError, ForgeError, NumericalError, PeerError, ResourceError
from sae_forge.kernels.moments import Moments
from sae_forge.kernels.rows import Slot
from sae_forge.sae.losses import variance
from sae_forge.sae.store import load_sae
from sae_forge.training.architectures.table import TRAINED
from sae_forge.training.plan import Plan
from sae_forge.training.state import Share, TrainState, drop_damaged, load_checkpoint, save_checkpoint
from sae_forge.training.trainer import Stepper, train_sae

HARD = {"dead_after": BATCH, "max_grad_norm": 0.5, "checkpoint_every": 4, "max_steps": 20}
GONE, KILLED = PeerError.exit_code, -signal.SIGKILL


def environment(rank: int, world: int, port: int) -> dict[str, str]:
    """What a launcher says to a rank."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": port}
    return {"MASTER_ADDR": "127.0.0.1", **{name: str(number) for name, number in numbers.items()}}


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


def over_ranks(world: int, work: Callable[[int], object], said: Path, *, limit: float = 20.0) -> list[int]:
    """Exit codes of ``world`` forks that do ``work(rank)`` as ranks of one job; ``said`` gets their last words."""
    said.unlink(missing_ok=True)
    port, pids = free_port(), []
    for rank in range(world):
        if not (pid := os.fork()):
            code = 1

            def tell(error: object, rank: int = rank) -> None:
                with said.open("a") as file:
                    file.write(f"{rank}: {error}\n")

            try:
                os.environ |= environment(rank, world, port)
                with ranks.joined(limit, {}, tell):
                    work(rank)
                code = 0
            except ForgeError as error:
                tell(error)
                code = error.exit_code
            except BaseException as error:  # noqa: BLE001 (the parent reads it)
                tell(f"{type(error).__name__} {error}")
            finally:
                os._exit(code)
        pids.append(pid)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


@pytest.fixture
def train(reader: ShardReader, tmp_path: Path) -> Callable[..., Path]:  # noqa: F811
    """Train into a folder of this name and return it."""

    def run(name: str, progress: Watcher | None = None, **settings) -> Path:
        stream = ActivationStream([reader], batch_size=BATCH, seed=0)
        given = config(**(HARD | settings))
        train_sae(stream, given, tmp_path / name, PROVENANCE, progress=progress or Watcher())
        return tmp_path / name

    return run


def at_step(step: int, act: Callable[[], object]) -> Watcher:
    return Watcher(lambda done: act() if done == step else None)


def weights(folder: Path) -> torch.Tensor:
    sae, _ = load_sae(folder)
    return torch.cat([parameter.flatten() for parameter in sae.parameters()])


def apart(one: Path, other: Path) -> float:
    """Relative distance of all weights."""
    return float((weights(one) - weights(other)).norm() / weights(one).norm())


# ---- the same arithmetic ------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("architecture", TRAINED)
def test_two_ranks_leave_the_bytes_of_one_process_with_two_parts(train, tmp_path, architecture):
    alone = train("alone", accumulation=2, architecture=architecture)
    assert over_ranks(2, lambda rank: train("two", architecture=architecture), tmp_path / "said") == [0, 0]
    assert contents(tmp_path / "two") == contents(alone)


@pytest.mark.slow
def test_parts_and_four_ranks_come_to_the_whole_batch(train, tmp_path):
    whole = train("whole")
    assert apart(whole, train("parts", accumulation=4)) < 1e-5
    assert over_ranks(4, lambda rank: train("four"), tmp_path / "said") == [0] * 4
    assert apart(whole, tmp_path / "four") < 5e-3


@pytest.mark.slow
@pytest.mark.parametrize("clip", [0.5, None])
def test_latents_spread_over_ranks_come_to_the_same_twice_and_to_the_unspread_ones(train, tmp_path, clip):
    whole = train("whole", max_grad_norm=clip)
    for name, world in (("spread", 2), ("again", 2), ("four", 4))[: 3 if clip else 1]:
        work = lambda rank, name=name: train(name, shard_latents=True, max_grad_norm=clip)  # noqa: E731
        assert over_ranks(world, work, tmp_path / "said") == [0] * world
        assert apart(whole, tmp_path / name) <= 1e-5
    if clip:
        assert contents(tmp_path / "spread") == contents(tmp_path / "again")


def test_variance_of_parts_is_that_of_the_whole():
    rows = 100 + torch.randn(64, 12, generator=torch.Generator().manual_seed(0))
    halves = [Moments.of(half) for half in rows.split(32)]
    whole = Moments(*(sum(pair) for pair in zip(*halves, strict=True)))
    assert float(whole.variance(64)) == pytest.approx(float(variance(rows)), rel=1e-5)


# ---- an end for all -----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("spread", [False, True])
def test_a_rank_killed_ends_all_and_the_run_goes_on_at_other_sizes(train, tmp_path, spread):
    said, how = tmp_path / "said", {"shard_latents": spread}

    def dying(rank: int, step: int) -> Path:
        last = at_step(step, lambda: os.kill(os.getpid(), signal.SIGKILL) if rank == 1 else None)
        return train("killed", last, **how)

    began = time.monotonic()
    assert over_ranks(2, lambda rank: dying(rank, 7), said) == [GONE, KILLED]
    assert "rank 1 is gone, at step 7" in said.read_text()
    assert over_ranks(4, lambda rank: dying(rank, 6), said) == [GONE, KILLED, GONE, GONE]  # counted from step 4
    assert time.monotonic() - began < 30
    assert over_ranks(2, lambda rank: train("killed", **how), said) == [0, 0]
    assert apart(train("whole"), tmp_path / "killed") < (1e-5 if spread else 5e-3)


@pytest.mark.slow
def test_two_ranks_killed_and_started_again_end_in_the_same_bytes(train, tmp_path):
    def dying(rank: int) -> Path:
        return train("killed", at_step(9, lambda: os.kill(os.getpid(), signal.SIGKILL) if rank == 0 else None))

    assert over_ranks(2, dying, tmp_path / "said") == [KILLED, GONE]
    assert "rank 0" in (tmp_path / "said").read_text()
    assert over_ranks(2, lambda rank: train("killed"), tmp_path / "said") == [0, 0]
    assert contents(tmp_path / "killed") == contents(train("alone", accumulation=2))


@pytest.mark.slow
def test_a_frozen_rank_is_named_and_waited_for_no_longer(train, tmp_path):
    frozen = at_step(5, lambda: os.kill(os.getpid(), signal.SIGSTOP))
    codes = over_ranks(2, lambda rank: train("frozen", frozen if rank == 1 else None), tmp_path / "said", limit=2)
    assert codes == [GONE, KILLED]
    assert "rank 1 has been silent for 2 s, at step" in (tmp_path / "said").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("rank_told", [0, 1])
def test_a_signal_to_one_rank_stops_all_after_the_same_step(train, tmp_path, rank_told):
    def stopped(rank: int) -> Path:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background starts with it ignored
        return train("stopped", at_step(6, lambda: signal.raise_signal(signal.SIGINT) if rank == rank_told else None))

    assert over_ranks(2, stopped, tmp_path / "said") == [1, 1]  # a KeyboardInterrupt left every one of them
    assert (tmp_path / "stopped" / "checkpoints" / "step-000006").is_dir()
    assert over_ranks(2, lambda rank: train("stopped"), tmp_path / "said") == [0, 0]
    assert contents(tmp_path / "stopped") == contents(train("alone", accumulation=2))


def test_ranks_told_different_things_refuse_before_the_first_step(train, tmp_path):
    codes = over_ranks(2, lambda rank: train("apart", lr=0.01 * (1 + rank)), tmp_path / "said")
    assert codes == [ConfigError.exit_code] * 2
    assert (tmp_path / "said").read_text().count("lr is 0.01 on rank 0 and 0.02 on rank 1") == 2
    assert not (tmp_path / "apart").exists()


@pytest.mark.slow
def test_an_error_of_one_rank_ends_the_others_with_its_code(tmp_path):
    def work(rank: int) -> None:
        if rank == 1:
            raise CheckpointError("this rank has no checkpoint")
        ranks.here().meet()

    assert over_ranks(2, work, tmp_path / "said") == [2, 2]
    assert "0: rank 1 ended, at the start: this rank has no checkpoint" in (tmp_path / "said").read_text()


def test_work_that_fails_on_one_rank_is_left_by_all_and_they_go_on(tmp_path):
    def work(rank: int) -> None:
        team = ranks.here()

        def failing(wait: Callable[[], object]) -> None:
            team.meet()
            if rank == 1:
                raise NumericalError("not a number")
            wait()
            pytest.fail("rank 1 did not come")

        for wait in (team.meet, lambda: team.every({"sums": torch.ones(rank)})):
            with pytest.raises(ForgeError, match=r"^rank 1: not a number$") as told:
                team.together(partial(failing, wait))
            assert told.value.exit_code == NumericalError.exit_code
            assert team.together(lambda: team.tell(rank)) == [0, 1, 2]

    assert over_ranks(3, work, tmp_path / "said") == [0, 0, 0]


def test_what_fails_on_every_rank_is_told_in_the_words_of_the_first(tmp_path):
    def work(rank: int) -> None:
        team = ranks.here()

        def failing() -> None:
            team.meet()
            raise CheckpointError(f"rank {rank} finds none")

        for _ in range(20):
            with pytest.raises(ForgeError, match=r"^rank 0 finds none$"):
                team.together(failing)

    assert over_ranks(3, work, tmp_path / "said") == [0, 0, 0]


@pytest.mark.slow
def test_a_rank_killed_in_work_that_may_fail_ends_all(tmp_path):
    def work(rank: int) -> None:
        with pytest.raises(ForgeError):
            ranks.here().together(ranks.here().meet if rank == 0 else lambda: os.kill(os.getpid(), signal.SIGKILL))

    assert over_ranks(2, work, tmp_path / "said") == [GONE, KILLED]
    assert "rank 1 is gone" in (tmp_path / "said").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "said"), [(0, "rank 1 of 2 did not come within 1 s"), (1, "rank 0 did not answer")])
def test_a_rank_that_never_comes_is_named(monkeypatch, rank, said):
    for name, value in environment(rank, 2, free_port()).items():
        monkeypatch.setenv(name, value)
    began = time.monotonic()
    with pytest.raises(PeerError, match=said), ranks.joined(1, {}, print):
        pass
    assert time.monotonic() - began < 3
    assert ranks.here() is ranks.ALONE


def test_one_flipped_bit_in_a_replica_is_found(train, tmp_path, monkeypatch):
    moved = Stepper.__call__

    def flips(self, batch):
        figures = moved(self, batch)
        if os.environ["RANK"] == "1" and self._state.step == 3:
            self._state.rows.W_enc.exp_avg[5].view(torch.int32)[0] ^= 1 << 20
        return figures

    monkeypatch.setattr(Stepper, "__call__", flips)
    assert over_ranks(2, lambda rank: train("drift"), tmp_path / "said") == [GONE, GONE]
    assert "rank 1 does not hold the weights of rank 0 at step 4" in (tmp_path / "said").read_text()


# ---- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"batch_size": 63, "accumulation": 2}, "give a multiple of 2, as 64"),
        ({"shard_latents": True, "accumulation": 2}, "leave --accumulation out"),
    ],
)
def test_unequal_parts_are_refused(reader, settings, said):  # noqa: F811
    given = config(**settings)
    stream = ActivationStream([reader], batch_size=given.batch_size, seed=0)
    with pytest.raises(ConfigError, match=said):
        Plan.make(given, given.saes(stream.d_in)[0], stream)


def test_latents_that_do_not_divide_are_refused(reader, monkeypatch):  # noqa: F811
    monkeypatch.setattr(ranks, "here", lambda: ranks.Ranks(0, 5))
    stream = ActivationStream([reader], batch_size=BATCH, seed=0)
    given = config(shard_latents=True)
    with pytest.raises(ConfigError, match=f"5 ranks cannot share d_sae={D_SAE}; try --d_sae 75"):
        Plan.make(given, given.saes(stream.d_in)[0], stream)


# ---- checkpoints --------------------------------------------------------------------------------


def started(d_sae: int, seed: int) -> TrainState:
    from sae_forge.sae.topk import TopKSAE

    state = TrainState.start(TopKSAE(4, d_sae, 2, seed=seed), 1.0)
    for number, slot in enumerate(state.slots.values()):
        slot.exp_avg.fill_(number + seed)
    state.step, state.tokens_since_fired = 3, torch.arange(d_sae) + seed
    return state


def test_shares_of_a_checkpoint_are_read_in_any_other_number_of_them(tmp_path):
    def save(rank: int) -> None:
        save_checkpoint(tmp_path / "c", started(6, seed=rank), Share(rank, 2), ranks.here())

    assert over_ranks(2, save, tmp_path / "said") == [0, 0]
    parts = [started(6, seed=0), started(6, seed=1)]
    for of in (1, 2, 3, 4):
        for number in range(of):
            found = load_checkpoint(tmp_path / "c", started(12 // of, seed=9).sae, Watcher(), Share(number, of))
            assert found is not None and found.step == 3
            mine = slice(number * 12 // of, (number + 1) * 12 // of)
            for name in ("W_enc", "W_dec", "b_enc"):
                slots: list[Slot] = [part.slots[name] for part in parts]
                for kind in ("weight", "exp_avg"):
                    whole = torch.cat([getattr(slot, kind) for slot in slots])
                    assert torch.equal(getattr(found.slots[name], kind), whole[mine])
            assert torch.equal(found.tokens_since_fired, torch.cat([p.tokens_since_fired for p in parts])[mine])


@pytest.mark.slow
def test_a_checkpoint_whose_rank_was_killed_in_the_middle_is_none(train, tmp_path, monkeypatch):
    from sae_forge.training import state

    written = state._write_verified

    def dies(path: Path, tensors):
        if "-1-of-2" in path.name and "step-000008" in str(path) and path.name.startswith("optim"):
            os.kill(os.getpid(), signal.SIGKILL)
        return written(path, tensors)

    monkeypatch.setattr(state, "_write_verified", dies)
    assert over_ranks(2, lambda rank: train("half", shard_latents=True), tmp_path / "said") == [GONE, KILLED]
    monkeypatch.undo()
    folder = tmp_path / "half" / "checkpoints"
    assert [path.name for path in folder.glob("step-*")] == ["step-000004"]
    damaged = folder / "step-000004" / "weights-1-of-2.safetensors"
    watcher = Watcher()
    drop_damaged(folder, watcher)
    assert not watcher.said
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    drop_damaged(folder, watcher)
    assert "weights-1-of-2.safetensors" in watcher.said[0] and not (folder / "step-000004").exists()


# ---- collecting ---------------------------------------------------------------------------------


FINGERPRINT = Fingerprint(
    model="toy", weights="w", tokenizer="t", hook_point="blocks.1.hook_resid_post", d_in=3, storage_dtype="fp32",
    ctx_len=32, bos="row", batch_size=4, max_tokens=100_000, corpus="c", source="c", role="retain",
)  # fmt: skip


def test_who_waits_for_the_shard_of_a_rank_that_failed_waits_no_longer(tmp_path):
    places = torch.arange(128)

    def write(rank: int) -> None:
        with ShardWriter(tmp_path / "c", FINGERPRINT, shard_rows=128, team=ranks.here()) as writer:
            for index in range(3):  # the first rank's third shard comes after the second's
                if not writer.is_own(writer.begun):
                    writer.pass_over(index, 128)
                elif rank:
                    raise ResourceError("the disk is full")
                else:
                    writer.write_batch(index, torch.ones(128, 3), places // 32, (places % 32).int(), places.int())
            writer.finish()

    def work(rank: int) -> None:
        with pytest.raises(ForgeError, match=r"^rank 1: the disk is full$"):
            ranks.here().together(lambda: write(rank))

    assert over_ranks(2, work, tmp_path / "said") == [0, 0]


@pytest.mark.slow
def test_ranks_fill_one_folder_as_one_process_does_also_where_rows_are_dropped(tmp_path):
    acts = torch.randn(20, 128, 3, generator=torch.Generator().manual_seed(0))
    acts[2, 5] = acts[9, 0] = torch.nan  # in shards of two ranks
    places = torch.arange(128)

    def write(name: str, *, until: int = 20) -> None:
        with ShardWriter(tmp_path / name, FINGERPRINT, shard_rows=256, team=ranks.here()) as writer:
            for index in range(writer.next_batch, until):
                if writer.is_own(writer.begun):
                    writer.write_batch(index, acts[index], places // 32, (places % 32).int(), places.int())
                else:
                    writer.pass_over(index, 128)
            if until < 20:
                raise CheckpointError("stopped on the way")
            writer.finish()

    write("alone")
    for world in (2, 3):
        assert over_ranks(world, lambda rank, world=world: write(f"by {world}"), tmp_path / "said") == [0] * world
        assert contents(tmp_path / f"by {world}") == contents(tmp_path / "alone")
    assert set(over_ranks(3, lambda rank: write("again", until=11), tmp_path / "said")) == {2}
    assert over_ranks(2, lambda rank: write("again"), tmp_path / "said") == [0, 0]
    assert contents(tmp_path / "again") == contents(tmp_path / "alone")


# ---- the command line ---------------------------------------------------------------------------


def test_a_command_that_knows_no_ranks_says_so():
    started = environment(1, 2, free_port())
    command = [sys.executable, "-m", "sae_forge", "report", "--run_dir", "nowhere", "--model", "tiny-llama"]
    done = subprocess.run(command, env=os.environ | started, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: rank 1: report runs in one process") and done.stderr.count("\n") == 1
