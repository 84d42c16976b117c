"""The definitions: plain torch, differentiated by autograd, short enough to check by eye.

Every other backend is right when it agrees with this file. It forms what the fast forms avoid (a k × d_in block per
token, the d_sae-wide code and its dense gradients), so it is for small sizes and for checking.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def sparse_decode(
    values: Float[Tensor, "tokens k"], indices: Int[Tensor, "tokens k"], W_dec: Float[Tensor, "d_sae d_in"]
) -> Float[Tensor, "tokens d_in"]:
    """The sum of the named decoder rows, each times its value."""
    rows = W_dec[indices]  # tokens k d_in
    return (values.to(W_dec.dtype).unsqueeze(-1) * rows).sum(dim=-2)


def topk_encode(
    centred: Float[Tensor, "tokens d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, "d_sae"],
    k: int,
) -> tuple[Float[Tensor, "tokens k"], Int[Tensor, "tokens k"]]:
    """The k largest pre-activations of each token, negative ones cut to zero, and where they are."""
    values, indices = torch.topk(centred @ W_enc + b_enc, k, dim=-1, sorted=False)
    return values.relu(), indices
