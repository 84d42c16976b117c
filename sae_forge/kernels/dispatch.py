"""The only door to the kernels: picks a backend for each call by where the tensors are, never at import.

A backend chosen by ``auto`` may be any that fits. One asked for by name is used or refused.
"""

import importlib
import importlib.util
import os
from typing import Any, Protocol, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from sae_forge.config import Backend
from sae_forge.errors import BackendError, ConfigError
from sae_forge.kernels import reference

ENCODE_ROWS = 1024
"""Tokens whose pre-activations exist at once: enough for a product at full speed, few enough for the cache."""


class _Form(Protocol):
    """What a backend module offers; the gradients below are made of these four sums."""

    def decode(self, values: Tensor, indices: Tensor, W_dec: Tensor) -> Tensor: ...
    def value_grad(self, grad: Tensor, indices: Tensor, W_dec: Tensor) -> Tensor: ...
    def weight_grad(self, rows: Tensor, values: Tensor, indices: Tensor, d_sae: int) -> Tensor: ...
    def latent_sums(self, values: Tensor, indices: Tensor, d_sae: int) -> Tensor: ...


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
        backend: ``auto`` takes Triton on a GPU that has it, the CPU form on a CPU, the reference elsewhere.
        trusted: The indices come from :func:`topk_encode`, so their range is not looked at; looking waits for a GPU.

    Returns:
        Reconstructions without ``b_dec``, in the dtype of ``W_dec``.

    Raises:
        BackendError: the backend cannot run these tensors, or they lie on several devices.
        ConfigError: an index is out of range, or the shapes disagree.
    """
    _check_together(values=values, indices=indices, W_dec=W_dec)
    _check_code(values, indices)
    if not trusted:
        _check_range(indices, W_dec.shape[0])
    form = _choose(backend, W_dec)
    batch, d_in = indices.shape[:-1], W_dec.shape[1]
    flat_values, flat_indices = values.reshape(-1, values.shape[-1]), indices.reshape(-1, indices.shape[-1])
    if flat_indices.numel() == 0:
        return W_dec.new_zeros(*batch, d_in)
    if form is None:
        return reference.sparse_decode(flat_values, flat_indices, W_dec).view(*batch, d_in)
    return cast("Tensor", _SparseDecode.apply(flat_values, flat_indices, W_dec, form)).view(*batch, d_in)


def topk_encode(
    x: Float[Tensor, "*batch d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, "d_sae"],
    b_dec: Float[Tensor, "d_in"],
    k: int,
    *,
    backend: Backend = "auto",
    product_dtype: torch.dtype | None = None,
) -> tuple[Float[Tensor, "*batch k"], Int[Tensor, "*batch k"]]:
    """The k largest pre-activations of each token after ReLU, and which latents they are, in no set order.

    One dense product per token; the pre-activations of at most ``ENCODE_ROWS`` tokens exist at once, and every
    gradient is a sparse sum over the k kept latents.

    Args:
        product_dtype: Precision of the dense product (None: that of ``W_enc``). Results are in that of ``W_enc``.

    Raises:
        BackendError: the backend cannot run these tensors, or they lie on several devices.
        ConfigError: k exceeds d_sae, or ``x`` is of another width than the SAE.
    """
    _check_together(x=x, W_enc=W_enc, b_enc=b_enc, b_dec=b_dec)
    if not 1 <= k <= W_enc.shape[1]:
        raise ConfigError(f"k={k} latents per token, but the SAE has d_sae={W_enc.shape[1]}")
    if x.shape[-1] != W_enc.shape[0]:
        raise ConfigError(f"the activations are {x.shape[-1]} wide, but the SAE reads {W_enc.shape[0]}")
    form = _choose(backend, W_enc)
    batch = x.shape[:-1]
    flat = x.reshape(-1, x.shape[-1]).to(W_enc.dtype)
    dtype = product_dtype or W_enc.dtype
    if flat.numel() == 0:
        return flat.new_empty(*batch, k), flat.new_empty(*batch, k, dtype=torch.int64)
    if form is None:
        centred = (flat - b_dec).to(dtype)
        values, indices = reference.topk_encode(centred, W_enc.to(dtype), b_enc.to(dtype), k)
        values = values.to(W_enc.dtype)
    else:
        values, indices = cast("Any", _TopKEncode.apply(flat, W_enc, b_enc, b_dec, k, dtype, form))
    return values.view(*batch, k), indices.view(*batch, k)


# ---- gradients ----------------------------------------------------------------------------------


class _SparseDecode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, indices: Tensor, W_dec: Tensor, form: _Form) -> Tensor:
        ctx.save_for_backward(values, indices, W_dec)
        ctx.form = form
        return form.decode(values, indices, W_dec)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        values, indices, W_dec = ctx.saved_tensors
        for_values = for_weights = None
        if ctx.needs_input_grad[0]:
            for_values = ctx.form.value_grad(grad, indices, W_dec).to(values.dtype)
        if ctx.needs_input_grad[2]:
            for_weights = ctx.form.weight_grad(grad, values, indices, W_dec.shape[0]).to(W_dec.dtype)
        return for_values, None, for_weights, None


class _TopKEncode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor, k: int, dtype: torch.dtype, form: _Form
    ) -> tuple[Tensor, Tensor]:
        centred = x - b_dec
        values = torch.empty(len(x), k, dtype=W_enc.dtype, device=x.device)
        indices = torch.empty(len(x), k, dtype=torch.int64, device=x.device)
        weights, bias = W_enc.to(dtype), b_enc.to(dtype)
        for start in range(0, len(x), ENCODE_ROWS):
            part = slice(start, start + ENCODE_ROWS)
            top = torch.topk(torch.addmm(bias, centred[part].to(dtype), weights), k, dim=-1, sorted=False)
            values[part], indices[part] = top.values.relu_(), top.indices
        ctx.mark_non_differentiable(indices)
        ctx.save_for_backward(centred, W_enc, values, indices)
        ctx.form = form
        return values, indices

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        centred, W_enc, values, indices = ctx.saved_tensors
        d_sae = W_enc.shape[1]
        slope = grad * (values > 0)  # through the ReLU
        bias = ctx.form.latent_sums(slope, indices, d_sae).to(W_enc.dtype)
        for_x = for_weights = None
        if ctx.needs_input_grad[0]:
            for_x = ctx.form.decode(slope, indices, W_enc.T.contiguous())
        if ctx.needs_input_grad[1]:
            for_weights = ctx.form.weight_grad(centred, slope, indices, d_sae).to(W_enc.dtype).T
        # Every token is centred by the same b_dec, so its gradient is one mat-vec instead of a sum over tokens.
        return for_x, for_weights, bias, -(W_enc @ bias), None, None, None


# ---- choice and checks --------------------------------------------------------------------------


def _choose(backend: Backend, weights: Tensor) -> _Form | None:
    """The module of the backend to use; None stands for the reference, which autograd differentiates."""
    device, dtype = weights.device.type, weights.dtype
    if backend == "reference":
        return None
    if backend == "auto":
        if device == "cpu":
            return _module("cpu")
        usable = device == "cuda" and dtype != torch.float64 and triton_installed()
        return _module("triton_sparse_decode") if usable else None
    if backend == "cpu":
        if device != "cpu":
            raise BackendError(f"backend 'cpu' was given tensors on {device}; use auto, reference or triton there")
        return _module("cpu")
    if not triton_installed():
        raise BackendError("backend 'triton' needs the triton package: pip install 'sae-forge[triton]', or use auto")
    if device != "cuda" and not _interpreting():
        raise BackendError(f"backend 'triton' needs tensors on a CUDA GPU and these are on {device}; use auto or cpu")
    if dtype == torch.float64:
        raise BackendError("backend 'triton' sums in float32 and was given float64; use reference")
    return _module("triton_sparse_decode")


def triton_installed() -> bool:
    """Whether the triton package is there to import."""
    return importlib.util.find_spec("triton") is not None


def _interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def _module(name: str) -> _Form:
    return cast("_Form", importlib.import_module(f"sae_forge.kernels.{name}"))


def _check_together(**tensors: Tensor) -> None:
    devices = {name: str(tensor.device) for name, tensor in tensors.items()}
    if len(set(devices.values())) > 1:
        listed = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise BackendError(f"tensors lie on several devices ({listed}); move them to one")


def _check_code(values: Tensor, indices: Tensor) -> None:
    if values.shape != indices.shape:
        raise ConfigError(f"values {list(values.shape)} and indices {list(indices.shape)} must have the same shape")
    if indices.dtype not in (torch.int32, torch.int64):
        raise ConfigError(f"indices are {indices.dtype}; give int32 or int64")


def _check_range(indices: Tensor, d_sae: int) -> None:
    if indices.numel() == 0:
        return
    low, high = (int(end) for end in torch.aminmax(indices))
    if low < 0 or high >= d_sae:
        raise ConfigError(f"index {low if low < 0 else high} names no latent; the SAE has latents 0 to {d_sae - 1}")
