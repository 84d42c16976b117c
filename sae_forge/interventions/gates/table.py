"""Every gate that ``--gate`` names; one's own stands in the ``GATES`` of a plug-in."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sae_forge.errors import ConfigError
from sae_forge.interventions.gates.all import ALL
from sae_forge.interventions.gates.any import ANY
from sae_forge.interventions.gates.cusum import CUSUM
from sae_forge.interventions.gates.gate import GateKind
from sae_forge.interventions.gates.max import MAX
from sae_forge.interventions.gates.mean import MEAN
from sae_forge.interventions.gates.none import NONE
from sae_forge.interventions.gates.own import OWN
from sae_forge.interventions.gates.sequence import SequenceGate
from sae_forge.interventions.gates.window import WINDOW

if TYPE_CHECKING:
    from torch import Tensor

    from sae_forge.interventions.protocol import Gate

GATES: tuple[GateKind, ...] = (OWN, NONE, ANY, ALL, MEAN, WINDOW, CUSUM, MAX)


def gates_of(config: Any) -> Sequence[GateKind]:
    """The gates that a config was composed with; of one that was not composed, those that ship."""
    known = getattr(type(config), "catalogue", None)
    return known.gates if known else GATES


def gate_named(name: str, gates: Sequence[GateKind] = GATES) -> GateKind:
    """The kind of gate of that name.

    Raises:
        ConfigError: there is none.
    """
    for kind in gates:
        if kind.name == name:
            return kind
    raise ConfigError(f"--gate {name}: choose one of {', '.join(kind.name for kind in gates)}")


def gate_of(
    config: Any, traces: Callable[[], Mapping[str, Sequence["Tensor"]]], gates: Sequence[GateKind] | None = None
) -> "Gate | None":
    """The gate that ``config.gate`` names, calibrated where its kind is; None leaves an edit the gate of its paper.

    Args:
        config: With ``theta``, ``gate_policy``, ``gate_percentile`` and the flags of the gate's own.
        gates: Unset: those that the config was composed with.
        traces: For each retain corpus the acts of the watched latents on its sequences; asked only by what calibrates.

    Raises:
        ConfigError: there is no such gate, or no retain sequence to calibrate it on.
    """

    def calibrate(gate: SequenceGate) -> SequenceGate:
        from sae_forge.interventions.calibration import strictest

        return strictest(gate, traces().values(), config.gate_percentile)

    return gate_named(config.gate, gates or gates_of(config)).make(config, calibrate)
