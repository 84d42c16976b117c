"""The processes of one job: which of them this is, what they tell one another, and how the job ends when one is lost.

A launcher (torchrun, accelerate) starts them and says in ``RANK``, ``WORLD_SIZE`` and ``LOCAL_RANK`` which is which.
Words go through a store of keys and texts, numbers through torch.distributed. A thread of each process beats in that
store and listens to the others', because a process that waits in a collective for one that is frozen cannot say so.
"""

import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from sae_forge import ranks_store
from sae_forge.errors import ConfigError, ForgeError, PeerError

BEAT = 0.5
"""Seconds between two beats."""
_SILENCE = 5.0
"""Seconds without a beat after which a process on another machine counts as gone, once a collective has failed."""
_GRACE = 2.0
"""Seconds a process has to end by itself when another one says why the job ends."""
Made = TypeVar("Made")


class Left(Exception):  # noqa: N818 (another rank says what is wrong)
    """A rank that this one waits for has failed at work that is done together, and does not come."""


@dataclass(eq=False)
class Ranks:
    """This process among those of its job. Every rank makes the same calls in the same order."""

    rank: int = 0
    world: int = 1
    local: int = 0
    """Number of this process on its machine: which of its GPUs it takes."""
    limit: float = 45.0
    """Seconds another rank may be silent."""
    at: str = "the start"
    """Where the work is, for messages: ``step 12``."""
    _store: TCPStore | None = field(default=None, repr=False)
    _calls: int = field(default=0, repr=False)
    _works: int = field(default=0, repr=False)
    """Beginnings and ends of work that may fail without an end of the job; from each on calls are counted anew."""
    _failed: str | None = field(default=None, repr=False)
    """The key that a rank sets which fails at such work, inside it."""

    @property
    def leads(self) -> bool:
        """Whether this is the rank that writes, logs and speaks."""
        return self.rank == 0

    # ---- words ----------------------------------------------------------------------------------

    def tell(self, value: Any) -> list[Any]:
        """What every rank has given here, by rank; JSON. Waits as long as all of them beat."""
        if self._store is None:
            return [value]
        self._calls += 1
        keys = [f"call-{ranks_store.life()}-{self._works}-{self._calls}/{rank}" for rank in range(self.world)]
        self._store.set(keys[self.rank], json.dumps(value))
        if not ranks_store.wait(self._store, keys, self._failed):
            raise Left
        return [json.loads(text) for text in self._store.multi_get(keys)]

    def meet(self) -> None:
        """Go on when every rank is here."""
        self.tell(None)

    @contextmanager
    def led(self) -> Iterator[bool]:
        """A block that the others enter when the first rank has left it; the value is whether this is the first."""
        if not self.leads:
            self.meet()
        yield self.leads
        if self.leads:
            self.meet()

    def together(self, work: Callable[[], Made]) -> Made:
        """What the work gives here, when every rank is done with it; where it fails on one it fails on all.

        Who waits for that one leaves the work, who is busy comes to its end; a rank that is gone ends the job as ever.

        Raises:
            ForgeError: why it failed, in the words of the first rank that did, with its exit code; the same everywhere.
        """
        if self._store is None:
            return work()
        made: list[Made] = []
        failed: ForgeError | None = None
        key = f"failed-{ranks_store.life()}-{self._works}"
        self._works, self._calls, self._failed = self._works + 1, 0, key
        with suppress(Left):
            try:
                made.append(work())
            except PeerError:
                raise
            except ForgeError as error:
                failed = error
                self._store.set(key, "")
        # ranks have left the work after different calls, so that those do not count here
        self._works, self._calls, self._failed = self._works + 1, 0, None
        told = self.tell(failed and [failed.exit_code, str(failed)])
        if any(told):
            rank, (code, text) = next((rank, its) for rank, its in enumerate(told) if its)
            error = ForgeError(f"rank {rank}: {text}" if rank else text)
            error.exit_code = code
            raise error from failed
        return made[0]

    def heed(self) -> None:
        """Leave what is done together where another rank has failed at it: for who waits in a way of its own."""
        if self._store is not None and self._failed is not None and self._store.check([self._failed]):
            raise Left

    def agree(self, what: str, facts: Mapping[str, Any]) -> None:
        """Refuse to go on unless every rank was given the same.

        Raises:
            ConfigError: names the first fact that differs, and both values.
        """
        given = self.tell(dict(facts))
        for rank, theirs in enumerate(given):
            for name in sorted({*given[0], *theirs}):
                if given[0].get(name) != theirs.get(name):
                    raise ConfigError(
                        f"the ranks have different {what}: {name} is {given[0].get(name)!r} on rank 0 and "
                        f"{theirs.get(name)!r} on rank {rank}; start all with the same command on the same files"
                    )

    # ---- numbers --------------------------------------------------------------------------------

    def connect(self, device: torch.device) -> None:
        """Open the collectives, for tensors on this device: NCCL between GPUs, gloo between CPUs."""
        if self._store is None or dist.is_initialized():
            return
        if device.type == "cuda":
            torch.cuda.set_device(device)
        with self._named():
            dist.init_process_group(
                "nccl" if device.type == "cuda" else "gloo",
                store=PrefixStore(f"collectives-{ranks_store.life()}", ranks_store.connected(self.limit)),
                rank=self.rank,
                world_size=self.world,
                timeout=timedelta(seconds=self.limit + 10),  # the thread that listens names the rank before that
            )

    def sum_(self, *tensors: Tensor) -> None:
        """Add up each tensor over the ranks, in place; every rank gets the same bits."""
        if self.world > 1:
            with self._named():
                for tensor in tensors:
                    dist.all_reduce(tensor)

    def each(self, tensor: Tensor) -> list[Tensor]:
        """The tensor of every rank, by rank; all have one shape."""
        if self.world == 1:
            return [tensor]
        gathered = [torch.empty_like(tensor) for _ in range(self.world)]
        with self._named():
            dist.all_gather(gathered, tensor.contiguous())
        return gathered

    def every(self, tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """The tensors of every rank, by rank, each of whatever shape; on the CPU, and the same names everywhere."""
        if self.world == 1:
            return [dict(tensors)]
        # words first: from them one can leave, where a rank has failed and does not come
        shapes = self.tell({name: list(tensor.shape) for name, tensor in tensors.items()})
        self.connect(torch.device("cpu"))
        found: list[dict[str, Tensor]] = [{} for _ in shapes]
        for name, tensor in tensors.items():
            sizes = [math.prod(its[name]) * tensor.element_size() for its in shapes]
            padded = torch.zeros(max(1, *sizes), dtype=torch.uint8)  # no collective takes nothing
            padded[: sizes[self.rank]] = tensor.contiguous().flatten().view(torch.uint8)
            for rank, whole in enumerate(self.each(padded)):
                found[rank][name] = whole[: sizes[rank]].view(tensor.dtype).reshape(shapes[rank][name])
        return found

    def largest(self, number: int, device: torch.device) -> int:
        """The greatest of the numbers the ranks give."""
        if self.world == 1:
            return number
        held = torch.tensor(number, device=device)
        with self._named():
            dist.all_reduce(held, dist.ReduceOp.MAX)
        return int(held)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """What a collective raises when it breaks off names no rank; the thread that listens will."""
        try:
            yield
        except RuntimeError as error:
            time.sleep(self.limit + _SILENCE if "imed out" in str(error) else _SILENCE + 4 * BEAT)
            raise PeerError(f"the ranks lost one another at {self.at}: {error}; run the same command again") from error


ALONE = Ranks()
_here = ALONE


def here() -> Ranks:
    """This process among those of its job; alone unless :func:`joined` is open."""
    return _here


def world_size() -> int:
    """Processes the launcher has started for this job."""
    return ranks_store.number("WORLD_SIZE", 1)


@contextmanager
def joined(limit: float, facts: Mapping[str, Any], lost: Callable[[ForgeError], object]) -> Iterator[Ranks]:
    """Be one of the ranks of this job; ``here()`` inside the block.

    An error that leaves the block ends every rank. A rank that is gone, or silent for ``limit`` seconds, does so too.

    Args:
        facts: Settings that must be the same on every rank.
        lost: Told why, just before this process ends because of another one.

    Raises:
        PeerError: a rank did not come within ``limit`` seconds.
        ConfigError: the ranks were given different settings.
    """
    global _here
    rank, world = ranks_store.number("RANK", 0), world_size()
    store = ranks_store.open_store(rank, world, limit)
    _here = team = Ranks(rank, world, ranks_store.number("LOCAL_RANK", 0), limit, _store=store)
    listener = _Listener(team, store, lost)
    try:
        listener.start()
        team.agree("settings", facts)
        yield team
        listener.part()
    except BaseException as error:
        listener.end(error)
        raise
    finally:
        _here = ALONE
        listener.stop()
        if dist.is_initialized():
            dist.destroy_process_group()


# ---- the thread that listens --------------------------------------------------------------------


class _Listener:
    """Beats in the store, and ends this process when another rank is gone, frozen, or says that the job ends."""

    def __init__(self, team: Ranks, store: TCPStore, lost: Callable[[ForgeError], object]) -> None:
        self._team, self._main, self._lost = team, store, lost
        self._store = ranks_store.connected(team.limit)  # a connection of its own: one is held by whoever waits on it
        self._others = [rank for rank in range(team.world) if rank != team.rank]
        addresses = store.multi_get([f"here/{ranks_store.life()}/{rank}" for rank in range(team.world)])
        self._addresses = [json.loads(text) for text in addresses]
        self._heard = {rank: (b"", time.monotonic()) for rank in self._others}
        self._stopped, self._count = threading.Event(), 0
        self._answered = time.monotonic()
        self._threads = [
            threading.Thread(target=work, name="ranks", daemon=True) for work in (self._listen, self._guard)
        ]

    def start(self) -> None:
        self._beat()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(4 * BEAT)

    def part(self) -> None:
        """The work is done here; go when it is done everywhere, and the store's own process last."""
        team, store = self._team, self._main
        store.set(f"done-{ranks_store.life()}/{team.rank}", "")
        ranks_store.wait(store, [f"done-{ranks_store.life()}/{rank}" for rank in range(team.world)])
        self.stop()
        self._leave()

    def end(self, error: BaseException) -> None:
        """The work ends here with an error, so it ends everywhere."""
        code = getattr(error, "exit_code", 130 if isinstance(error, KeyboardInterrupt) else 1)
        text = str(error) or type(error).__name__
        try:
            self._say(self._team.rank, code, f"rank {self._team.rank} ended, at {self._team.at}: {text}")
            self.stop()
            self._leave()
        except RuntimeError:  # the store is gone with its process; what ends this one is told all the same
            self.stop()

    def _leave(self) -> None:
        self._main.set(f"left-{ranks_store.life()}/{self._team.rank}", "")
        until = time.monotonic() + _GRACE + 4 * BEAT
        keys = [f"left-{ranks_store.life()}/{rank}" for rank in self._others if not self._dead(rank)]
        while self._team.leads and keys and not self._main.check(keys) and time.monotonic() < until:
            time.sleep(0.02)

    def _listen(self) -> None:
        while not self._stopped.wait(BEAT):
            try:
                self._beat()
                if ending := self._ended():
                    self._quit(*ending)
                elif (gone := self._gone()) is not None:
                    self._quit(*self._say(*gone))
                self._answered = time.monotonic()
            except RuntimeError:
                if not self._stopped.is_set():
                    holder = "the launcher" if ranks_store.launcher_keeps_it() else "rank 0"
                    self._quit(0, PeerError.exit_code, f"{holder}, which keeps the store, is gone, at {self._team.at}")

    def _guard(self) -> None:
        """See to it that the store answers: whoever asks one that is frozen waits without end."""
        while not self._stopped.wait(BEAT):
            if time.monotonic() - self._answered > self._team.limit + 4 * BEAT:
                silent = (
                    f"rank 0, which keeps the store, has been silent for {self._team.limit:.0f} s, at {self._team.at}"
                )
                self._quit(0, PeerError.exit_code, silent)

    def _beat(self) -> None:
        self._count += 1
        self._store.set(f"beat-{ranks_store.life()}/{self._team.rank}", str(self._count))

    def _say(self, rank: int, code: int, text: str) -> tuple[int, int, str]:
        """Say why the job ends; the first word holds."""
        said = self._store.compare_set(_ended_key(), "", json.dumps([rank, code, text]))
        return _parsed(said)

    def _ended(self) -> tuple[int, int, str] | None:
        return _parsed(self._store.get(_ended_key())) if self._store.check([_ended_key()]) else None

    def _gone(self) -> tuple[int, int, str] | None:
        """The rank that is no longer there or has been silent for too long."""
        now = time.monotonic()
        for rank in self._others:
            key = f"beat-{ranks_store.life()}/{rank}"
            if self._store.check([key]) and (beat := self._store.get(key)) != self._heard[rank][0]:
                self._heard[rank] = (beat, now)
            if self._store.check([f"done-{ranks_store.life()}/{rank}"]):
                continue
            if self._dead(rank):
                return rank, PeerError.exit_code, f"rank {rank} is gone, at {self._team.at}"
            if now - self._heard[rank][1] > self._team.limit:
                silent = f"rank {rank} has been silent for {self._team.limit:.0f} s, at {self._team.at}"
                return rank, PeerError.exit_code, silent
        return None

    def _dead(self, rank: int) -> bool:
        """Whether the process of a rank on this machine is no more."""
        address = self._addresses[rank]
        if address["machine"] != self._addresses[self._team.rank]["machine"]:
            return False
        try:
            state = Path(f"/proc/{address['pid']}/stat").read_text().rpartition(")")[2].split()[0]
        except (OSError, IndexError):
            return True
        return state in "ZX"

    def _quit(self, rank: int, code: int, text: str) -> None:
        """End this process, unless it does so by itself; a frozen one on this machine is ended too."""
        if code != PeerError.exit_code and self._stopped.wait(_GRACE):
            return
        if self._stopped.is_set():
            return
        silent = rank != self._team.rank and "silent" in text
        if silent and self._addresses[rank]["machine"] == self._addresses[self._team.rank]["machine"]:
            os.kill(self._addresses[rank]["pid"], signal.SIGKILL)  # or the launcher waits half a minute more for it
        error = PeerError(f"{text}; run the same command again to go on")
        self._lost(error)
        if self._team.leads:
            time.sleep(4 * BEAT)  # the store may be this process's own: let the others read why
        os._exit(code)


def _ended_key() -> str:
    return f"ended-{ranks_store.life()}"


def _parsed(said: bytes) -> tuple[int, int, str]:
    rank, code, text = json.loads(said)
    return rank, code, text
