"""``window``: open where firing is dense."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from sae_forge.config.fields import Setting
from sae_forge.config.model import ModelConfig
from sae_forge.errors import ConfigError
from sae_forge.interventions.gates.any import ANY_FIRES, AnyFires
from sae_forge.interventions.gates.gate import GateKind
from sae_forge.interventions.gates.sequence import Policy, SequenceGate

if TYPE_CHECKING:
    from torch import Tensor

    from sae_forge.interventions.protocol import Gate, State


@dataclass(frozen=True, kw_only=True)
class WindowSettings(ModelConfig):
    """How long the stretch is over which firing must be dense."""

    heading: ClassVar[str] = "Edits"

    gate_window: Annotated[
        int, "--gate window: tokens the rate is taken over.", Setting(at_least=1, wanted="give at least 1 token")
    ] = 32


@dataclass(frozen=True)
class Window:
    """The share of the last ``width`` real tokens on which the token gate is open; of a text the highest.

    It is of ``width`` from the first token on, so that one early hit is no rate of 1.
    """

    width: int
    """Real tokens; no more than the shortest text that should be able to open the gate."""

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ConfigError(f"width={self.width} holds no token; give 1 or more")

    def signal(self, acts: "Tensor", hits: "Tensor") -> "Tensor":
        del acts
        return hits

    def running(self, signal: "Tensor", real: "Tensor", state: "State | None") -> "tuple[Tensor, State]":
        import torch

        batch, seq = signal.shape
        recent = signal.new_zeros(batch, self.width) if state is None else state[0]
        seen = real.long().cumsum(dim=-1)
        line = torch.cat([recent, signal.new_zeros(batch, seq + 1)], dim=-1)  # real tokens in a row; last: the others
        line = line.scatter(1, torch.where(real, self.width - 1 + seen, self.width + seq), signal)
        sums = torch.nn.functional.pad(line.cumsum(dim=-1), (1, 0))
        # the window's hits are a difference of running sums; `seen` real tokens lie before its end
        hits = sums.gather(1, self.width + seen) - sums.gather(1, seen)
        latest = seen[:, -1:] + torch.arange(self.width, device=seen.device)
        return hits / self.width, (line.gather(1, latest),)

    def alone(self, signal: "Tensor") -> "Tensor":
        return signal

    def overall(self, running: "Tensor") -> "Tensor":
        return running.amax(dim=-1)


def WindowRate(tau: float, width: int, inside: "Gate" = ANY_FIRES, policy: Policy = "streaming") -> SequenceGate:
    """Open where of the last ``width`` real tokens a share above ``tau`` opens ``inside``."""
    return SequenceGate(Window(width), tau, inside, policy)


WINDOW = GateKind(
    name="window",
    words="where firing is dense",
    parts=(SequenceGate, Window),
    reads_retain=True,
    settings=WindowSettings,
    make=lambda config, calibrate: calibrate(
        WindowRate(0.0, config.gate_window, AnyFires(config.theta), config.gate_policy)
    ),
)
