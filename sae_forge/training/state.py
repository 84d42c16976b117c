"""All that a training run is between two steps, and how it survives on disk: one folder a checkpoint.

A checkpoint is written under a scratch name, read back and compared, then renamed. Which one is the latest is found by
looking and verifying, never by a pointer file.
"""

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from sae_forge import files
from sae_forge.errors import CheckpointError, ResourceError
from sae_forge.progress import Progress
from sae_forge.sae.topk import TopKSAE
from sae_forge.tensors import read_header, read_tensors
from sae_forge.training.optimizer import make_adam, named_weights

KEPT = 2
"""Checkpoints left standing after a new one has verified."""

_NAME = re.compile(r"step-(\d+)")
_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass
class TrainState:
    """Everything the next step depends on besides its batch, which is a function of the step's index."""

    sae: TopKSAE
    """Works on activations times ``scale``."""
    scale: float
    """Factor on the stored activations; folded away when the SAE is saved."""
    optimizer: torch.optim.Adam
    tokens_since_fired: Int[Tensor, "d_sae"]
    """For each latent, tokens gone by since it last fired."""
    step: int = 0
    """Optimizer steps done."""
    tokens: int = 0
    """Tokens seen."""

    @classmethod
    def start(cls, sae: TopKSAE, scale: float) -> "TrainState":
        """The state before the first step."""
        return cls(sae, scale, make_adam(sae), torch.zeros(sae.d_sae, dtype=torch.int64, device=sae.W_dec.device))


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
        facts = {"format": 1, "step": state.step, "tokens": state.tokens, "scale": state.scale, "files": hashes}
        (scratch / "state.json").write_bytes(files.canonical(facts))
    for _, older in _checkpoints(folder)[:-KEPT]:
        shutil.rmtree(older)
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
            shutil.rmtree(path)
    return None


# ---- parts --------------------------------------------------------------------------------------


def _tensors(state: TrainState) -> dict[str, dict[str, Tensor]]:
    weights = named_weights(state.sae)
    moments = {f"{kind}.{name}": state.optimizer.state[weights[name]][kind] for name in weights for kind in _MOMENTS}
    optim = {**moments, "tokens_since_fired": state.tokens_since_fired}
    return {
        "weights.safetensors": {name: weight.detach() for name, weight in weights.items()},
        "optim.safetensors": optim,
    }


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
    named = [(match, path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name)) and path.is_dir()]
    return sorted((int(match[1]), path) for match, path in named)


def _restore(path: Path, sae: TopKSAE) -> TrainState:
    """The state in this folder, refused unless every file has its hash and every tensor its shape."""
    facts = files.read_json(path / "state.json", kind=CheckpointError, what="a training state")
    state = TrainState.start(sae, 1.0)
    expected = _tensors(state)
    try:
        state.step, state.tokens, state.scale = int(facts["step"]), int(facts["tokens"]), float(facts["scale"])
        hashes = {name: facts["files"][name] for name in expected}
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path / 'state.json'} is not a training state") from error
    for name, tensors in expected.items():
        _restore_file(path / name, hashes[name], tensors)
    for slots in state.optimizer.state.values():
        slots["step"].fill_(state.step)
    return state


@torch.no_grad()
def _restore_file(path: Path, expected_hash: str, tensors: dict[str, Tensor]) -> None:
    """Copy the stored tensors over those given, in place."""
    layout, _ = read_header(path, kind=CheckpointError, what="part of a training checkpoint")
    if {name: entry[:2] for name, entry in layout.items()} != {
        n: (t.dtype, tuple(t.shape)) for n, t in tensors.items()
    }:
        raise CheckpointError(f"{path} holds other tensors than this SAE has")
    if files.file_sha256(path) != expected_hash:
        raise CheckpointError(f"{path} is damaged: its hash is not the one in state.json")
    stored = read_tensors(path, kind=CheckpointError, what="part of a training checkpoint")
    for name, tensor in tensors.items():
        tensor.copy_(stored[name])
