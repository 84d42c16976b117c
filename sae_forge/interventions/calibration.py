"""Thresholds of gates, set so that a given share of harmless texts stays below them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_forge.errors import ConfigError
from sae_forge.interventions.gates.sequence import SequenceGate

NOTHING_TO_CALIBRATE_ON = (
    "no retain sequence was given to set the gate's threshold by; collect retain text, or name a threshold"
)

Trace = Float[Tensor, "_ n"] | Bool[Tensor, "_ n"]
"""The acts of the targeted latents on a sequence's real tokens, or where they fire."""


def calibrated(gate: SequenceGate, traces: Sequence[Trace], percentile: float) -> SequenceGate:
    """The same gate with its threshold at ``percentile`` of its own statistic over retain sequences.

    The statistic of a sequence is the one it has at the end, or the highest it reaches, as the gate's kind says, under
    every policy; so at 95 about one harmless text in twenty opens the gate.

    Args:
        percentile: In [0, 100], interpolated linearly.

    Raises:
        ConfigError: no trace, or a percentile out of range.
    """
    return replace(gate, limit=_percentile([text_statistic(gate, trace) for trace in traces], percentile))


def strictest(gate: SequenceGate, corpora: Iterable[Sequence[Trace]], percentile: float) -> SequenceGate:
    """The gate as :func:`calibrated` on the retain corpus that asks for the highest threshold.

    Raises:
        ConfigError: a corpus has no trace, or a percentile out of range.
    """
    return max((calibrated(gate, traces, percentile) for traces in corpora), key=lambda one: one.limit)


def text_statistic(gate: SequenceGate, trace: Trace) -> float:
    """What the gate compares with its threshold, for a whole text of real tokens; 0 for an empty one."""
    if not len(trace):
        return 0.0
    acts = trace[None].to(torch.promote_types(trace.dtype, torch.float32))
    real = torch.ones(acts.shape[:2], dtype=torch.bool, device=acts.device)
    hits = gate.inside.decide(acts, real, None)[0].double()
    running, _ = gate.statistic.running(gate.statistic.signal(acts, hits), real, None)
    return float(gate.statistic.overall(running)[0])


def rate_percentile(retain_rates: Mapping[str, Sequence[float]], percentile: float) -> float:
    """The threshold of ``MeanRate`` from a selection's ``retain_rates``: the highest percentile of any retain corpus.

    Raises:
        ConfigError: no corpus has a rate, or a percentile out of range.
    """
    known = [rates for rates in retain_rates.values() if rates]
    return max(_percentile(rates, percentile) for rates in known or [()])


def _percentile(statistics: Sequence[float], percentile: float) -> float:
    if not 0 <= percentile <= 100:
        raise ConfigError(f"percentile={percentile} is not in [0, 100]; DSG takes 95")
    if not statistics:
        raise ConfigError(NOTHING_TO_CALIBRATE_ON)
    return float(np.percentile(np.asarray(statistics, dtype=np.float64), percentile))
