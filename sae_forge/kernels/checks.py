"""What the door to the kernels refuses, whichever form is behind it: with BackendError or ConfigError, in one line."""

import torch
from torch import Tensor

from sae_forge.errors import BackendError, ConfigError
from sae_forge.kernels.rows import Extra, Rows, Slopes
from sae_forge.kernels.transpose import Transpose


def require_together(**tensors: Tensor) -> None:
    """Refuse tensors that lie on several devices."""
    devices = {name: str(tensor.device) for name, tensor in tensors.items()}
    if len(set(devices.values())) > 1:
        listed = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise BackendError(f"tensors lie on several devices ({listed}); move them to one")


def require_code(values: Tensor, indices: Tensor, W_dec: Tensor, *, trusted: bool) -> None:
    """Refuse a sparse code that is none of this decoder; ``trusted`` indices are not looked at."""
    require_together(values=values, indices=indices, W_dec=W_dec)
    if values.shape != indices.shape:
        raise ConfigError(f"values {list(values.shape)} and indices {list(indices.shape)} must have the same shape")
    _require_indices(indices)
    if not trusted:
        _require_range(indices, len(W_dec))


def _require_range(indices: Tensor, d_sae: int) -> None:
    if indices.numel() == 0:
        return
    low, high = (int(end) for end in torch.aminmax(indices))
    if low < 0 or high >= d_sae:
        raise ConfigError(f"index {low if low < 0 else high} names no latent; the SAE has latents 0 to {d_sae - 1}")


def require_rows(slopes: Slopes, table: Transpose, rows: Rows, extra: Extra | None, *, trusted: bool) -> None:
    """Refuse what no kernel could survive: tensors apart, or of other sizes, precisions or layouts than they need."""
    (d_sae, d_in), entries = rows.W_dec.weight.shape, tuple(slopes.indices.shape)
    tokens = len(slopes.indices if slopes.tokens is None else slopes.target)
    shapes = {
        "target": (tokens, d_in), "residual": (tokens, d_in), "values": entries, "pre_acts": entries,
        "indices": entries, "entries": (slopes.indices.numel(),), "offsets": (d_sae + 1,),
    }  # fmt: skip
    given: dict[str, Tensor] = {**slopes._asdict(), **table._asdict()}
    if given.pop("tokens") is not None:
        require_flat(slopes.indices, slopes.tokens)
    if (bias := given.pop("bias")) is not None:
        given["bias"], shapes["bias"] = bias, (d_sae,)
    for name, slot in rows._asdict().items():
        parts = {f"{name}.{kind}": part for kind, part in slot._asdict().items() if part is not None}
        for part_name, part in parts.items():
            if not part.is_contiguous() or (part.dtype != torch.float32 and not part_name.endswith(".copy")):
                raise ConfigError(f"{part_name} is {part.dtype} with strides {part.stride()}; give contiguous float32")
        given |= parts
        shapes |= dict.fromkeys(parts, (d_sae,) if name == "b_enc" else (d_sae, d_in))
    if extra is not None:
        few = len(extra.b_enc)
        given |= {f"extra.{name}": part for name, part in extra._asdict().items()}
        shapes |= {
            "extra.row_of": (d_sae,),
            "extra.b_enc": (few,),
            "extra.W_enc": (few, d_in),
            "extra.W_dec": (few, d_in),
        }
    require_together(**given)
    for name, shape in shapes.items():
        require_shape(name, given[name], *shape)
    _require_precision(slopes)
    if not trusted:
        _require_range(slopes.indices, d_sae)


def require_flat(indices: Tensor, tokens: Tensor | None) -> None:
    """Refuse entries that lie neither ``[tokens, k]`` nor flat with the token of each."""
    if tokens is None and (indices.dim() != 2 or indices.shape[1] == 0):
        raise ConfigError(f"values are {list(indices.shape)}; give [tokens, k] with k at least 1")
    if tokens is not None and (indices.dim() != 1 or tokens.shape != indices.shape):
        raise ConfigError(f"indices are {list(indices.shape)} and their tokens {list(tokens.shape)}; give flat lists")


def _require_precision(slopes: Slopes) -> None:
    if slopes.target.dtype != slopes.residual.dtype or not slopes.target.is_floating_point():
        raise BackendError(
            f"target is {slopes.target.dtype} and residual {slopes.residual.dtype}; give both in one precision"
        )
    if slopes.values.dtype != torch.float32 or slopes.pre_acts.dtype != torch.float32:
        raise BackendError(f"values are {slopes.values.dtype} and pre_acts {slopes.pre_acts.dtype}; give float32")
    _require_indices(slopes.indices)


def _require_indices(indices: Tensor) -> None:
    if indices.dtype not in (torch.int32, torch.int64):
        raise ConfigError(f"indices are {indices.dtype}; give int32 or int64")


def require_shape(name: str, tensor: Tensor, *shape: int) -> None:
    """Refuse a tensor of another shape."""
    if tuple(tensor.shape) != shape:
        raise ConfigError(f"{name} is {list(tensor.shape)}; beside the other tensors it must be {list(shape)}")
