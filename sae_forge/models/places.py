"""The sub-modules that a family's entry names, found in a model."""

from collections.abc import Sequence
from functools import reduce
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from sae_forge.errors import UnsupportedModelError
from sae_forge.models.families import Family


def submodule_of(layer: nn.Module, paths: Sequence[str]) -> nn.Module:
    """The first of these sub-modules that the layer has; one that is set to None counts as none."""
    if (module := _first(layer, paths)) is None:
        raise AssertionError(f"a layer has none of {paths}")
    return module


def _first(root: Any, paths: Sequence[str]) -> Any:
    parts = (reduce(lambda part, name: getattr(part, name, None), path.split("."), root) for path in paths)
    return next((part for part in parts if part is not None), None)


def require_places(model: PreTrainedModel, family: Family, name: str) -> None:
    """The model has what an entry names that is not of the table.

    Raises:
        UnsupportedModelError: it has not; names the field, and what a layer has.
    """
    for role in ("layers", "final_norm"):
        if _first(model, [path := getattr(family, role)]) is None:
            raise UnsupportedModelError(f"{name} has no {path}, which family {family.name} names as its {role}")
    layers, config = list(_first(model, [family.layers])), model.config.get_text_config()
    for number, layer in enumerate(layers):
        for role in ("attn_out", "mlp_out", "o_proj", "down_proj"):
            if _first(layer, paths := getattr(family, role)) is None:
                parts = ", ".join(part for part, _ in layer.named_modules() if part and part.count(".") < 2)
                raise UnsupportedModelError(
                    f"layer {number} of {name} has none of {', '.join(paths)}, which family {family.name} names as its "
                    f"{role}; it has {parts}"
                )
    for role in ("multiplier", "kv_shared"):
        if (setting := getattr(family, role)) and not hasattr(config, setting):
            raise UnsupportedModelError(f"the config of {name} has no {setting}, family {family.name}'s {role}")
