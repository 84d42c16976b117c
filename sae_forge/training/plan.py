"""What a training run will do: the config with everything it leaves open decided, and what fixes the outcome."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae_forge import ranks
from sae_forge.config.train import SaeShape, TrainConfig
from sae_forge.data.windows import Stream
from sae_forge.errors import CheckpointError, ConfigError
from sae_forge.ranks import ALONE, Ranks
from sae_forge.sae.store import Provenance
from sae_forge.store import files
from sae_forge.training.schedule import default_lr, level_until, lr_at
from sae_forge.training.state import WHOLE, Share

CONFIG = "config.json"

_CPU = torch.device("cpu")


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
    team: Ranks = ALONE

    @classmethod
    def make(cls, config: TrainConfig, shape: SaeShape, stream: Stream) -> "Plan":
        """Decide what the config leaves to the shards and the machine.

        Args:
            shape: Which of the SAEs the config asks for.

        Raises:
            ConfigError: the stream's batch size is not the config's, there is no such device, or the batch or the
                latents cannot be shared out as asked.
        """
        if stream.batch_size != config.batch_size:
            raise ConfigError(
                f"the stream gives {stream.batch_size} tokens a batch, but batch_size={config.batch_size}"
            )
        team = ranks.here()
        _require_shareable(config, shape, team)
        steps = config.max_steps or config.epochs * stream.batches_per_epoch
        return cls(
            config=config,
            d_in=stream.d_in,
            **shape._asdict(),
            steps=steps,
            lr=config.lr or default_lr(shape.d_sae, steps),
            device=_device(config.sae_device, team),
            team=team,
        )

    @property
    def shards_latents(self) -> bool:
        """Whether each rank holds a part of the latents and sees the whole batch."""
        return self.config.shard_latents and self.team.world > 1

    @property
    def share(self) -> Share:
        """Which of the latents this rank holds."""
        return Share(self.team.rank, self.team.world) if self.shards_latents else WHOLE

    @property
    def local_k(self) -> int:
        """Latents that this rank offers for a token: k, or all it holds."""
        return min(self.k, len(self.share.latents(self.d_sae)))

    @property
    def latent_team(self) -> Ranks:
        """The ranks that the latents are spread over; this one alone where it holds them all."""
        return self.team if self.shards_latents else ALONE

    @property
    def replicas(self) -> int:
        """Ranks that hold the same weights and take a part of the batch each."""
        return 1 if self.config.shard_latents else self.team.world

    @property
    def in_parts(self) -> bool:
        """Whether gradients of several parts of a batch are summed before a step."""
        return self.replicas > 1 or self.config.accumulation > 1

    def own_rows(self, batch: Float[Tensor, "batch d_in"]) -> Float[Tensor, "part d_in"]:
        """What this rank takes of a batch: a run of its rows, the same length on every rank."""
        return batch.tensor_split(self.replicas)[self.team.rank] if self.replicas > 1 else batch

    @property
    def level_until(self) -> int:
        """Steps before the rate begins to fall: the state after them is what a longer training goes on from."""
        return level_until(self.steps, self.config.lr_decay)

    def lr_at(self, step: int) -> float:
        """Learning rate of the step with this zero-based index."""
        return lr_at(
            step, steps=self.steps, peak=self.lr, warmup=self.config.lr_warmup, decay=self.config.lr_decay
        )  # fmt: skip

    def settings(self, provenance: Provenance) -> dict[str, Any]:
        """What is written as config.json, and held against it on a second run."""
        return {**self.decided, "order_seed": self.config.seed, "data": provenance.to_json()}

    @property
    def decided(self) -> dict[str, Any]:
        """All that is decided but the text."""
        decided = {name: getattr(self, name) for name in ("d_in", "k", "d_sae", "seed", "steps", "lr")}
        if self.config.keep_sinks:  # an SAE of before has no word of it
            decided["keep_sinks"] = True
        if self.config.other_architecture:
            decided["architecture"] = self.config.other_architecture
        return {**self.config.deciding("sae"), **decided}


def stored_settings(folder: Path) -> dict[str, Any] | None:
    """What an SAE in this folder is trained under; None where there is none.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = folder / CONFIG
    if not path.exists():
        return None
    stored = files.read_json(path, kind=CheckpointError, what="the settings an SAE is trained under")
    if not isinstance(stored, dict) or not isinstance(stored.get("data"), dict) or "steps" not in stored:
        raise CheckpointError(f"{path} holds no settings; start over with --fresh")
    return stored


def settings_differ(stored: dict[str, Any], wanted: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Each setting whose value is not the stored one, as (name, stored, wanted); nested ones last, by dotted name."""
    differences: list[tuple[str, Any, Any]] = []
    for name in sorted({*stored, *wanted}, key=lambda name: (isinstance(stored.get(name), dict), name)):
        before, now = stored.get(name), wanted.get(name)
        if isinstance(before, dict) and isinstance(now, dict):
            differences += [(f"{name}.{inner}", old, new) for inner, old, new in settings_differ(before, now)]
        elif before != now:
            differences.append((name, before, now))
    return differences


def _require_shareable(config: TrainConfig, shape: SaeShape, team: Ranks) -> None:
    """Refuse parts of unequal size, for which sums in parts and over ranks would not be the same."""
    if config.shard_latents and config.accumulation > 1:
        raise ConfigError("--shard_latents takes every batch whole; leave --accumulation out")
    if config.shard_latents and shape.d_sae % team.world:
        near = (shape.d_sae // team.world + 1) * team.world
        raise ConfigError(f"--shard_latents: {team.world} ranks cannot share d_sae={shape.d_sae}; try --d_sae {near}")
    parts = config.accumulation * (1 if config.shard_latents else team.world)
    if config.batch_size % parts:
        near = (config.batch_size // parts + 1) * parts
        raise ConfigError(
            f"--batch_size {config.batch_size} does not fall into {parts} equal parts ({team.world} ranks, "
            f"--accumulation {config.accumulation}); give a multiple of {parts}, as {near}"
        )


def _device(name: str, team: Ranks) -> torch.device:
    if name == "auto" or (name == "cuda" and team.world > 1):
        return torch.device(f"cuda:{team.local}" if team.world > 1 else "cuda") if torch.cuda.is_available() else _CPU
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"--sae_device {name} is no device; give auto, cpu, cuda or cuda:<n>") from None
    gpus = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= gpus:
        raise ConfigError(f"--sae_device {name}: this machine has {gpus} CUDA GPUs; use cpu or auto")
    return device
