"""Refusal clamping (arXiv 2503.11127): where a latent of the topic fires, the latent of refusals is written."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from sae_forge.config.fields import Setting
from sae_forge.config.model import ModelConfig
from sae_forge.errors import ConfigError, DataError, ForgeError
from sae_forge.methods.edits.latents import gated, latents_of, needs, peak, relative, relative_units
from sae_forge.methods.method import Axes, Method, Settings, Strength, short

if TYPE_CHECKING:
    from sae_forge.interventions.intervention import Intervention
    from sae_forge.interventions.values import Value
    from sae_forge.methods.materials import Materials


@dataclass(frozen=True, kw_only=True)
class RefusalSettings(ModelConfig):
    """What is written to the latent of refusals."""

    heading: ClassVar[str] = "Edits"

    refusal_value: Annotated[
        float,
        "refusal_clamp: value the refusal latent is set to (in value_units).",
        Setting(finite=True, tuned=relative_units, wanted="give a finite value"),
    ] = -1.0


def refusal_clamp(latents: tuple[int, ...], refusal: int, value: float = -500.0, theta: float = 0.05) -> "Intervention":
    """Where any latent's act exceeds ``theta``, the refusal latent takes ``value``, once.

    The latents themselves stay as they are.
    """
    from sae_forge.interventions.clamping import SetTo
    from sae_forge.interventions.gates.any import AnyFires
    from sae_forge.interventions.intervention import Intervention

    return Intervention("refusal_clamp", latents, SetTo(value), writes=(refusal,), gate=AnyFires(theta))


def clamp_and_refusal(
    latents: tuple[int, ...], refusal: int, value: "Value", refusal_value: float, theta: float = 0.05
) -> "Intervention":
    """Conditional and refusal clamping in one.

    Raises:
        ConfigError: the refusal latent is among those that are clamped.
    """
    from sae_forge.interventions.clamping import ClampFiring, SetTo, Split
    from sae_forge.interventions.gates.any import AnyFires
    from sae_forge.interventions.intervention import Intervention

    if refusal in latents:
        raise ConfigError(f"latent {refusal} cannot be clamped and be the refusal latent as well; leave it out of one")
    edit = Split(len(latents), ClampFiring(value, theta), SetTo(refusal_value))
    return Intervention("clamp_and_refusal", latents, edit, writes=(*latents, refusal), gate=AnyFires(theta))


def _from_flags(size: int, materials: "Materials") -> list[Settings]:
    config, value = materials.config, materials.setting(RefusalSettings).refusal_value
    gate = {"theta": config.theta} if config.gate == "own" else {}
    return [{"num_features": size} | _written(value, materials) | gate]


def _axes(size: int, materials: "Materials") -> Axes:
    gate = {"share": [0.0, 0.2]} if materials.config.gate == "own" else {}
    return {"num_features": [size], **gate, "sign": [-1.0, 1.0]}, Strength("times", 0.25, 4.0)


def _finished(point: Settings, materials: "Materials") -> Settings:
    # either sign is tried: which way a refusal latent must go to refuse is not known beforehand
    unit = 1.0 if relative_units(materials.config) else abs(materials.setting(RefusalSettings).refusal_value)
    settings = {"num_features": point["num_features"]} | _written(point["sign"] * point["times"] * unit, materials)
    if "share" not in point:  # another gate takes the place of its own
        return settings
    return settings | {"theta": short(point["share"] * peak(latents_of(point, materials), materials))}


def _written(times: float, materials: "Materials") -> Settings:
    latent = materials.selection.refusal_latent
    assert latent is not None  # `_needs` was asked before
    return {
        "refusal_latent": latent, "value": short(materials.value(times, (latent,))), **relative(times, materials)
    }  # fmt: skip


def _needs(materials: "Materials") -> ForgeError | None:
    if materials.selection.refusal_latent is None:
        return DataError(
            "refusal_clamp writes a refusal latent, and the selection has none; make one: features --refusal TEXT"
        )
    return needs("refusal_clamp", writes=True)(materials)


METHOD = Method(
    name="refusal_clamp",
    kind="hook",
    rough=("value",),
    unsaid=("refusal_latent",),
    from_flags=_from_flags,
    axes=_axes,
    finished=_finished,
    needs=_needs,
    settings=RefusalSettings,
    build=lambda settings, materials: gated(
        refusal_clamp(
            latents_of(settings, materials),
            settings["refusal_latent"],
            settings["value"],
            settings.get("theta", 0.0),
        ),
        materials,
    ),
)
