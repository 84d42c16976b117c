"""The only door to the kernels: picks a backend for each call by where the tensors are, never at import.

A backend chosen by ``auto`` may be any that fits. One asked for by name is used or refused.
"""

import importlib
import importlib.util
import os
from collections.abc import Callable
from functools import partial
from typing import Any, cast, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_forge.config.train import Backend
from sae_forge.errors import BackendError, ConfigError
from sae_forge.kernels import checks, reference
from sae_forge.kernels.above import above
from sae_forge.kernels.affine import product
from sae_forge.kernels.flat import Rectangle
from sae_forge.kernels.gradients import Encode, Form, SparseDecode, TopKEncode
from sae_forge.kernels.moments import Moments
from sae_forge.kernels.rows import DecodeLoss, Extra, Rates, RowGradients, Rows, Slopes, Slot
from sae_forge.kernels.transpose import Transpose

CROSSOVER = {"cpu": 16, "cuda": 184}
"""Beyond k = d_sae over this, dense products are faster than gathers. CPU: between what two sizes gave; CUDA: bf16 FLOP
a second over the bytes a second of an H200, to be measured."""

__all__ = [
    "among_largest", "centred", "decode_loss", "encode_above", "encode_tokens", "latent_sums", "never_waits", "product",
    "row_gradients", "rows_adam", "sparse_decode", "sum_of_rows", "topk", "topk_encode", "triton_installed",
]  # fmt: skip

_MAX_ENCODE_TOKENS = 1024
_MAX_CPU_NUMBERS = 6_500_000
"""25 MiB in fp32: the C library gives a larger block back to the system at once, and clearing it anew takes longer
than filling it."""

_TopK = Callable[[Tensor, int], tuple[Tensor, Tensor]]


# ---- with autograd ------------------------------------------------------------------------------


def sparse_decode(
    values: Float[Tensor, "*batch k"],
    indices: Int[Tensor, "*batch k"],
    W_dec: Float[Tensor, "d_sae d_in"],
    *,
    backend: Backend = "auto",
    trusted: bool = False,
) -> Float[Tensor, "*batch d_in"]:
    """Decode tokens from their active latents only, never forming the dense code.

    Costs k rows of ``W_dec`` per token instead of d_sae. All backends agree with
    ``kernels.reference`` in the output and in the gradients of ``values`` and ``W_dec``.

    Args:
        values: Activations of the active latents; a zero contributes nothing.
        indices: Which latents those are, in ``[0, d_sae)``. Order is free, repeats add up.
        backend: ``auto`` takes Triton on a GPU that has it, the CPU form on a CPU, the reference elsewhere, and dense
            products where a token has so many latents that those are faster.
        trusted: The indices come from :func:`topk_encode`, so their range is not looked at; looking waits for a GPU.

    Returns:
        Reconstructions without ``b_dec``, in the dtype of ``W_dec``.

    Raises:
        BackendError: the backend cannot run these tensors, or they lie on several devices.
        ConfigError: an index is out of range, or the shapes disagree.
    """
    checks.require_code(values, indices, W_dec, trusted=trusted)
    batch, d_in = indices.shape[:-1], W_dec.shape[1]
    flat_values, flat_indices = values.reshape(-1, values.shape[-1]), indices.reshape(-1, indices.shape[-1])
    if flat_indices.numel() == 0:
        return W_dec.new_zeros(*batch, d_in)
    form = _choose(backend, W_dec, k=values.shape[-1], d_sae=len(W_dec))
    if form is reference:
        return reference.decode(flat_values, flat_indices, W_dec).view(*batch, d_in)
    return cast("Tensor", SparseDecode.apply(flat_values, flat_indices, W_dec, form)).view(*batch, d_in)


