"""sae_forge: from a language model to an audited unlearning result.

The public names below load what they stand on when they are first used, so that ``import sae_forge`` is light.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Dictionary": "sae_forge.sae.dictionary",
    "HookPoint": "sae_forge.hookpoint",
    "Intervention": "sae_forge.interventions.apply",
    "LatentActs": "sae_forge.sae.dictionary",
    "NegativeScaling": "sae_forge.interventions.ablation",
    "RandomDirections": "sae_forge.interventions.controls",
    "Selection": "sae_forge.features.selection",
    "TopKSAE": "sae_forge.sae.topk",
    "ZeroAblation": "sae_forge.interventions.ablation",
    "applied": "sae_forge.interventions.apply",
    "capture": "sae_forge.models.hooks",
    "load_model": "sae_forge.models.loading",
    "load_sae": "sae_forge.sae.store",
    "save_sae": "sae_forge.sae.store",
    "splice": "sae_forge.models.hooks",
}

__all__ = ["__version__", *_HOMES]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"sae_forge has no {name!r}; public names: {', '.join(_HOMES)}")
    return getattr(import_module(_HOMES[name]), name)
