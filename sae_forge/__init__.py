"""sae_forge: from a language model to an audited unlearning result.

The public names below load what they stand on when they are first used, so that ``import sae_forge`` is light.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "AddConstant": "sae_forge.interventions.steering",
    "AllFire": "sae_forge.interventions.gates.all",
    "Always": "sae_forge.interventions.gates.none",
    "AnyFires": "sae_forge.interventions.gates.any",
    "ClampFiring": "sae_forge.interventions.clamping",
    "Cusum": "sae_forge.interventions.gates.cusum",
    "Dictionary": "sae_forge.sae.dictionary",
    "Edit": "sae_forge.interventions.edit",
    "EditLog": "sae_forge.interventions.apply",
    "HookPoint": "sae_forge.hookpoint",
    "Intervention": "sae_forge.interventions.intervention",
    "LatentActs": "sae_forge.sae.dictionary",
    "MeanAblation": "sae_forge.interventions.clamping",
    "MeanRate": "sae_forge.interventions.gates.mean",
    "NegativeScaling": "sae_forge.interventions.ablation",
    "Peak": "sae_forge.interventions.gates.max",
    "RandomDirections": "sae_forge.interventions.controls",
    "RemoveProjection": "sae_forge.interventions.steering",
    "Selection": "sae_forge.features.selection",
    "Session": "sae_forge.live.session",
    "SetTo": "sae_forge.interventions.clamping",
    "TopKSAE": "sae_forge.sae.topk",
    "WindowRate": "sae_forge.interventions.gates.window",
    "ZeroAblation": "sae_forge.interventions.ablation",
    "applied": "sae_forge.interventions.apply",
    "attached": "sae_forge.interventions.apply",
    "calibrated": "sae_forge.interventions.calibration",
    "capture": "sae_forge.models.hooks",
    "language_model": "sae_forge.models.from_transformers",
    "load_edits": "sae_forge.interventions.saved",
    "load_model": "sae_forge.models.loading",
    "load_report": "sae_forge.results.report",
    "load_sae": "sae_forge.sae.store",
    "read_steering_csv": "sae_forge.interventions.steering_csv",
    "save_edits": "sae_forge.interventions.saved",
    "save_sae": "sae_forge.sae.store",
    "select_rows": "sae_forge.models.caches",
    "splice": "sae_forge.models.hooks",
    "write_steering_csv": "sae_forge.interventions.steering_csv",
}

__all__ = ["__version__", *_HOMES]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"sae_forge has no {name!r}; public names: {', '.join(_HOMES)}")
    return getattr(import_module(_HOMES[name]), name)
