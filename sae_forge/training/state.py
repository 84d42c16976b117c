"""All that a training run is between two steps, and how it survives on disk: one folder a checkpoint.

A checkpoint is written under a scratch name, read back and compared, then renamed. Which one is the latest is found by
looking and verifying, never by a pointer file.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from sae_forge import files
from sae_forge.errors import CheckpointError, ResourceError
from sae_forge.kernels.rows import Rows, Slot
from sae_forge.progress import Progress
from sae_forge.sae.topk import TopKSAE
from sae_forge.tensors import read_header, read_tensors

KEPT = 2
"""Checkpoints left standing after a new one has verified."""

STATE, PART = "state.json", "part of a training checkpoint"
_FILES = ("weights.safetensors", "optim.safetensors")
_NAME = re.compile(r"step-(\d+)")
_FACTS = {"step": int, "tokens": int, "scale": float, "aux_places": int}


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

    @classmethod
    def start(cls, sae: TopKSAE, scale: float) -> "TrainState":
        """The state before the first step."""
        sae.requires_grad_(False)
        rows = Rows(
            _slot(sae.W_enc.data.T, sae.product_dtype),
            _slot(sae.W_dec.data, sae.product_dtype),
            _slot(sae.b_enc.data, None),
        )
        since = torch.zeros(sae.d_sae, dtype=torch.int64, device=sae.W_dec.device)
        return cls(sae, scale, rows, _slot(sae.b_dec.data, None), since)

    @property
    def slots(self) -> dict[str, Slot]:
        """Every weight by the name it has on disk."""
        return {**self.rows._asdict(), "b_dec": self.b_dec}


def _slot(weight: Tensor, product_dtype: torch.dtype | None) -> Slot:
    """A weight before its first step; it must lie as it is stepped, latent by latent."""
    copy = None if product_dtype is None else weight.to(product_dtype)
    return Slot(weight, torch.zeros_like(weight), torch.zeros_like(weight), copy)


def save_checkpoint(folder: Path, state: TrainState) -> Path:
    """Write the state as ``folder/step-<n>``, verified by re-reading, then drop all but the newest two.

    Raises:
        ResourceError: the disk is too small, or does not give back what was written.
    """
    target = folder / f"step-{state.step:06d}"
    if target.exists():
        return target
    parts = _tensors(state)
    files.require_disk(folder, sum(tensor.nbytes for part in parts.values() for tensor in part.values()))
    with files.publish_folder(target) as scratch:
        hashes = {name: _write_verified(scratch / name, tensors) for name, tensors in parts.items()}
        facts = {"format": 1, "files": hashes} | {name: getattr(state, name) for name in _FACTS}
        (scratch / STATE).write_bytes(files.sealed_json(facts))
    for _, older in _checkpoints(folder)[:-KEPT]:
        files.discard_folder(older)
    return target


def load_checkpoint(folder: Path, sae: TopKSAE, progress: Progress) -> TrainState | None:
    """The newest state that verifies, or None; newer ones that do not are removed and said so.

    Args:
        sae: An SAE of the right shape; the stored weights are copied into it.
    """
    for _, path in reversed(_checkpoints(folder)):
        try:
            return _restore(path, sae)
        except CheckpointError as error:
            progress.say(f"{error}; going back to the checkpoint before it")
            files.discard_folder(path)
    return None


def verify_checkpoint(path: Path, name: str) -> None:
    """Read every byte of one file of the checkpoint in ``path``; with ``state.json`` comes that all others are there.

    Raises:
        CheckpointError: a file is missing or not what was written; the message names it.
    """
    hashes = _read_facts(path)["files"]
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
        "optim.safetensors": {**moments, "tokens_since_fired": state.tokens_since_fired},
    }


def _as_stored(name: str, tensor: Tensor) -> Tensor:
    return tensor.T if name == "W_enc" else tensor


def _write_verified(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write, read back, compare every number; returns the file's sha256."""
    held = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    save_file(held, path)
    with safe_open(path, framework="pt") as file:
        for name, tensor in held.items():
            if not torch.equal(file.get_tensor(name), tensor):
                raise ResourceError(
                    f"{path} did not read back as written ({name}); check the disk or choose another --run_dir"
                )
    return files.file_sha256(path)


def _checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Checkpoints by step, oldest first."""
    if not folder.is_dir():
        return []
    named = [
        (match, path)
        for path in folder.iterdir()
        if (match := _NAME.fullmatch(path.name)) and path.is_dir() and not path.is_symlink()
    ]
    return sorted((int(match[1]), path) for match, path in named)


def _restore(path: Path, sae: TopKSAE) -> TrainState:
    """The state in this folder, refused unless every file has its hash and every tensor its shape."""
    facts = _read_facts(path)
    state = TrainState.start(sae, 1.0)
    for name, kind in _FACTS.items():
        setattr(state, name, kind(facts[name]))
    for name, tensors in _tensors(state).items():
        _restore_file(path / name, facts["files"][name], tensors)
    for slot in state.slots.values():
        if slot.copy is not None:
            slot.copy.copy_(slot.weight)
    return state


def _read_facts(path: Path) -> dict[str, Any]:
    """What ``state.json`` says: numbers that are possible, and the hash of each file, whose names are ours, not its."""
    for name in (STATE, *_FILES):
        if (path / name).is_symlink():
            raise CheckpointError(f"{path / name} is a link; a checkpoint holds plain files")
    facts = files.read_json(path / STATE, kind=CheckpointError, what="a training state")
    hashes = facts.get("files") if isinstance(facts, dict) else None
    if not isinstance(hashes, dict) or set(hashes) != set(_FILES):
        raise CheckpointError(
            f"{path / STATE} is not a training state: it should hold the hashes of {', '.join(_FILES)}"
        )
    for name in _FACTS:
        if type(value := facts.get(name)) not in (int, float) or not 0 <= value < 2**63:
            raise CheckpointError(f"{path / STATE} is not a training state: {name} is {str(value)[:40]}")
    return facts


@torch.no_grad()
def _restore_file(path: Path, expected_hash: str, tensors: dict[str, Tensor]) -> None:
    """Copy the stored tensors over those given, in place."""
    layout, _ = read_header(path, kind=CheckpointError, what=PART)
    if {name: entry[:2] for name, entry in layout.items()} != {
        n: (t.dtype, tuple(t.shape)) for n, t in tensors.items()
    }:
        raise CheckpointError(f"{path} holds other tensors than this SAE has")
    _require_hash(path, expected_hash)
    stored = read_tensors(path, kind=CheckpointError, what=PART)
    for name, tensor in tensors.items():
        tensor.copy_(stored[name])


def _require_hash(path: Path, expected: str) -> None:
    if files.file_sha256(path) != expected:
        raise CheckpointError(f"{path} is damaged: its hash is not the one in {STATE}")
