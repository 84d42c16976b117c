"""Every method by its name: from settings, as a report shows them, to what is measured.

``grids`` lists the settings; here each of them is built. A new method is a name in ``config.EvalMethod``, a case below
and a case in ``grids``.
"""

import importlib.util
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, assert_never, get_args

from sae_forge.config.evaluate import EvalConfig, EvalMethod
from sae_forge.errors import BackendError, ConfigError, DataError, ForgeError
from sae_forge.interventions import methods as published
from sae_forge.interventions.ablation import RemoveShare
from sae_forge.interventions.apply import Intervention
from sae_forge.interventions.calibration import strictest
from sae_forge.interventions.gates.any import AnyFires
from sae_forge.interventions.gates.mean import MeanRate
from sae_forge.interventions.gates.table import gate_named, gate_of
from sae_forge.methods.edits.diff_means import matching_strength
from sae_forge.methods.materials import Materials
from sae_forge.methods.subjects import Hook, Retrained, Subject
from sae_forge.methods.weights.crisp import CRISP, Suppressed
from sae_forge.methods.weights.gradient import NPO, GradDiff, GradientAscent, SimNPO
from sae_forge.methods.weights.rmu import RMU
from sae_forge.methods.weights.training import Recipe

Settings = Mapping[str, Any]

HOOKS: tuple[EvalMethod, ...] = (
    "scale", "zero", "clamp", "clamp_prime", "conditional_clamp", "refusal_clamp", "dsg", "mean_ablate", "steer",
    "project", "diff_means",
)  # fmt: skip
"""Edits of the running model."""
RETRAINED: tuple[EvalMethod, ...] = ("rmu", "gradient_ascent", "grad_diff", "npo", "simnpo", "crisp")
"""Methods that train other weights."""
UNTUNED: tuple[EvalMethod, ...] = ("zero", "mean_ablate")
"""Methods with nothing to tune but the number of latents: a sweep counts them once."""
WRITTEN: tuple[EvalMethod, ...] = ("clamp", "clamp_prime", "conditional_clamp", "refusal_clamp", "dsg", "steer")
"""Edits that write a value."""


def asked(methods: tuple[EvalMethod, ...]) -> tuple[EvalMethod, ...]:
    """The methods to measure, in the order of reports; ``all`` stands for every one, and controls are no method."""
    every = "all" in methods
    return tuple(name for name in (*HOOKS, *RETRAINED) if every or name in methods)


def controlled(methods: tuple[EvalMethod, ...]) -> bool:
    """Whether random controls are measured beside the edits."""
    return "random" in methods or "all" in methods


def impossible(method: EvalMethod, materials: Materials) -> ForgeError | None:
    """The error to raise where a method was asked for by name and cannot be measured with what there is."""
    config = materials.config
    if method == "refusal_clamp" and materials.selection.refusal_latent is None:
        return DataError(
            "refusal_clamp writes a refusal latent, and the selection has none; make one: features --refusal TEXT"
        )
    if method == "diff_means" and (config.gate != "own" or not config.keep_error):
        return ConfigError(
            "diff_means reads no SAE: it has no error to drop and a gate of its own; leave it out of --methods, or "
            "leave out --gate and --no_keep_error"
        )
    if method == "crisp" and importlib.util.find_spec("peft") is None:
        return BackendError("crisp needs peft, which is not installed: pip install 'sae-forge[baselines]'")
    if materials.collected is None and (reason := _reads_shards(method, config)):
        return DataError(
            f"{method} {reason}, and the activations that the selection was made from are not in the run folder; run "
            f"features again, or leave {method} out of --methods"
        )
    return None


def _reads_shards(method: EvalMethod, config: EvalConfig) -> str | None:
    """What a method needs the collected activations for, if for anything."""
    if method in RETRAINED:
        return "trains on the collected text"
    if method == "diff_means":
        return "is the difference of the collected means"
    if (method == "dsg" and config.gate == "own") or gate_named(config.gate).reads_retain:
        return "has a gate that is calibrated on retain text"
    if method in WRITTEN and config.value_units == "relative":
        return "writes values relative to the residual norm (--value_units absolute does not)"
    return None


def require_possible(method: EvalMethod, materials: Materials) -> None:
    """A method that was asked for by name can be measured.

    Raises:
        DataError: something it is made from is missing.
        BackendError: a package it needs is not installed.
    """
    if error := impossible(method, materials):
        raise error


