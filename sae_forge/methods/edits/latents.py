"""What edits of an SAE's latents share: the latents by their number, values relative to the model's norms, the gate.

Values are relative so that one range of strengths serves models whose activations differ a hundredfold.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from sae_forge.config.fields import Setting
from sae_forge.config.model import ModelConfig
from sae_forge.errors import DataError, ForgeError
from sae_forge.interventions.gates.table import gate_named, gate_of, gates_of
from sae_forge.methods.method import RARER, Method, Settings, short, without_shards

if TYPE_CHECKING:
    from sae_forge.interventions.intervention import Intervention
    from sae_forge.methods.materials import Materials
    from sae_forge.methods.subjects import Edited


def relative_units(config: Any) -> bool:
    """Whether values are relative to the norm: then a sweep knows which are worth trying, and tries its own."""
    return config.value_units == "relative"


@dataclass(frozen=True, kw_only=True)
class ClampSettings(ModelConfig):
    """What is written by an edit that writes one value to all its latents."""

    heading: ClassVar[str] = "Edits"

    clamp_value: Annotated[
        tuple[float, ...],
        "Clamping: latents are set to minus this; several sweep.",
        Setting(
            at_least=0,
            finite=True,
            tuned=relative_units,
            wanted="give finite values of 0 or more; latents are set to minus them",
        ),
    ] = (1.0,)


def latents_of(settings: Settings, materials: "Materials") -> tuple[int, ...]:
    """The latents that settings name by their number, of those rarer on retain text than a threshold they may name.

    Raises:
        DataError: none of those selected is as rare.
    """
    chosen, limit = materials.selection.indices, settings.get(RARER)
    if limit is not None:
        chosen = tuple(one.index for one in materials.selection.latents if one.retain_frequency < limit)
    if not chosen:
        raise DataError(f"--sweep_thresholds {limit:g}: no selected latent is as rare on retain text; give larger ones")
    return chosen[: settings["num_features"]]


def parts(size: int, count: int) -> list[int]:
    """``size`` and its halves, largest first; fewer where it is too small to be halved."""
    return list(dict.fromkeys(max(1, size >> number) for number in range(count)))


def editing(make: "Callable[..., Intervention]", *arguments: str, writes: bool = False, **said: Any) -> Method:
    """A method that edits the selection's latents, called as the function that makes its intervention.

    Args:
        make: Takes the latents, then the settings of these names; the first of them says how rough it is.
        writes: It writes a value that may be relative to the norm.
        said: What else a :class:`Method` says of itself.
    """
    return Method(
        name=make.__name__,
        kind="hook",
        rough=arguments[:1],
        needs=needs(make.__name__, writes=writes),
        build=lambda settings, materials: gated(
            make(latents_of(settings, materials), *(settings[name] for name in arguments)), materials
        ),
        intervention=make,
        arguments=arguments,
        **said,
    )


def clamping(make: "Callable[..., Intervention]", *arguments: str, **said: Any) -> Method:
    """A method that writes ``--clamp_value`` to its latents, and in a sweep multiples of what the norm suggests."""
    usual = {"from_flags": from_clamp_value, "finished": from_times, "settings": ClampSettings}
    return editing(make, *arguments, writes=True, **usual | said)


# ---- values -------------------------------------------------------------------------------------


def from_clamp_value(size: int, materials: "Materials") -> list[Settings]:
    """Settings of an edit that writes one value: one for each ``--clamp_value``."""
    latents, common = materials.selection.indices[:size], {"num_features": size}
    return [common | written(value, latents, materials) for value in materials.setting(ClampSettings).clamp_value]


def from_times(point: Settings, materials: "Materials") -> Settings:
    """A sweep's point of an edit that writes one value: the act that is written instead of ``times``."""
    own = {name: value for name, value in point.items() if name != "times"}
    unit = 1.0 if relative_units(materials.config) else materials.setting(ClampSettings).clamp_value[0]
    return own | written(point["times"] * unit, latents_of(point, materials), materials)


def written(times: float, latents: tuple[int, ...], materials: "Materials") -> Settings:
    """The act that clamping writes, and what it is relative to the norm where that was asked for."""
    # minus: a clamp steers away from what the latents stand for
    return {"value": short(-materials.value(times, latents)), **relative(times, materials)}


def relative(times: float, materials: "Materials") -> Settings:
    """What a value is relative to the norm, where it is."""
    return {"relative": short(times)} if relative_units(materials.config) else {}


def peak(latents: tuple[int, ...], materials: "Materials") -> float:
    """Mean over the latents of the highest act each has on forget text."""
    peaks = [latent.forget.peak for latent in materials.selection.latents if latent.index in latents]
    return sum(peaks) / len(peaks)


# ---- what is read from shards -------------------------------------------------------------------


def needs(name: str, *, own_gate: bool = False, writes: bool = False) -> Callable[["Materials"], ForgeError | None]:
    """Why an edit cannot be measured here: a gate or a value is made from activations, and there are none.

    Args:
        own_gate: The method's own gate is calibrated.
        writes: It writes a value.
    """

    def error(materials: "Materials") -> ForgeError | None:
        config = materials.config
        if (own_gate and config.gate == "own") or gate_named(config.gate, gates_of(config)).reads_retain:
            return without_shards(name, "has a gate that is calibrated on retain text", materials)
        if writes and relative_units(config):
            why = "writes values relative to the residual norm (--value_units absolute does not)"
            return without_shards(name, why, materials)
        return None

    return error


def gated(chosen: "Intervention", materials: "Materials") -> "Edited":
    """The intervention behind the gate that the config asks for, on its tokens, with or without the SAE's error."""
    from sae_forge.interventions.edit import Edit
    from sae_forge.methods.subjects import Edited

    # a gate that the flags name takes the place of the method's own; `own` names none
    config = materials.config
    kept = replace(chosen, keep_error=config.keep_error, tokens=config.tokens, counted=config.gate_tokens)
    gate = gate_of(config, lambda: materials.traces(kept.targets))
    kept = kept if gate is None else replace(kept, gate=gate)
    return Edited((Edit(materials.point, materials.sae, kept, materials.sink_norm),))
