"""The Triton form: every operation of a backend, each from the module of its kernels."""

from sae_forge.kernels.triton_centred import centred
from sae_forge.kernels.triton_decode_loss import decode_loss
from sae_forge.kernels.triton_rows import latent_sums, row_gradients, rows_adam, weight_grad
from sae_forge.kernels.triton_sparse_decode import decode, value_grad
from sae_forge.kernels.triton_sum_of_rows import sum_of_rows
from sae_forge.kernels.triton_topk import topk
from sae_forge.kernels.triton_tuning import MAX_K

__all__ = [
    "MAX_K",
    "centred",
    "decode",
    "decode_loss",
    "latent_sums",
    "row_gradients",
    "rows_adam",
    "sum_of_rows",
    "topk",
    "value_grad",
    "weight_grad",
]