def topk_encode(
    x: Float[Tensor, "*batch d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, "d_sae"],
    b_dec: Float[Tensor, "d_in"] | None,
    k: int,
    *,
    backend: Backend = "auto",
    product_dtype: torch.dtype | None = None,
    screened: bool = False,
    seen: Callable[[Tensor], None] | None = None,
) -> tuple[Float[Tensor, "*batch k"], Int[Tensor, "*batch k"]]:
    """The k largest pre-activations of each token after ReLU, and which latents they are, in no set order.

    Of equal pre-activations the lower latent is taken. One dense product per token; the pre-activations of at most
    1024 tokens exist at once, and every gradient is a sparse sum over the k kept latents.

    Args:
        b_dec: Taken from ``x`` first; None where that is done.
        product_dtype: Precision of the dense product (None: that of ``W_enc``). Results are in that of ``b_enc``.
        screened: Where it is faster, let an int8 product say which pre-acts are made (``cpu_int8``). The latents are
            the same; a pre-act is a sum in another order, so its last digits are not those of the dense product.
        seen: Is shown all pre-acts of some tokens after the other's, where a dense product makes them: to keep a few.

    Raises:
        BackendError: the backend cannot run these tensors, or they lie on several devices.
        ConfigError: k exceeds d_sae, or ``x`` is of another width than the SAE.
    """
    checks.require_together(x=x, W_enc=W_enc, b_enc=b_enc, **({} if b_dec is None else {"b_dec": b_dec}))
    if not 1 <= k <= W_enc.shape[1]:
        raise ConfigError(f"k={k} latents per token, but the SAE has d_sae={W_enc.shape[1]}")
    if x.shape[-1] != W_enc.shape[0]:
        raise ConfigError(f"the activations are {x.shape[-1]} wide, but the SAE reads {W_enc.shape[0]}")
    checks.require_shape("b_enc", b_enc, W_enc.shape[1])
    if b_dec is not None:
        checks.require_shape("b_dec", b_dec, W_enc.shape[0])
    form = _choose(backend, W_enc, k=k, d_sae=W_enc.shape[1])
    batch = x.shape[:-1]
    flat = x.reshape(-1, x.shape[-1]).to(W_enc.dtype)
    dtype = product_dtype or W_enc.dtype
    if flat.numel() == 0:
        return b_enc.new_empty(*batch, k), flat.new_empty(*batch, k, dtype=torch.int64)
    if screened and form is _module("cpu") and dtype == W_enc.dtype and _module("cpu_int8").fits(flat, W_enc, b_enc, k):
        encode: Encode = _module("cpu_int8").topk_affine
    else:
        at_once, choose = encode_tokens(W_enc.shape[1], x.device), _choose_topk(backend, W_enc, k)
        encode = partial(_module("dense").topk_affine, dtype=dtype, at_once=at_once, choose=choose, seen=seen)
    values, indices = cast("Any", TopKEncode.apply(flat, W_enc, b_enc, b_dec, k, form, encode))
    return values.view(*batch, k), indices.view(*batch, k)


# ---- for a training step ------------------------------------------------------------------------


def centred(
    batch: Float[Tensor, "tokens d_in"], b_dec: Float[Tensor, "d_in"], scale: float, sink_norm: float,
    dtype: torch.dtype, *, backend: Backend = "auto",
) -> tuple[Float[Tensor, "tokens d_in"], Moments] | None:  # fmt: skip
    """``scale × batch − b_dec`` in ``dtype``, zeros for rows longer than ``sink_norm`` (0: none), and its moments.

    None where no kernel makes both for one read of the batch.
    """
    if _name_of_form(backend, batch, k=1, d_sae=None) != "triton_form":
        return None
    return _choose(backend, batch, k=1, d_sae=None).centred(batch, b_dec, scale, sink_norm, dtype)


def topk(
    pre_acts: Float[Tensor, "tokens d_sae"], k: int, *, backend: Backend = "auto"
) -> tuple[Float[Tensor, "tokens k"], Int[Tensor, "tokens k"]]:
    """The k largest of each token and where they are, in no set order; of equal ones the lower latents."""
    if pre_acts.dim() != 2 or not pre_acts.is_floating_point():
        raise ConfigError(f"pre_acts are {pre_acts.dtype} {list(pre_acts.shape)}; give floats [tokens, d_sae]")
    if not 1 <= k <= pre_acts.shape[1]:
        raise ConfigError(f"k={k} of each token, but there are {pre_acts.shape[1]}")
    return _choose_topk(backend, pre_acts, k)(pre_acts.contiguous(), k)


def among_largest(numbers: Float[Tensor, "rows columns"], k: int) -> Bool[Tensor, "rows columns"]:
    """Which numbers are among the k largest of their row: k of each."""
    return (_module("cpu").among_largest if numbers.device.type == "cpu" else _among_largest)(numbers, k)


def _among_largest(numbers: Tensor, k: int) -> Tensor:
    """On any device; nothing waits for it."""
    best = torch.topk(numbers, k, dim=1, sorted=False).indices
    return torch.zeros_like(numbers, dtype=torch.bool).scatter_(1, best, True)


def encode_above(
    x: Float[Tensor, "tokens d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, "d_sae"],
    bound: float,
) -> tuple[Float[Tensor, " entries"], Int[Tensor, " entries"], Int[Tensor, " entries"]]:
    """Every pre-act above ``bound`` and above 0, with its token and its latent: flat, in rising order of tokens.

    The pre-activations of at most 1024 tokens exist at once; how many entries there are is asked of the device. Where
    a pre-act is not finite a single entry, NaN, stands for all of those tokens.

    Raises:
        BackendError: the tensors lie on several devices.
        ConfigError: ``x`` is of another width than the SAE.
    """
    checks.require_together(x=x, W_enc=W_enc, b_enc=b_enc)
    if x.shape[-1] != W_enc.shape[0]:
        raise ConfigError(f"the activations are {x.shape[-1]} wide, but the SAE reads {W_enc.shape[0]}")
    return above(x, W_enc, b_enc, bound, encode_tokens(W_enc.shape[1], x.device))


def decode_loss(
    values: Float[Tensor, "*entries"],
    indices: Int[Tensor, "*entries"],
    W_dec: Float[Tensor, "d_sae d_in"],
    target: Float[Tensor, "tokens d_in"],
    *,
    tokens: Int[Tensor, " entries"] | None = None,
    backend: Backend = "auto",
    trusted: bool = False,
) -> DecodeLoss:
    """Decode, hold against ``target``, and multiply what is left by the rows it was decoded from.

    With a loss of ``c × squares.sum()``, the gradient of ``values`` is ``2c × dots`` and that of the reconstruction
    ``2c × residual``. On a GPU every row is read once for both.

    Args:
        tokens: Of entries that lie flat, not ``[tokens, k]``: the token of each, in rising order.

    Raises:
        BackendError: the backend cannot run these tensors, or they lie on several devices.
        ConfigError: an index is out of range, or the shapes disagree.
    """
    checks.require_together(values=values, target=target)
    checks.require_code(values, indices, W_dec, trusted=trusted)
    checks.require_flat(indices, tokens)
    checks.require_shape("target", target, len(target) if tokens is not None else len(values), W_dec.shape[1])
    values, indices, W_dec, target = (each.contiguous() for each in (values, indices, W_dec, target))
    if tokens is None:
        return _choose(backend, W_dec, k=values.shape[1], d_sae=len(W_dec)).decode_loss(values, indices, W_dec, target)
    form, filled = _choose_flat(backend, W_dec, tokens, len(target))
    if filled is None:
        return form.decode_loss(values, indices, W_dec, target, tokens)
    parts = form.decode_loss(filled.filled(values), filled.filled(indices), W_dec, target)
    return parts._replace(dots=parts.dots.flatten()[filled.place])


def row_gradients(
    slopes: Slopes, table: Transpose, rows: Rows, *,
    extra: Extra | None = None, backend: Backend = "auto", trusted: bool = False,
) -> RowGradients:  # fmt: skip
    """Gradients of all the latents own, whole: for clipping, accumulation and several ranks.

    Args and errors as of :func:`rows_adam`.
    """
    checks.require_rows(slopes, table, rows, extra, trusted=trusted)
    form, slopes, table = _choose_for(rows, slopes, table, backend)
    return form.row_gradients(slopes, table, rows, extra)


def rows_adam(
    slopes: Slopes, table: Transpose, rows: Rows, rates: Rates, *,
    extra: Extra | None = None, backend: Backend = "auto", trusted: bool = False,
) -> None:  # fmt: skip
    """Adam on all the latents own, in place: as :func:`row_gradients` and ``adam_rows_``, with no gradient kept.

    Args:
        slopes: Of this batch.
        table: ``transpose(slopes.indices, d_sae)``, and of no other indices.
        extra: Dense gradients of some latents besides.
        trusted: The indices come from :func:`topk_encode`, so their range is not looked at; looking waits for a GPU.

    Raises:
        BackendError: the backend cannot run these tensors, or they lie on several devices.
        ConfigError: an index is out of range, or a tensor has another shape, precision or layout than it needs.
    """
    checks.require_rows(slopes, table, rows, extra, trusted=trusted)
    checks.require_together(W_dec=rows.W_dec.weight, **rates._asdict())
    form, slopes, table = _choose_for(rows, slopes, table, backend)
    form.rows_adam(slopes, table, rows, rates, extra)


def latent_sums(
    values: Float[Tensor, "*entries"],
    indices: Int[Tensor, "*entries"],
    table: Transpose,
    *,
    backend: Backend = "auto",
) -> Float[Tensor, "d_sae"]:
    """For each latent, the sum of its values, which lie ``[tokens, k]`` or flat."""
    checks.require_together(values=values, indices=indices, entries=table.entries)
    if values.dim() == 1:  # whose token an entry is does not matter here
        values, indices = values.unsqueeze(1), indices.unsqueeze(1)
    if values.shape != indices.shape or values.dim() != 2 or values.numel() != table.entries.numel():
        raise ConfigError(
            f"values {list(values.shape)}, indices {list(indices.shape)} and a table of {table.entries.numel()} "
            "entries must be of one [tokens, k]"
        )
    return _choose(backend, values, k=values.shape[1], d_sae=table.d_sae).latent_sums(values, indices, table)


def sum_of_rows(
    slot: Slot, weights: Float[Tensor, "rows"], *, backend: Backend = "auto"
) -> Float[Tensor, "columns"]:  # fmt: skip
    """The sum of a slot's rows, each times its weight; in Triton of those that products read, for half the bytes."""
    if _name_of_form(backend, slot.weight, k=1, d_sae=None) != "triton_form":
        return slot.weight.T @ weights
    return _choose(backend, slot.weight, k=1, d_sae=None).sum_of_rows(slot.product, weights)


def encode_tokens(d_sae: int, device: torch.device) -> int:
    """Tokens whose pre-activations exist at once: enough for a product at full speed, few enough for the cache."""
    return max(128, min(_MAX_ENCODE_TOKENS, _MAX_CPU_NUMBERS // d_sae)) if device.type == "cpu" else _MAX_ENCODE_TOKENS


# ---- choice -------------------------------------------------------------------------------------


def _choose_for(rows: Rows, slopes: Slopes, table: Transpose, backend: Backend) -> tuple[Form, Slopes, Transpose]:
    """The form to use, and what it is given."""
    W_dec = rows.W_dec.weight
    if slopes.tokens is None:
        return _choose(backend, W_dec, k=slopes.indices.shape[1], d_sae=len(W_dec)), slopes, table
    form, filled = _choose_flat(backend, W_dec, slopes.tokens, len(slopes.target))
    return (form, slopes, table) if filled is None else (form, *filled.slopes(slopes, table))


def _choose_flat(backend: Backend, weights: Tensor, token_of: Tensor, tokens: int) -> tuple[Any, Rectangle | None]:
    """The form for flat entries, and the rectangle they are to be put into where it takes no others."""
    mean = max(1, -(-len(token_of) // max(1, tokens)))
    form = _choose(backend, weights, k=mean, d_sae=len(weights))
    if form is _module("cpu"):
        return form, None
    rectangle = Rectangle.of(token_of, tokens)
    return _choose(backend, weights, k=rectangle.width, d_sae=len(weights)), rectangle


def _choose_topk(backend: Backend, pre_acts: Tensor, k: int) -> _TopK:
    """The top-k of the backend; where products are dense, that of the device."""
    return _choose("auto" if backend == "dense" else backend, pre_acts, k=k, d_sae=None).topk


class _OnDevice:
    """The Triton form with this device current in every operation: a launch goes there, wherever its tensors lie."""

    def __init__(self, form: Any, device: torch.device) -> None:
        self._form, self._device = form, device

    def __getattr__(self, name: str) -> Callable[..., Any]:
        operation = getattr(self._form, name)

        def run(*given: Any) -> Any:
            with torch.cuda.device(self._device):
                return operation(*given)

        return run


def _choose(backend: Backend, weights: Tensor, *, k: int, d_sae: int | None) -> Any:
    """The form to use, for k of d_sae latents a token; None: dense products are no choice."""
    name = _name_of_form(backend, weights, k=k, d_sae=d_sae)
    form = _module(name)
    return _OnDevice(form, weights.device) if name == "triton_form" and weights.device.type == "cuda" else form


def _name_of_form(backend: Backend, weights: Tensor, *, k: int, d_sae: int | None) -> str:
    """The module of the form, unless the backend cannot run these tensors."""
    device, dtype = weights.device.type, weights.dtype
    if backend not in get_args(Backend):
        raise BackendError(f"backend {backend!r} is unknown; choose one of {', '.join(get_args(Backend))}")
    if device == "meta":
        raise BackendError("tensors on the meta device hold no numbers; move them to a CPU or a GPU")
    if backend == "auto":
        if d_sae is not None and k * CROSSOVER.get(device, 1) > d_sae:
            return "dense"
        if device == "cpu":
            return "cpu"
        if device != "cuda" or dtype == torch.float64 or not triton_installed():
            return "reference"
        if k <= _module("triton_form").MAX_K:
            return "triton_form"
        return "reference" if d_sae is None else "dense"
    if backend == "cpu" and device != "cpu":
        raise BackendError(f"backend 'cpu' was given tensors on {device}; use auto, dense or triton there")
    if backend != "triton":
        return backend
    if not triton_installed():
        raise BackendError("backend 'triton' needs the triton package: pip install 'sae-forge[triton]', or use auto")
    if device != "cuda" and not _interpreting():
        raise BackendError(f"backend 'triton' needs tensors on a CUDA GPU and these are on {device}; use auto or cpu")
    if dtype == torch.float64:
        raise BackendError("backend 'triton' sums in float32 and was given float64; use reference")
    if k > (most := _module("triton_form").MAX_K):
        raise BackendError(f"backend 'triton' takes at most k={most} and was given k={k}; use auto or dense")
    return "triton_form"


def never_waits(backend: Backend) -> bool:
    """Whether on a CUDA device no operation of this backend asks it for a number, so that a step can be recorded."""
    return backend != "reference" and triton_installed()


def triton_installed() -> bool:
    """Whether the triton package is there to import."""
    return importlib.util.find_spec("triton") is not None


def _interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def _module(name: str) -> Any:
    return importlib.import_module(f"sae_forge.kernels.{name}")
