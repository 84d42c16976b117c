"""How a statistic runs along a text, said once for every gate that has one.

Such a gate is open where a token gate is open *and* a statistic of the text exceeds a threshold. The statistic counts
real tokens only, so neither padding nor batching moves it, and what it needs to remember fits in its state, so neither
does cached generation.

Three policies say what the statistic of a token is:

- ``prompt``: that of all tokens of the text's first call, decided there and held for every later cached call. It is the
  published form, and like it not causal within the prompt. Without a cache every call is a text of its own.
- ``streaming``: the running statistic of the tokens up to this one, those of earlier calls among them. A mean over a
  text's first few tokens is coarse; a window or a sum is not.
- ``per_token``: that of the token alone. A guardrail that divides by the length of each call does this by accident
  once a cache is in use.

A share of a window or a sum that rises and falls survives what a mean over the whole text does not: harmless text put
in front of a forbidden question.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, get_args, runtime_checkable

from sae_forge.errors import ConfigError
from sae_forge.interventions.gates.any import ANY_FIRES
from sae_forge.interventions.gates.gate import require_finite

if TYPE_CHECKING:
    from torch import Tensor

    from sae_forge.interventions.protocol import Gate, State

Policy = Literal["prompt", "streaming", "per_token"]


@runtime_checkable
class Statistic(Protocol):
    """One number of the text up to each of its tokens. Tensors are ``[batch, seq]`` and float64 but for the masks."""

    def signal(self, acts: "Tensor", hits: "Tensor") -> "Tensor":
        """What it is made of, token by token: the acts ``[batch, seq, n]``, or where the token gate is open."""
        ...

    def running(self, signal: "Tensor", real: "Tensor", state: "State | None") -> "tuple[Tensor, State]":
        """Its value up to each token; a token that is not real leaves it as it was."""
        ...

    def alone(self, signal: "Tensor") -> "Tensor":
        """Its value for each token alone."""
        ...

    def overall(self, running: "Tensor") -> "Tensor":
        """Its value for a text ``[batch]``, from the running one."""
        ...


@dataclass(frozen=True)
class SequenceGate:
    """Open where a token gate is open and a statistic of the text exceeds a limit."""

    statistic: Statistic
    limit: float
    """The gate is shut at exactly this value."""
    inside: "Gate" = ANY_FIRES
    """The token gate that is counted, and that must be open as well."""
    policy: Policy = "streaming"

    def __post_init__(self) -> None:
        require_finite(f"{type(self.statistic).__name__} limit", self.limit)
        if self.policy not in get_args(Policy):
            raise ConfigError(f"policy={self.policy!r} is unknown; choose one of {', '.join(get_args(Policy))}")

    @property
    def whole(self) -> bool:
        """Only what is decided on the whole prompt must be shown it in one call."""
        return self.policy == "prompt"

    def decide(self, acts: "Tensor", real: "Tensor", state: "State | None") -> "tuple[Tensor, State]":
        """Where the gate is open, and what the policy needs to remember."""
        inside = self.inside.decide(acts, real, None)[0]
        signal = self.statistic.signal(acts, inside.double())
        match self.policy:
            case "per_token":
                return inside & (self.statistic.alone(signal) > self.limit), ()
            case "streaming":
                value, state = self.statistic.running(signal, real, state)
                return inside & (value > self.limit), state
            case "prompt":
                if state is None:
                    running, _ = self.statistic.running(signal, real, None)
                    state = (self.statistic.overall(running) > self.limit,)
                return inside & state[0][:, None], state


def counted(signal: "Tensor", real: "Tensor", before: "tuple[Tensor, Tensor] | None") -> "tuple[Tensor, Tensor]":
    """Hits and real tokens up to each token, as whole numbers in float64: sums are the same however a text is cut."""
    hits, tokens = signal.masked_fill(~real, 0.0).cumsum(dim=-1), real.double().cumsum(dim=-1)
    if before is not None:
        hits, tokens = hits + before[0][:, None], tokens + before[1][:, None]
    return hits, tokens
