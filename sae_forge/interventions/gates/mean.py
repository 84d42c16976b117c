"""``mean``: open in texts that fire often, the guardrail of DSG (arXiv 2504.08192)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sae_forge.interventions.gates.any import ANY_FIRES, AnyFires
from sae_forge.interventions.gates.gate import GateKind
from sae_forge.interventions.gates.sequence import Policy, SequenceGate, counted

if TYPE_CHECKING:
    from torch import Tensor

    from sae_forge.interventions.protocol import Gate, State


@dataclass(frozen=True)
class Mean:
    """The share of real tokens on which the token gate is open."""

    def signal(self, acts: "Tensor", hits: "Tensor") -> "Tensor":
        del acts
        return hits

    def running(self, signal: "Tensor", real: "Tensor", state: "State | None") -> "tuple[Tensor, State]":
        hits, tokens = counted(signal, real, None if state is None else (state[0], state[1]))
        # before the first real token there are no hits either, so the rate there is 0
        return hits / tokens.clamp(min=1), (hits[:, -1], tokens[:, -1])

    def alone(self, signal: "Tensor") -> "Tensor":
        return signal

    def overall(self, running: "Tensor") -> "Tensor":
        return running[:, -1]


def MeanRate(tau: float, inside: "Gate" = ANY_FIRES, policy: Policy = "prompt") -> SequenceGate:
    """Open in texts of which a share above ``tau`` opens ``inside``; below 0 the statistic never shuts the gate."""
    return SequenceGate(Mean(), tau, inside, policy)


MEAN = GateKind(
    name="mean",
    words="in texts that fire often",
    parts=(SequenceGate, Mean),
    reads_retain=True,
    make=lambda config, calibrate: calibrate(MeanRate(0.0, AnyFires(config.theta), config.gate_policy)),
)
