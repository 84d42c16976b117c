"""The weights of a layer that map activations to activations: for methods that retrain, adapt or round them."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from transformers.pytorch_utils import Conv1D

from sae_forge.models.loading import LanguageModel


@dataclass(frozen=True)
class Projection:
    """One matrix, or the matrices of all experts in one tensor."""

    weight: str
    """Path from the causal LM to the parameter."""
    inputs: int
    """Axis that runs over what the matrix takes, counted from the end."""
    module: str | None
    """Path from the causal LM to the linear module it is the weight of; None for the weights of experts."""


def projections(lm: LanguageModel, layer: int) -> list[Projection]:
    """Every linear map in a layer, in the order of its modules.

    Norms, convolutions, biases and tables that route tokens to experts are none.
    """
    place = f"{lm.family.layers}.{layer}"
    return [
        projection for path, module in lm.layer(layer).named_modules(prefix=place) for projection in _of(path, module)
    ]


def written_through(lm: LanguageModel, layer: int) -> list[str]:
    """Paths to the parameters through which the MLP of a layer writes to the residual stream."""
    wanted = {f"{lm.family.layers}.{layer}.{path}" for path in lm.family.down_proj}
    return [each.weight for each in projections(lm, layer) if (each.module or each.weight) in wanted]


def _of(path: str, module: nn.Module) -> Iterator[Projection]:
    if isinstance(module, nn.Linear | Conv1D):
        yield Projection(f"{path}.weight", -2 if isinstance(module, Conv1D) else -1, path)
    elif hasattr(module, "is_transposed"):  # experts; transformers says with it in which order they are stored
        for name, weight in module.named_parameters(recurse=False):
            if weight.ndim == 3:
                yield Projection(f"{path}.{name}", -2 if module.is_transposed else -1, None)
