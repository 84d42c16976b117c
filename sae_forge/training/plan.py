"""What a training run will do: the config with everything it leaves open decided, and what fixes the outcome."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sae_forge import files
from sae_forge.config import SaeShape, TrainConfig
from sae_forge.data.stream import ActivationStream
from sae_forge.errors import CheckpointError, ConfigError
from sae_forge.sae.store import Provenance
from sae_forge.training.schedule import default_lr, lr_at

CONFIG = "config.json"

DECIDING = (
    "batch_size",
    "lr_warmup",
    "lr_decay",
    "auxk_alpha",
    "dead_after",
    "b_dec_init",
    "max_grad_norm",
    "sae_dtype",
)
"""Settings that, as given, decide which SAE comes out; device, backend and checkpoint interval do not."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The settings with everything left open decided."""

    config: TrainConfig
    d_in: int
    k: int
    d_sae: int
    seed: int
    steps: int
    """Optimizer steps in all."""
    lr: float
    """Peak rate."""
    device: torch.device

    @classmethod
    def make(cls, config: TrainConfig, shape: SaeShape, stream: ActivationStream) -> "Plan":
        """Decide what the config leaves to the shards and the machine.

        Args:
            shape: Which of the SAEs the config asks for.

        Raises:
            ConfigError: the stream's batch size is not the config's, or there is no such device.
        """
        if stream.batch_size != config.batch_size:
            raise ConfigError(
                f"the stream gives {stream.batch_size} tokens a batch, but batch_size={config.batch_size}"
            )
        return cls(
            config=config,
            d_in=stream.d_in,
            **shape._asdict(),
            steps=config.max_steps or config.epochs * stream.batches_per_epoch,
            lr=config.lr or default_lr(shape.d_sae),
            device=_device(config.sae_device),
        )

    def lr_at(self, step: int) -> float:
        """Learning rate of the step with this zero-based index."""
        return lr_at(
            step, steps=self.steps, peak=self.lr, warmup=self.config.lr_warmup, decay=self.config.lr_decay
        )  # fmt: skip

    def settings(self, provenance: Provenance) -> dict[str, Any]:
        """What is written as config.json, and held against it on a second run."""
        given = {name: getattr(self.config, name) for name in DECIDING}
        decided = {name: getattr(self, name) for name in ("d_in", "k", "d_sae", "seed", "steps", "lr")}
        return {**given, **decided, "order_seed": self.config.seed, "data": provenance.to_json()}


def require_same_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Refuse to go on in a folder whose config.json says something else; an empty folder agrees with anything.

    Raises:
        CheckpointError: names the first setting that differs.
    """
    path = folder / CONFIG
    if not path.exists():
        return
    stored = files.read_json(path, kind=CheckpointError, what="the settings an SAE is trained under")
    if not isinstance(stored, dict):
        raise CheckpointError(f"{path} holds no settings; start over with --fresh")
    for name, found, expected in settings_differ(stored, settings)[:1]:
        raise CheckpointError(
            f"{folder} is trained under other settings: {name} expected {expected}, found {found}; "
            "start over with --fresh or choose another --run_dir"
        )


def settings_differ(stored: dict[str, Any], wanted: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Each setting whose value is not the stored one, as (name, stored, wanted); nested ones by dotted name."""
    found: list[tuple[str, Any, Any]] = []
    for name in sorted({*stored, *wanted}):
        before, now = stored.get(name), wanted.get(name)
        if isinstance(before, dict) and isinstance(now, dict):
            found += [(f"{name}.{inner}", old, new) for inner, old, new in settings_differ(before, now)]
        elif before != now:
            found.append((name, before, now))
    return found


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"--sae_device {name} is no device; give auto, cpu, cuda or cuda:<n>") from None
    gpus = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= gpus:
        raise ConfigError(f"--sae_device {name}: this machine has {gpus} CUDA GPUs; use cpu or auto")
    return device
