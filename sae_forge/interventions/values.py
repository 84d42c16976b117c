"""The numbers that edits write: checked, laid out over latents, and made relative to the model they go into.

An absolute value does not carry over: 500 moves a Gemma 2 activation by 34 times its norm and one of Gemma 3, whose
norms run into the ten thousands, not at all.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from sae_forge.errors import ConfigError, DataError

Value = float | tuple[float, ...]
"""One number for all written latents, or one for each in their order."""


def checked(name: str, value: Value) -> None:
    """The value is finite, and not an empty list.

    Raises:
        ConfigError: it is not.
    """
    numbers = value if isinstance(value, tuple) else (value,)
    if not numbers or not all(map(math.isfinite, numbers)):
        raise ConfigError(f"{name}={value} must be one finite number, or one for each written latent")


def spread(name: str, value: Value, acts: Float[Tensor, "batch seq n"]) -> Float[Tensor, "..."]:
    """The value as a tensor that broadcasts over ``acts``.

    Raises:
        ConfigError: it holds one number for each latent, and not as many as there are.
    """
    if isinstance(value, tuple) and len(value) != acts.shape[-1]:
        raise ConfigError(f"{name} holds {len(value)} numbers for {acts.shape[-1]} written latents; give one for each")
    return torch.tensor(value, dtype=acts.dtype, device=acts.device)


def median_norm(x: Float[Tensor, "tokens d_in"]) -> float:
    """Median L2 norm of activations; take those of real tokens, for the first token's is often far larger.

    Raises:
        DataError: there are none.
    """
    if not len(x):
        raise DataError("a median norm needs activations and got none; collect some first")
    return float(x.double().norm(dim=-1).median())


def relative_to_norm(kappa: float, norm: float, rows: Float[Tensor, "n d_in"]) -> float:
    """The value c at which writing c to every latent moves an activation by ``kappa`` times ``norm``.

    That is ``kappa * norm / |sum of the latents' decoder rows|``; it holds to the extent that c outweighs the acts.

    Args:
        norm: Of a typical activation, as ``median_norm`` measures it.

    Raises:
        ConfigError: the rows cancel, so no value moves anything.
    """
    # the rows add up before the norm is taken: latents that point alike move a token further than each alone
    total = float(rows.detach().double().sum(dim=0).norm())
    if total == 0 or not math.isfinite(kappa * norm / total):
        raise ConfigError(f"the {len(rows)} decoder rows sum to a vector of norm {total:g}; choose other latents")
    return kappa * norm / total


def relative_to_peaks(multiple: float, peaks: Sequence[float]) -> tuple[float, ...]:
    """``multiple`` times the largest act that each latent was seen to have."""
    return tuple(multiple * peak for peak in peaks)
