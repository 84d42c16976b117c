"""All that a training run is between two steps, and how it survives on disk: one folder a checkpoint.

A checkpoint is written under a scratch name, read back and compared, then renamed. Which one is the latest is found by
looking and verifying, never by a pointer file.

Where the latents are spread over ranks, each rank writes the file of its own, and ``state.json``, which makes the
checkpoint one, comes last. A run may go on at any other number of ranks.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch
from jaxtyping import Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sae_forge.errors import CheckpointError, ResourceError
from sae_forge.kernels.rows import Rows, Slot
from sae_forge.progress import Progress
from sae_forge.ranks import ALONE, Ranks
from sae_forge.sae.topk import TopKSAE
from sae_forge.store import files, records
from sae_forge.store.seal import sealed_json
from sae_forge.store.tensors import read_header, read_tensors

NOTHING: Mapping[str, Tensor] = MappingProxyType({})
KEPT = 2
"""Checkpoints left standing after a new one has verified."""

LEVEL = "level"
"""Folder of the one checkpoint that stays with a finished SAE: of the state before the rate began to fall."""
STATE, PART = "state.json", "part of a training checkpoint"
_FILES = ("weights.safetensors", "optim.safetensors")
_MOST_SHARES = 4096
_NAME = re.compile(r"step-(\d+)")
_FACTS = ("step", "tokens", "scale", "aux_places", "sink_norm")


class Share(NamedTuple):
    """Which of several equal runs of latents a state holds."""

    number: int = 0
    of: int = 1

    def latents(self, d_sae: int) -> range:
        """The latents of all ``d_sae`` that it holds."""
        each = d_sae // self.of
        return range(self.number * each, (self.number + 1) * each)


WHOLE = Share()


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What ``state.json`` says: numbers that are possible, and the hash of each file, whose names are ours, not its."""

    format: int
    step: int
    tokens: int
    scale: float
    aux_places: int
    files: dict[str, str]
    shares: int = 1
    sink_norm: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.shares <= _MOST_SHARES:
            raise ValueError(f"shares is {self.shares}")
        for name in _FACTS:
            if not 0 <= getattr(self, name) < 2**63:
                raise ValueError(f"{name} is {getattr(self, name)}")
        names = [_file(name, Share(number, self.shares)) for number in range(self.shares) for name in _FILES]
        if set(self.files) != set(names):
            raise ValueError(f"it should hold the hashes of {', '.join(names[:4])}")


@dataclass
class TrainState:
    """Everything the next step depends on besides its batch, which is a function of the step's index."""

    sae: TopKSAE
    """Works on activations times ``scale``."""
    scale: float
    """Factor on the stored activations; folded away when the SAE is saved."""
    rows: Rows
    """The SAE's own weights, latent by latent, with Adam's moments."""
    b_dec: Slot
    tokens_since_fired: Int[Tensor, "d_sae"]
    """For each latent, tokens gone by since it last fired."""
    step: int = 0
    """Optimizer steps done."""
    tokens: int = 0
    """Tokens seen."""
    aux_places: int = 0
    """Dead latents that AuxK has room for; a GPU makes room now and then instead of counting at every step."""
    sink_norm: float = 0.0
    """Length beyond which an activation is a sink's, as stored; 0 where sinks are kept."""
    own: dict[str, Tensor] = field(default_factory=dict)
    """What the architecture keeps between steps."""

    @classmethod
    def start(cls, sae: TopKSAE, scale: float, own: Mapping[str, Tensor] = NOTHING) -> "TrainState":
        """The state before the first step.

        Args:
            own: What the architecture keeps between steps, as it begins.
        """
        sae.requires_grad_(False)
        rows = Rows(
            _slot(sae.W_enc.data.T, sae.product_dtype),
            _slot(sae.W_dec.data, sae.product_dtype),
            _slot(sae.b_enc.data, None),
        )
        since = torch.zeros(sae.d_sae, dtype=torch.int64, device=sae.W_dec.device)
        held = {name: tensor.to(since.device) for name, tensor in own.items()}
        return cls(sae, scale, rows, _slot(sae.b_dec.data, None), since, own=held)

    @property
    def slots(self) -> dict[str, Slot]:
        """Every weight by the name it has on disk."""
        return {**self.rows._asdict(), "b_dec": self.b_dec}


def _slot(weight: Tensor, product_dtype: torch.dtype | None) -> Slot:
    """A weight before its first step; it must lie as it is stepped, latent by latent."""
    copy = None if product_dtype is None else weight.to(product_dtype)
    return Slot(weight, torch.zeros_like(weight), torch.zeros_like(weight), copy)


