"""``max``: open once the topic was unmistakable."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sae_forge.interventions.gates.any import ANY_FIRES, AnyFires
from sae_forge.interventions.gates.gate import GateKind
from sae_forge.interventions.gates.sequence import Policy, SequenceGate

if TYPE_CHECKING:
    from torch import Tensor

    from sae_forge.interventions.protocol import Gate, State


@dataclass(frozen=True)
class Strongest:
    """The strongest targeted act on a real token so far, in the SAE's units.

    It latches: what was open for one token is open, as far as this goes, for all that follow.
    """

    def signal(self, acts: "Tensor", hits: "Tensor") -> "Tensor":
        del hits
        return acts.detach().double().amax(dim=-1)

    def running(self, signal: "Tensor", real: "Tensor", state: "State | None") -> "tuple[Tensor, State]":
        # a token that does not count raises no maximum above 0
        strongest = signal.masked_fill(~real, 0.0).cummax(dim=-1).values
        if state is not None:
            strongest = strongest.maximum(state[0][:, None])
        return strongest, (strongest[:, -1],)

    def alone(self, signal: "Tensor") -> "Tensor":
        return signal

    def overall(self, running: "Tensor") -> "Tensor":
        return running[:, -1]


def Peak(tau: float, inside: "Gate" = ANY_FIRES, policy: Policy = "streaming") -> SequenceGate:
    """Open once the strongest targeted act of the text so far exceeds ``tau``."""
    return SequenceGate(Strongest(), tau, inside, policy)


MAX = GateKind(
    name="max",
    words="once a latent fired strongly",
    parts=(SequenceGate, Strongest),
    reads_retain=True,
    make=lambda config, calibrate: calibrate(Peak(0.0, AnyFires(config.theta), config.gate_policy)),
)
