"""Sparse decode and top-k encode as autograd knows them, whatever form of the kernels does the sums."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sae_forge.kernels.rows import DecodeLoss, Extra, Rates, RowGradients, Rows, Slopes
from sae_forge.kernels.transpose import Transpose, transpose

Encode = Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]


class Form(Protocol):
    """What the module of a backend offers; beside these a top-k, which dense products have no use for."""

    def decode(self, values: Tensor, indices: Tensor, W_dec: Tensor) -> Tensor: ...
    def value_grad(self, grad: Tensor, indices: Tensor, W_dec: Tensor) -> Tensor: ...
    def weight_grad(self, rows: Tensor, values: Tensor, indices: Tensor, table: Transpose) -> Tensor: ...
    def latent_sums(self, values: Tensor, indices: Tensor, table: Transpose) -> Tensor: ...
    def decode_loss(self, values: Tensor, indices: Tensor, W_dec: Tensor, target: Tensor) -> DecodeLoss: ...
    def row_gradients(self, slopes: Slopes, table: Transpose, rows: Rows, extra: Extra | None) -> RowGradients: ...
    def rows_adam(self, slopes: Slopes, table: Transpose, rows: Rows, rates: Rates, extra: Extra | None) -> None: ...


class SparseDecode(torch.autograd.Function):
    """Rows of the dictionary, weighed and summed; gradients of the values and of the rows."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, indices: Tensor, W_dec: Tensor, form: Form) -> Tensor:
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
            table = transpose(indices, len(W_dec))
            for_weights = ctx.form.weight_grad(grad, values, indices, table).to(W_dec.dtype)
        return for_values, None, for_weights, None


class TopKEncode(torch.autograd.Function):
    """The k largest pre-acts after ReLU; every gradient is a sum over the k kept latents."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor | None, k: int, form: Form, encode: Encode
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        centred = x if b_dec is None else x - b_dec
        values, indices = encode(centred, W_enc, b_enc, k)
        values.relu_()
        ctx.mark_non_differentiable(indices)
        ctx.save_for_backward(centred, W_enc, values, indices)
        ctx.form = form
        return values, indices

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        centred, W_enc, values, indices = ctx.saved_tensors
        table = transpose(indices, W_enc.shape[1])
        slope = grad * (values > 0)  # through the ReLU
        bias = ctx.form.latent_sums(slope, indices, table).to(W_enc.dtype)
        for_x = for_weights = for_centre = None
        if ctx.needs_input_grad[0]:
            for_x = ctx.form.decode(slope, indices, W_enc.T.contiguous())
        if ctx.needs_input_grad[1]:
            for_weights = ctx.form.weight_grad(centred, slope, indices, table).to(W_enc.dtype).T
        if ctx.needs_input_grad[3]:  # every token is centred by the same b_dec: one mat-vec, no sum over tokens
            for_centre = -(W_enc @ bias)
        return for_x, for_weights, bias, for_centre, None, None, None
