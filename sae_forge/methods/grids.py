"""The settings of each method: those that the flags name, and the grid that a sweep tries.

A grid has as many settings as the sweep allows each method, neither more nor fewer, so that no method wins by having
been tried harder. Strengths go from gentle to rough in equal ratios; values are relative to the model's own norms, so
one range serves models whose activations differ a hundredfold.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, assert_never

from sae_forge.config.evaluate import EvalMethod
from sae_forge.errors import ConfigError
from sae_forge.methods.building import UNTUNED, recipe_default
from sae_forge.methods.materials import Materials

OWN_GATE = (("dsg", "percentile"), ("refusal_clamp", "share"))
"""Axes that move a method's own gate."""
RMU_LEAST = 12
"""Settings that RMU needs at least: an under-tuned one makes every rival look good."""

Settings = dict[str, Any]


def from_flags(method: EvalMethod, size: int, materials: Materials) -> list[Settings]:
    """The settings that the flags name, for ``size`` latents."""
    config, latents = materials.config, materials.selection.indices[:size]
    common = {"num_features": size}
    match method:
        case "scale":
            return [common | {"scale": scale} for scale in config.ablation_scale]
        case "zero" | "mean_ablate":
            return [common]
        case "clamp" | "clamp_prime" | "steer":
            return [common | _written(value, latents, materials) for value in config.clamp_value]
        case "conditional_clamp":
            return [
                common | _written(value, latents, materials) | {"theta": config.theta} for value in config.clamp_value
            ]
        case "refusal_clamp":
            gate = {"theta": config.theta} if config.gate == "own" else {}
            return [common | _refused(config.refusal_value, materials) | gate]
        case "dsg":
            gate = {"percentile": config.gate_percentile} if config.gate == "own" else {}
            return [common | _written(value, latents, materials) | gate for value in config.clamp_value]
        case "project":
            return [common | {"strength": 1 - scale} for scale in config.ablation_scale]
        case "diff_means":
            return [{"budget": 1.0, "gated": gated} for gated in (False, True)]
        case "rmu":
            return [_rmu(2.0, recipe_default(method, "alpha"), 1.0, materials)]
        case "gradient_ascent" | "grad_diff" | "npo" | "simnpo":
            return [_trained(method, materials)]
        case "crisp":
            return [common | _trained(method, materials)]
        case "all" | "random":
            raise ConfigError(f"{method} has no settings of its own")
        case _:
            assert_never(method)


def grid(method: EvalMethod, materials: Materials) -> list[Settings]:
    """The settings that a sweep tries: ``config.configurations`` of them, or one where there is nothing to tune.

    Raises:
        ConfigError: the method cannot be given as many, or needs more.
    """
    size = min(max(materials.config.num_features), len(materials.selection.indices))
    if method in UNTUNED:
        return [{"num_features": size}]
    count = materials.config.configurations
    if method == "rmu" and count < RMU_LEAST:
        raise ConfigError(
            f"--configurations {count}: rmu needs at least {RMU_LEAST} to be a fair rival, and all methods get the "
            f"same; give {RMU_LEAST} or leave rmu out of --methods"
        )
    found = [_finished(method, point, materials) for point in _points(method, size, materials)]
    if (different := len({repr(one) for one in found})) != count:
        raise ConfigError(
            f"--configurations {count}: {method} has only {different} different settings with {size} latents, so the "
            "budget cannot be equal; lower it, select more latents or raise --baseline_steps"
        )
    return found


def ends(method: EvalMethod, materials: Materials) -> list[str | None]:
    """For each setting of :func:`grid` whether its strength is the ``gentlest`` or the ``roughest`` that is tried."""
    if method in UNTUNED:
        return [None]
    size = min(max(materials.config.num_features), len(materials.selection.indices))
    name = _axes(method, size)[1].name
    strengths = [point[name] for point in _points(method, size, materials)]
    named = {min(strengths): "gentlest", max(strengths): "roughest"}
    return [named.get(strength) for strength in strengths]


# ---- what is varied -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Strength:
    """The axis that takes as many values as the budget needs, in equal ratios."""

    name: str
    low: float
    high: float

    def values(self, count: int) -> list[float]:
        """Both ends and what lies between; of one value the middle."""
        steps = [number / (count - 1) for number in range(count)] if count > 1 else [0.5]
        return [_short(self.low * (self.high / self.low) ** step) for step in steps]


def _axes(method: EvalMethod, size: int) -> tuple[dict[str, list[Any]], Strength]:
    """The axes with given values, and the strength."""
    match method:
        case "scale":
            return {"num_features": _parts(size, 3)}, Strength("times", 1.0, 16.0)
        case "clamp":
            return {"num_features": _parts(size, 3)}, Strength("times", 0.5, 16.0)
        case "clamp_prime":
            return {"num_features": sorted({min(size, few) for few in (5, 10, 20)})}, Strength("times", 0.5, 16.0)
        case "conditional_clamp":
            return {"num_features": _parts(size, 2), "share": [0.1, 0.3]}, Strength("times", 1.0, 16.0)
        case "refusal_clamp":
            return {"num_features": [size], "share": [0.0, 0.2], "sign": [-1.0, 1.0]}, Strength("times", 0.25, 4.0)
        case "dsg":
            return {"num_features": _parts(size, 2), "percentile": [90.0, 95.0]}, Strength("times", 0.25, 4.0)
        case "steer":
            return {"num_features": _parts(size, 3)}, Strength("times", 0.05, 2.0)
        case "project":
            return {"num_features": _parts(size, 3)}, Strength("strength", 0.25, 4.0)
        case "diff_means":
            return {"gated": [False, True]}, Strength("budget", 0.25, 4.0)
        case "rmu":
            return {"alpha": [10.0, 100.0], "rate": [1.0, 3.0]}, Strength("times", 2.0, 16.0)
        case "gradient_ascent":
            return {"passes": [0.5, 1.0]}, Strength("rate", 0.05, 1.0)
        case "grad_diff":
            return {"alpha": [0.1, 1.0, 3.0, 10.0]}, Strength("rate", 0.1, 1.0)
        case "npo":
            return {"beta": [0.02, 0.1, 1.0], "alpha": [1.0, 5.0]}, Strength("rate", 0.5, 2.0)
        case "simnpo":
            return {"beta": [1.0, 4.5], "alpha": [1.0, 3.0], "gamma": [1.0]}, Strength("rate", 0.3, 1.0)
        case "crisp":
            return {"num_features": _parts(size, 2), "beta": [0.99, 10.0]}, Strength("rate", 1.0, 10.0)
        case "zero" | "mean_ablate" | "all" | "random":
            raise ConfigError(f"{method} has nothing to tune")
        case _:
            assert_never(method)


