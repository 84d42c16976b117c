"""The published edits, one constructor each: the choices that make a method what it is, with its paper's defaults.

Values are written as they are given, so one that steers away is negative. All keep the SAE's error and leave special
tokens alone; ``dataclasses.replace`` changes either, or the gate.
"""

from collections.abc import Sequence

from sae_forge.errors import ConfigError
from sae_forge.interventions.ablation import NegativeScaling, ZeroAblation
from sae_forge.interventions.clamping import ClampFiring, MeanAblation, SetTo, Split
from sae_forge.interventions.gates.any import AnyFires
from sae_forge.interventions.gates.mean import MeanRate
from sae_forge.interventions.gates.sequence import Policy
from sae_forge.interventions.intervention import Intervention
from sae_forge.interventions.steering import AddConstant, RemoveProjection
from sae_forge.interventions.values import Value, relative_to_peaks

Latents = tuple[int, ...]


def scale(latents: Latents, factor: float = -3.0) -> Intervention:
    """Acts times ``factor`` where a latent fires (INLP)."""
    return Intervention("scale", latents, NegativeScaling(factor))


def scale_anthropic(latents: Latents, multiple: float) -> Intervention:
    """``multiple`` times what a latent wrote is taken away (an alternative in arXiv 2410.19278)."""
    return Intervention("scale_anthropic", latents, NegativeScaling(1.0 - multiple))


def zero(latents: Latents) -> Intervention:
    """Nothing of what the latents wrote is left."""
    return Intervention("zero", latents, ZeroAblation())


def clamp(latents: Latents, value: Value = -20.0) -> Intervention:
    """``value`` where a latent fires, each latent for itself (arXiv 2410.19278)."""
    return Intervention("clamp", latents, ClampFiring(value))


def clamp_max(latents: Latents, multiple: float, peaks: Sequence[float]) -> Intervention:
    """Where a latent fires, minus ``multiple`` times the largest act it was seen to have (arXiv 2410.19278)."""
    return Intervention("clamp_max", latents, ClampFiring(relative_to_peaks(-multiple, peaks)))


def clamp_prime(latents: Latents, value: Value = -300.0, theta: float = 0.0) -> Intervention:
    """Clamp Prime (arXiv 2503.11127): a strong clamp of few latents."""
    return Intervention("clamp_prime", latents, ClampFiring(value, theta))


def conditional_clamp(latents: Latents, value: Value, theta: float) -> Intervention:
    """``value`` where a latent's act exceeds ``theta`` (arXiv 2503.11127)."""
    return Intervention("conditional_clamp", latents, ClampFiring(value, theta))


def refusal_clamp(latents: Latents, refusal: int, value: float = -500.0, theta: float = 0.05) -> Intervention:
    """Where any latent's act exceeds ``theta``, the refusal latent takes ``value``, once (arXiv 2503.11127).

    The latents themselves stay as they are.
    """
    return Intervention("refusal_clamp", latents, SetTo(value), writes=(refusal,), gate=AnyFires(theta))


def clamp_and_refusal(
    latents: Latents, refusal: int, value: Value, refusal_value: float, theta: float = 0.05
) -> Intervention:
    """``conditional_clamp`` and ``refusal_clamp`` in one.

    Raises:
        ConfigError: the refusal latent is among those that are clamped.
    """
    if refusal in latents:
        raise ConfigError(f"latent {refusal} cannot be clamped and be the refusal latent as well; leave it out of one")
    edit = Split(len(latents), ClampFiring(value, theta), SetTo(refusal_value))
    return Intervention("clamp_and_refusal", latents, edit, writes=(*latents, refusal), gate=AnyFires(theta))


def dsg(latents: Latents, value: Value = -500.0, tau: float = 0.0, policy: Policy = "prompt") -> Intervention:
    """Every latent takes ``value`` on each token where any fires, in texts that fire often (arXiv 2504.08192).

    Args:
        tau: Share of a text's tokens that must be exceeded; the paper's is the 95th percentile on retain text, which
            ``calibration.rate_percentile`` takes from a selection.
    """
    return Intervention("dsg", latents, SetTo(value), gate=MeanRate(tau, policy=policy))


def mean_ablate(latents: Latents, means: Sequence[float]) -> Intervention:
    """Every latent takes its mean over retain text, on every token."""
    return Intervention("mean_ablate", latents, MeanAblation(tuple(means)))


def steer(latents: Latents, alpha: Value) -> Intervention:
    """``alpha`` times each latent's direction is added to every token."""
    return Intervention("steer", latents, AddConstant(alpha))


def project(latents: Latents, strength: float = 1.0) -> Intervention:
    """What lies along the latents' directions is taken out of every token (arXiv 2410.19278)."""
    return Intervention("project", latents, RemoveProjection(strength))
