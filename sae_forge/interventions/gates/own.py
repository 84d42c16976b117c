"""``own``: an edit keeps the gate that its method's paper gives it."""

from sae_forge.interventions.gates.gate import GateKind

OWN = GateKind(name="own", words="as the method's paper has it", make=lambda config, calibrate: None)  # noqa: ARG005