def _points(method: EvalMethod, size: int, materials: Materials) -> list[Settings]:
    """The points of a method's grid; an axis of a gate that another one replaces is none."""
    axes, strength = _axes(method, size)
    if materials.config.gate != "own":
        axes = {name: values for name, values in axes.items() if (method, name) not in OWN_GATE}
    return _spread(materials.config.configurations, axes, strength)


def _spread(count: int, axes: Mapping[str, Sequence[Any]], strength: Strength) -> list[Settings]:
    """``count`` points: every combination of ``axes`` with as many strengths as that needs, evenly thinned."""
    combinations = [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]
    strengths = strength.values(math.ceil(count / len(combinations)))
    points = [one | {strength.name: value} for value in strengths for one in combinations]
    return [points[number * len(points) // count] for number in range(count)]


def _parts(size: int, count: int) -> list[int]:
    """``size`` and its halves, largest first; fewer where it is too small to be halved."""
    return list(dict.fromkeys(max(1, size >> number) for number in range(count)))


# ---- from a point to settings -------------------------------------------------------------------


def _finished(method: EvalMethod, point: Settings, materials: Materials) -> Settings:
    """The settings as a method takes them: acts for ``times``, thresholds for ``share``, rates for ``rate``."""
    own = {name: value for name, value in point.items() if name not in ("times", "share", "sign", "rate", "passes")}
    training = {name: point[name] for name in ("rate", "passes") if name in point}
    latents = materials.selection.indices[: point.get("num_features", 0)]
    match method:
        case "scale":
            return own | {"scale": -point["times"]}
        case "clamp" | "clamp_prime" | "dsg" | "steer":
            return own | _written(point["times"] * _unit(materials), latents, materials)
        case "conditional_clamp":
            written = _written(point["times"] * _unit(materials), latents, materials)
            return own | written | {"theta": _short(point["share"] * materials.peak(latents))}
        case "refusal_clamp":
            times = point["sign"] * point["times"] * _refusal_unit(materials)
            gate = {"theta": _short(point["share"] * materials.peak(latents))} if "share" in point else {}
            return own | _refused(times, materials) | gate
        case "rmu":
            return _rmu(point["times"], point["alpha"], point["rate"], materials)
        case "gradient_ascent" | "grad_diff" | "npo" | "simnpo" | "crisp":
            return own | _trained(method, materials, **training)
        case _:
            return own


def _unit(materials: Materials) -> float:
    """What a grid's 1 is in the units of the flags: where values are absolute, the first that was given."""
    return 1.0 if materials.config.value_units == "relative" else materials.config.clamp_value[0]


def _refusal_unit(materials: Materials) -> float:
    return 1.0 if materials.config.value_units == "relative" else abs(materials.config.refusal_value)


def _written(times: float, latents: tuple[int, ...], materials: Materials) -> Settings:
    """The act that clamping writes, and what it is relative to the norm where that was asked for."""
    return {"value": _short(-materials.value(times, latents)), **_relative(times, materials)}


def _refused(times: float, materials: Materials) -> Settings:
    latent = materials.selection.refusal_latent
    assert latent is not None  # `methods.impossible` was asked before
    value = _short(materials.value(times, (latent,)))
    return {"refusal_latent": latent, "value": value, **_relative(times, materials)}


def _relative(times: float, materials: Materials) -> Settings:
    return {"relative": _short(times)} if materials.config.value_units == "relative" else {}


def _rmu(times: float, alpha: float, rate: float, materials: Materials) -> Settings:
    """RMU's target is as long as ``times`` the activation of a retain token."""
    coefficient = {"coefficient": _short(times * materials.retain_norm), "relative": times, "alpha": alpha}
    return coefficient | _trained("rmu", materials, rate=rate)


def _trained(method: EvalMethod, materials: Materials, *, rate: float = 1.0, passes: float = 1.0) -> Settings:
    """How long and how fast a recipe trains: ``rate`` and ``passes`` times what was asked for, or its own defaults."""
    config = materials.config
    steps = config.baseline_steps or recipe_default(method, "steps")
    return {
        "lr": _short(rate * (config.baseline_lr or recipe_default(method, "lr"))),
        "steps": max(1, round(passes * steps)),
        "batch_size": config.baseline_batch or recipe_default(method, "batch_size"),
    }


def _short(value: float) -> float:
    return float(f"{value:.3g}") + 0.0  # no -0
