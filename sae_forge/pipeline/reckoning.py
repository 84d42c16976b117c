"""How long work will take on this machine, found out by doing a little of it."""

import time
from collections.abc import Sequence

import torch

from sae_forge.config.collect import CollectConfig
from sae_forge.config.train import TrainConfig
from sae_forge.hookpoint import HookPoint
from sae_forge.models.hooks import capture
from sae_forge.models.loading import LanguageModel
from sae_forge.pipeline.bench import device_of

PRODUCT_SHARE = 0.7
"""Share of a training step that the encoder's dense product takes on a CPU, as profiled at 12,288 latents."""
PROBE_SECONDS = 2.0
"""How long the model is tried, after one pass that is not counted."""


def tokens_per_second(config: CollectConfig, lm: LanguageModel, points: Sequence[HookPoint]) -> float:
    """How fast this machine reads text up to the hook points, on made-up tokens of the batch that is asked for."""
    shape = (config.model_batch_size, config.ctx_len)
    ids = torch.randint(lm.rows, shape, generator=torch.Generator().manual_seed(config.seed))
    capture(lm, points, ids, torch.ones(shape, dtype=torch.long))
    started, passes = time.monotonic(), 0
    while time.monotonic() - started < PROBE_SECONDS or not passes:
        capture(lm, points, ids, torch.ones(shape, dtype=torch.long))
        passes += 1
    return passes * ids.numel() / (time.monotonic() - started)


def step_seconds(config: TrainConfig, d_in: int, d_sae: int) -> float:
    """A training step, reckoned from a slice of its dense product."""
    rows, device = min(config.batch_size, 512), device_of(config.sae_device)
    x, weights = torch.randn(rows, d_in, device=device), torch.randn(d_in, d_sae, device=device)
    seconds = []
    for _ in range(3):
        started = time.monotonic()
        (x @ weights).sum().item()
        seconds.append(time.monotonic() - started)
    return min(seconds) * config.batch_size / rows / PRODUCT_SHARE


def duration(seconds: float) -> str:
    """Seconds in the unit that one would say them in."""
    if seconds < 1:
        return "under 1 s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