def build(method: EvalMethod, settings: Settings, materials: Materials) -> Subject:
    """What a method at these settings is.

    Raises:
        ConfigError: there is no such method, or the settings do not fit it.
        DataError: something it is made from is missing.
    """
    if method in RETRAINED:
        recipe = _recipe(method, settings, materials)
        return Retrained(recipe, materials.forget_texts, materials.retain_texts, materials.config.seed)
    if method == "diff_means":
        return _diff_means(settings, materials)
    chosen = _intervention(method, settings, materials)
    return Hook(materials.sae, _gated(chosen, materials))


# ---- edits of latents ---------------------------------------------------------------------------


def latents_of(settings: Settings, materials: Materials) -> tuple[int, ...]:
    """The latents that settings name by their number."""
    return materials.selection.indices[: settings["num_features"]]


def _intervention(method: EvalMethod, settings: Settings, materials: Materials) -> Intervention:
    latents = latents_of(settings, materials)
    match method:
        case "scale":
            return published.scale(latents, settings["scale"])
        case "zero":
            return published.zero(latents)
        case "clamp":
            return published.clamp(latents, settings["value"])
        case "clamp_prime":
            return published.clamp_prime(latents, settings["value"])
        case "conditional_clamp":
            return published.conditional_clamp(latents, settings["value"], settings["theta"])
        case "refusal_clamp":
            theta = settings.get("theta", 0.0)
            return published.refusal_clamp(latents, settings["refusal_latent"], settings["value"], theta)
        case "dsg":
            plain = published.dsg(latents, settings["value"], policy=materials.config.gate_policy)
            if "percentile" not in settings:
                return plain
            gate = MeanRate(0.0, AnyFires(), materials.config.gate_policy)
            corpora = materials.traces(latents).values()
            return replace(plain, gate=strictest(gate, corpora, settings["percentile"]))
        case "mean_ablate":
            return published.mean_ablate(latents, materials.means(latents))
        case "steer":
            return published.steer(latents, settings["value"])
        case "project":
            return published.project(latents, settings["strength"])
        case "diff_means" | "rmu" | "gradient_ascent" | "grad_diff" | "npo" | "simnpo" | "crisp" | "random" | "all":
            raise ConfigError(f"{method} edits no latents")
        case _:
            assert_never(method)


def _gated(chosen: Intervention, materials: Materials) -> Intervention:
    """The intervention behind the gate that the config asks for, and with or without the SAE's error."""
    config = materials.config
    kept = replace(chosen, keep_error=config.keep_error)
    gate = gate_of(config, lambda: materials.traces(kept.targets))
    return kept if gate is None else replace(kept, gate=gate)


def _diff_means(settings: Settings, materials: Materials) -> Hook:
    """The difference in means, taken out of tokens so far that it moves forget text as much as the budget says."""
    direction = materials.direction
    if settings["gated"]:
        direction = direction.gated(materials.direction_threshold)
    mean_norm = settings["budget"] * materials.budget
    strength = matching_strength(direction, [materials.shards.forget], mean_norm=mean_norm)
    return Hook(direction, Intervention("diff_means", (0,), RemoveShare(strength)))


# ---- other weights ------------------------------------------------------------------------------


def _recipe(method: EvalMethod, settings: Settings, materials: Materials) -> Recipe:
    given = {name: value for name, value in settings.items() if name not in ("num_features", "relative")}
    match method:
        case "rmu":
            return RMU(layer=materials.point.layer, **given)
        case "gradient_ascent":
            return GradientAscent(**given)
        case "grad_diff":
            return GradDiff(**given)
        case "npo":
            return NPO(**given)
        case "simnpo":
            return SimNPO(**given)
        case "crisp":
            latents = latents_of(settings, materials)
            return CRISP(suppressed=(Suppressed(materials.point, materials.sae, latents),), **given)
        case _:
            raise ConfigError(f"{method} trains no weights; those that do: {', '.join(RETRAINED)}")


RECIPES: dict[str, type[Any]] = {kind.name: kind for kind in get_args(Recipe)}


def recipe_default(method: EvalMethod, name: str) -> Any:
    """A recipe's own default of one of its settings."""
    return next(field.default for field in fields(RECIPES[method]) if field.name == name)
