"""How long work will take on this machine, found out by doing a little of it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

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


@dataclass(frozen=True)
class Pace:
    """How fast this machine reads text up to a layer."""

    rate: float
    """Tokens a second."""
    layer: int

    @property
    def said(self) -> str:
        """What was found out, in words."""
        return f"{self.rate:,.0f} tokens a second were read up to layer {self.layer} here just now"

    def up_to(self, points: Sequence[HookPoint]) -> float:
        """Tokens a second up to other hook points, by the layers that run."""
        return self.rate * (self.layer + 1) / (1 + max(point.layer for point in points))


_TRIED: WeakKeyDictionary[LanguageModel, dict[tuple[int, int], Pace]] = WeakKeyDictionary()


def pace_of(config: CollectConfig, lm: LanguageModel, points: Sequence[HookPoint]) -> Pace:
    """How fast the model reads made-up tokens of the batch that is asked for; tried once, at a good depth.

    Args:
        points: What is read up to first, if that is beyond the middle.
    """
    tried, shape = _TRIED.setdefault(lm, {}), (config.model_batch_size, config.ctx_len)
    if shape not in tried:
        deepest = HookPoint(max(lm.n_layers // 2, *(point.layer for point in points)))
        ids = torch.randint(lm.rows, shape, generator=torch.Generator().manual_seed(config.seed))
        capture(lm, [deepest], ids, torch.ones(shape, dtype=torch.long))
        started, passes = time.monotonic(), 0
        while time.monotonic() - started < PROBE_SECONDS or not passes:
            capture(lm, [deepest], ids, torch.ones(shape, dtype=torch.long))
            passes += 1
        tried[shape] = Pace(passes * ids.numel() / (time.monotonic() - started), deepest.layer)
    return tried[shape]


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