def save_checkpoint(
    folder: Path, state: TrainState, share: Share = WHOLE, team: Ranks = ALONE, *, kept: int = KEPT
) -> Path:
    """Write the state as ``folder/step-<n>``, verified by re-reading, then drop all but the newest.

    Args:
        share: What of it this rank holds. Of ranks that all hold the whole, only the first may call.
        team: The ranks that hold the shares; they meet here.

    Raises:
        ResourceError: the disk is too small, or does not give back what was written.
    """
    target = folder / f"step-{state.step:06d}"
    if any(team.tell(target.exists())):
        return target
    parts = _tensors(state)
    files.require_disk(folder, sum(tensor.nbytes for part in parts.values() for tensor in part.values()))
    with _published(target, team) as scratch:
        mine = {_file(name, share): _write_verified(scratch / _file(name, share), part) for name, part in parts.items()}
        hashes = {name: sha256 for theirs in team.tell(mine) for name, sha256 in theirs.items()}
        if team.leads:
            _require_same(scratch, hashes, mine)
            facts = {"format": 1, "files": hashes} | {name: getattr(state, name) for name in _FACTS}
            (scratch / STATE).write_bytes(sealed_json(facts if share.of == 1 else facts | {"shares": share.of}))
    for _, older in checkpoints(folder)[:-kept] if team.leads else ():
        files.discard_folder(older)
    return target


@contextmanager
def _published(target: Path, team: Ranks) -> Iterator[Path]:
    """A scratch folder for all ranks, which becomes ``target`` when each has left the block."""
    if team.leads:
        with files.publish_folder(target) as scratch:
            team.meet()
            yield scratch
    else:
        team.meet()
        yield files.scratch_of(target)
    team.meet()


def _require_same(scratch: Path, hashes: dict[str, str], known: Mapping[str, str]) -> None:
    """Hash what other ranks have written, as this one's disk shows it."""
    for name, sha256 in hashes.items():
        if name not in known and files.file_sha256(scratch / name) != sha256:
            raise ResourceError(f"{scratch / name} is not what its rank has written; all ranks need one --run_dir")


def load_checkpoint(
    folder: Path, sae: TopKSAE, progress: Progress, share: Share = WHOLE, own: Mapping[str, Tensor] = NOTHING
) -> TrainState | None:
    """The newest state that verifies, or None; newer ones that do not are removed and said so.

    Args:
        sae: An SAE of the right shape; the stored weights are copied into it.
        share: Which of the latents it has; how many shares the checkpoint was written in does not matter.
        own: What its architecture keeps beside the weights, as it begins.
    """
    for _, path in reversed(checkpoints(folder)):
        try:
            return _restore(path, sae, share, own)
        except CheckpointError as error:
            progress.say(f"{error}; going back to the checkpoint before it")
            files.discard_folder(path)
    return None


def drop_damaged(folder: Path, progress: Progress) -> None:
    """Remove the newest checkpoints as long as not all of their files verify, and say so."""
    for _, path in reversed(checkpoints(folder)):
        try:
            for name in (STATE, *_read_facts(path).files):
                verify_checkpoint(path, name)
            return
        except CheckpointError as error:
            progress.say(f"{error}; going back to the checkpoint before it")
            files.discard_folder(path)


def load_weights(folder: Path, sae: TopKSAE) -> float:
    """Copy the weights of the newest checkpoint, of all its shares, into ``sae``; returns the scale they work at."""
    _, path = checkpoints(folder)[-1]
    facts = _read_facts(path)
    _fill(
        path, facts, _FILES[0], {name: getattr(sae, name).data for name in ("W_enc", "W_dec", "b_enc", "b_dec")}, WHOLE
    )
    return facts.scale


def verify_checkpoint(path: Path, name: str) -> None:
    """Read every byte of one file of the checkpoint in ``path``; with ``state.json`` comes that all others are there.

    Raises:
        CheckpointError: a file is missing or not what was written; the message names it.
    """
    hashes = _read_facts(path).files
    if name not in {STATE, *hashes}:
        raise CheckpointError(f"{path / STATE} is not a training state that knows {name}")
    for part in hashes if name == STATE else (name,):
        read_header(path / part, kind=CheckpointError, what=PART)
    if name != STATE:
        _require_hash(path / name, hashes[name])


# ---- parts --------------------------------------------------------------------------------------


