"""Thresholds of gates, set so that a given share of harmless texts stays below them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_forge.errors import ConfigError
from sae_forge.interventions.gates import Cusum, MeanRate, Peak, SequenceGate, WindowRate

Calibrated = TypeVar("Calibrated", MeanRate, WindowRate, Cusum, Peak)

NOTHING_TO_CALIBRATE_ON = (
    "no retain sequence was given to set the gate's threshold by; collect retain text, or name a threshold"
)


def calibrated(
    gate: Calibrated,
    traces: Sequence[Float[Tensor, "_ n"] | Bool[Tensor, "_ n"]],
    percentile: float,
) -> Calibrated:
    """The same gate with its threshold at ``percentile`` of its own statistic over retain sequences.

    The statistic of a sequence is the mean over it for ``MeanRate`` and the highest it reaches for the others, under
    every policy; so at 95 about one harmless text in twenty opens the gate.

    Args:
        traces: For each retain sequence the acts of the targeted latents on its real tokens, or where they fire.
        percentile: In [0, 100], interpolated linearly.

    Raises:
        ConfigError: no trace, or a percentile out of range.
    """
    limit = _percentile([text_statistic(gate, trace) for trace in traces], percentile)
    return replace(gate, threshold=limit) if isinstance(gate, Cusum) else replace(gate, tau=limit)


def text_statistic(gate: SequenceGate, trace: Float[Tensor, "tokens n"] | Bool[Tensor, "tokens n"]) -> float:
    """What the gate compares with its threshold, for a whole text of real tokens; 0 for an empty one."""
    if not len(trace):
        return 0.0
    acts = trace[None].to(torch.promote_types(trace.dtype, torch.float32))
    real = torch.ones(acts.shape[:2], dtype=torch.bool, device=acts.device)
    running, _ = gate.running(gate.signal(acts), real, None)
    return float(gate.overall(running)[0])


def rate_percentile(retain_rates: Mapping[str, Sequence[float]], percentile: float) -> float:
    """The threshold of ``MeanRate`` from a selection's ``retain_rates``: the highest percentile of any retain corpus.

    Raises:
        ConfigError: no corpus has a rate, or a percentile out of range.
    """
    found = [rates for rates in retain_rates.values() if rates]
    return max(_percentile(rates, percentile) for rates in found or [()])


def _percentile(statistics: Sequence[float], percentile: float) -> float:
    if not 0 <= percentile <= 100:
        raise ConfigError(f"percentile={percentile} is not in [0, 100]; DSG takes 95")
    if not statistics:
        raise ConfigError(NOTHING_TO_CALIBRATE_ON)
    return float(np.percentile(np.asarray(statistics, dtype=np.float64), percentile))
