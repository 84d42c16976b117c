"""What a gate says of itself. The command line lists the gates, so none of their files loads torch at its top."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sae_forge.config.model import ModelConfig
from sae_forge.errors import ConfigError

if TYPE_CHECKING:
    from sae_forge.interventions.gates.sequence import SequenceGate
    from sae_forge.interventions.protocol import Gate

Calibrate = Callable[["SequenceGate"], "SequenceGate"]
"""The same gate with its threshold where the asked share of retain sequences stays below it."""


@dataclass(frozen=True, kw_only=True)
class GateKind:
    """A kind of gate, from the flags to the gate."""

    name: str
    """What ``--gate`` calls it."""
    words: str
    """When it is open."""
    make: Callable[[Any, Calibrate], "Gate | None"]
    """From the config and what calibrates; None leaves an edit the gate of its paper."""
    parts: tuple[type, ...] = ()
    """The frozen dataclasses of plain values that such a gate is made of, by which one is saved and read back."""
    reads_retain: bool = False
    """Whether its threshold is set on the acts of retain text."""
    settings: type[ModelConfig] | None = None
    """The config class of its own flags."""
    refused: Callable[[Any], ConfigError | None] = lambda config: None  # noqa: ARG005
    """The error to raise where flags would leave it shut or open for good."""


def require_finite(name: str, value: float) -> None:
    """Raise ConfigError for a threshold that nothing can be compared with."""
    if not math.isfinite(value):
        raise ConfigError(f"{name}={value} must be one finite number")
