"""``cusum``: open while evidence is high, which hits raise and harmless text lets fade."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sae_forge.errors import ConfigError
from sae_forge.interventions.gates.any import ANY_FIRES, AnyFires
from sae_forge.interventions.gates.gate import Calibrate, GateKind
from sae_forge.interventions.gates.mean import MeanRate
from sae_forge.interventions.gates.sequence import Policy, SequenceGate, counted

if TYPE_CHECKING:
    from torch import Tensor

    from sae_forge.interventions.protocol import Gate, State

MOST_DRIFT = 0.99
"""A gate whose drift were 1 would never gather evidence."""


@dataclass(frozen=True)
class Excess:
    """``S = max(0, S + hit - drift)`` over real tokens, in tokens; of a text the highest it reached."""

    drift: float
    """Share of tokens that fire in harmless text; what lies above it is evidence."""

    def __post_init__(self) -> None:
        if not 0 <= self.drift < 1:
            raise ConfigError(f"drift={self.drift} is not in [0, 1); take a rate of harmless text, 0.1 for example")

    def signal(self, acts: "Tensor", hits: "Tensor") -> "Tensor":
        del acts
        return hits

    def running(self, signal: "Tensor", real: "Tensor", state: "State | None") -> "tuple[Tensor, State]":
        hits, tokens = counted(signal, real, None if state is None else (state[0], state[1]))
        # S_t = walk_t - min(0, min over s <= t of walk_s): the recursion max(0, S + hit - drift), unrolled
        walk = hits - self.drift * tokens
        lowest = walk.cummin(dim=-1).values.clamp(max=0.0)
        if state is not None:
            lowest = lowest.minimum(state[2][:, None])
        return walk - lowest, (hits[:, -1], tokens[:, -1], lowest[:, -1])

    def alone(self, signal: "Tensor") -> "Tensor":
        return (signal - self.drift).clamp(min=0.0)

    def overall(self, running: "Tensor") -> "Tensor":
        return running.amax(dim=-1)


def Cusum(threshold: float, drift: float, inside: "Gate" = ANY_FIRES, policy: Policy = "streaming") -> SequenceGate:
    """Open while hits in excess of the drift, never below 0, sum to more than ``threshold`` tokens."""
    return SequenceGate(Excess(drift), threshold, inside, policy)


def _make(config: Any, calibrate: Calibrate) -> SequenceGate:
    """The drift is the rate that the asked share of retain sequences stays below, as of ``mean``."""
    inside, policy = AnyFires(config.theta), config.gate_policy
    drift = calibrate(MeanRate(0.0, inside, policy)).limit
    return calibrate(Cusum(0.0, min(drift, MOST_DRIFT), inside, policy))


def _refused(config: Any) -> ConfigError | None:
    if config.gate_policy != "per_token":
        return None
    return ConfigError("--gate cusum sums over a text, so --gate_policy per_token would never open it; use streaming")


CUSUM = GateKind(
    name="cusum",
    words="while evidence is high",
    parts=(SequenceGate, Excess),
    reads_retain=True,
    make=_make,
    refused=_refused,
)