def _tensors(state: TrainState) -> dict[str, dict[str, Tensor]]:
    """What each file of a checkpoint holds; matrices lie as in an SAE's own file."""
    moments = {
        f"{kind}.{name}": _as_stored(name, getattr(slot, kind))
        for name, slot in state.slots.items()
        for kind in ("exp_avg", "exp_avg_sq")
    }
    return {
        "weights.safetensors": {name: _as_stored(name, slot.weight) for name, slot in state.slots.items()},
        "optim.safetensors": {**moments, "tokens_since_fired": state.tokens_since_fired, **state.own},
    }


def _as_stored(name: str, tensor: Tensor) -> Tensor:
    return tensor.T if name == "W_enc" else tensor


def _write_verified(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write, read back, compare every number; returns the file's sha256."""
    held = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(held, path)
    except SafetensorError as error:  # its only way to say that the disk is full
        raise OSError(str(error)) from error
    with safe_open(path, framework="pt") as file:
        for name, tensor in held.items():
            if not torch.equal(file.get_tensor(name), tensor):
                raise ResourceError(
                    f"{path} did not read back as written ({name}); check the disk or choose another --run_dir"
                )
    return files.file_sha256(path)


def checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Checkpoints by step, oldest first."""
    if not folder.is_dir():
        return []
    named = [
        (match, path)
        for path in folder.iterdir()
        if (match := _NAME.fullmatch(path.name)) and path.is_dir() and not path.is_symlink()
    ]
    return sorted((int(match[1]), path) for match, path in named)


def _restore(path: Path, sae: TopKSAE, share: Share, own: Mapping[str, Tensor]) -> TrainState:
    """The state in this folder, refused unless every file has its hash and every tensor its shape."""
    facts = _read_facts(path)
    state = TrainState.start(sae, 1.0, own)
    for name in _FACTS:
        setattr(state, name, getattr(facts, name))
    for name, tensors in _tensors(state).items():
        _fill(path, facts, name, tensors, share)
    for slot in state.slots.values():
        if slot.copy is not None:
            slot.copy.copy_(slot.weight)
    return state


def _read_facts(path: Path) -> Facts:
    files.require_plain(path / STATE, kind=CheckpointError, what=PART)
    facts = records.read(Facts, path / STATE, error=CheckpointError, what="a training state")
    for name in facts.files:
        files.require_plain(path / name, kind=CheckpointError, what=PART)
    return facts


def _file(name: str, share: Share) -> str:
    """The name of a share's file."""
    stem, dot, ending = name.partition(".")
    return name if share.of == 1 else f"{stem}-{share.number}-of-{share.of}{dot}{ending}"


@torch.no_grad()
def _fill(path: Path, facts: Facts, name: str, tensors: dict[str, Tensor], share: Share) -> None:
    """Copy over these tensors, in place, what the stored shares hold of their latents."""
    here = len(tensors[next(n for n in tensors if n.endswith("W_dec"))])
    d_sae = here * share.of
    wanted = share.latents(d_sae)
    for stored_share in (Share(number, facts.shares) for number in range(facts.shares)):
        there = stored_share.latents(d_sae)
        first, last = max(wanted.start, there.start), min(wanted.stop, there.stop)
        if first >= last:
            continue
        file = path / _file(name, stored_share)
        stored = _stored(file, facts.files[file.name], tensors, len(there))
        for key, tensor in tensors.items():
            axis = _LATENT_AXIS.get(key.rpartition(".")[2])
            if axis is None:
                tensor.copy_(stored[key])
            else:
                part = stored[key].narrow(axis, first - there.start, last - first)
                tensor.narrow(axis, first - wanted.start, last - first).copy_(part)


_LATENT_AXIS = {"W_enc": 1, "W_dec": 0, "b_enc": 0, "tokens_since_fired": 0}
"""Along which axis of a stored tensor the latents lie; the others are common to all."""


def _stored(path: Path, expected_hash: str, like: dict[str, Tensor], latents: int) -> dict[str, Tensor]:
    """The tensors of one share, refused unless they are those of so many latents."""
    layout, _ = read_header(path, kind=CheckpointError, what=PART)
    expected: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    for name, tensor in like.items():
        shape, axis = list(tensor.shape), _LATENT_AXIS.get(name.rpartition(".")[2])
        if axis is not None:
            shape[axis] = latents
        expected[name] = (tensor.dtype, tuple(shape))
    if {name: entry[:2] for name, entry in layout.items()} != expected:
        raise CheckpointError(f"{path} holds other tensors than this SAE has")
    _require_hash(path, expected_hash)
    return read_tensors(path, kind=CheckpointError, what=PART)


def _require_hash(path: Path, expected: str) -> None:
    if files.file_sha256(path) != expected:
        raise CheckpointError(f"{path} is damaged: its hash is not the one in {STATE}")
