"""The fast CPU forms, from torch's own embedding-bag kernels: a bag of weighted rows is a sparse product.

Measured on 2 cores, fp32, tokens=2048 d_in=512 d_sae=4096 k=32: the decode takes 2.5 ms and the weight gradient
3.8 ms, where one dense product takes 41 ms. ``aten::_embedding_bag_dense_backward`` gives that gradient to the
same bit in 9.2 ms, so the transposed bag below replaces it.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from sae_forge.kernels.transpose import transpose


def decode(
    values: Float[Tensor, "tokens k"], indices: Int[Tensor, "tokens k"], W_dec: Float[Tensor, "d_sae d_in"]
) -> Float[Tensor, "tokens d_in"]:
    """The forward pass: one bag of decoder rows per token."""
    table = _wide(W_dec)
    bags = functional.embedding_bag(indices, table, mode="sum", per_sample_weights=values.to(table.dtype))
    return bags.to(W_dec.dtype)


def value_grad(
    grad: Float[Tensor, "tokens d_in"], indices: Int[Tensor, "tokens k"], W_dec: Float[Tensor, "d_sae d_in"]
) -> Float[Tensor, "tokens k"]:
    """Gradient of the values: the dot product of each named row with its token's output gradient."""
    tokens, k = indices.shape
    flat = indices.reshape(-1)
    starts = torch.arange(0, tokens * k, k, dtype=flat.dtype)
    token_of = torch.arange(tokens, dtype=flat.dtype).repeat_interleave(k)
    dots = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        _wide(grad).contiguous(), _wide(W_dec), flat, starts, token_of, 0
    )
    return dots.view(tokens, k)


def weight_grad(
    rows: Float[Tensor, "tokens d_in"], values: Float[Tensor, "tokens k"], indices: Int[Tensor, "tokens k"], d_sae: int
) -> Float[Tensor, "d_sae d_in"]:
    """For each latent, the sum over its tokens of value × row: one bag of tokens per latent."""
    rows = _wide(rows)
    entries, offsets = transpose(indices, d_sae)
    weights = values.reshape(-1)[entries].to(rows.dtype)
    tokens = entries.div(indices.shape[1], rounding_mode="floor")
    return functional.embedding_bag(tokens, rows, offsets[:-1], mode="sum", per_sample_weights=weights)


def latent_sums(
    values: Float[Tensor, "tokens k"], indices: Int[Tensor, "tokens k"], d_sae: int
) -> Float[Tensor, "d_sae"]:
    """For each latent, the sum of its values: the gradient of ``b_enc``."""
    values = _wide(values)
    return values.new_zeros(d_sae).index_add_(0, indices.reshape(-1), values.reshape(-1))


def _wide(tensor: Tensor) -> Tensor:
    """At least fp32: half-precision sums would lose what the reference keeps."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
