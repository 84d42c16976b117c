"""DSG (arXiv 2504.08192): in texts that fire often, every latent takes a large negative act where any fires."""

from dataclasses import replace
from typing import TYPE_CHECKING

from sae_forge.methods.edits.latents import ClampSettings, from_clamp_value, from_times, gated, latents_of, needs, parts
from sae_forge.methods.method import Axes, Method, Settings, Strength

if TYPE_CHECKING:
    from sae_forge.interventions.gates.sequence import Policy
    from sae_forge.interventions.intervention import Intervention
    from sae_forge.interventions.values import Value
    from sae_forge.methods.materials import Materials
    from sae_forge.methods.subjects import Subject


def dsg(
    latents: tuple[int, ...], value: "Value" = -500.0, tau: float = 0.0, policy: "Policy" = "prompt"
) -> "Intervention":
    """Every latent takes ``value`` on each token where any fires, in texts that fire often.

    Args:
        tau: Share of a text's tokens that must be exceeded; the paper's is the 95th percentile on retain text, which
            ``calibration.rate_percentile`` takes from a selection.
    """
    from sae_forge.interventions.clamping import SetTo
    from sae_forge.interventions.gates.mean import MeanRate
    from sae_forge.interventions.intervention import Intervention

    return Intervention("dsg", latents, SetTo(value), gate=MeanRate(tau, policy=policy))


def _from_flags(size: int, materials: "Materials") -> list[Settings]:
    config = materials.config
    gate = {"percentile": config.gate_percentile} if config.gate == "own" else {}
    return [settings | gate for settings in from_clamp_value(size, materials)]


def _axes(size: int, materials: "Materials") -> Axes:
    gate = {"percentile": [90.0, 95.0]} if materials.config.gate == "own" else {}
    return {"num_features": parts(size, 2), **gate}, Strength("times", 0.25, 4.0)


def _build(settings: Settings, materials: "Materials") -> "Subject":
    from sae_forge.interventions.calibration import strictest
    from sae_forge.interventions.gates.mean import MeanRate

    latents, policy = latents_of(settings, materials), materials.config.gate_policy
    plain = dsg(latents, settings["value"], policy=policy)
    if "percentile" in settings:
        corpora = materials.traces(latents).values()
        # calibrated on each retain corpus by itself: the strictest is shut on that share of every one of them
        gate = strictest(MeanRate(0.0, policy=policy), corpora, settings["percentile"])
        plain = replace(plain, gate=gate)
    return gated(plain, materials)


METHOD = Method(
    name="dsg",
    kind="hook",
    rough=("value",),
    from_flags=_from_flags,
    axes=_axes,
    finished=from_times,
    needs=needs("dsg", own_gate=True, writes=True),
    build=_build,
    settings=ClampSettings,
)
