"""Dense products, of which the encoder's is the one part of a step that is as large as it looks."""

from functools import cache
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor


def affine(
    x: Float[Tensor, "tokens d_in"], W_enc: Float[Tensor, "d_in d_sae"], b_enc: Float[Tensor, "d_sae"]
) -> Float[Tensor, "tokens d_sae"]:
    """``x @ W_enc + b_enc``.

    torch multiplies fp32 matrices with MKL, which keeps its AVX-512 code to Intel's processors. On others oneDNN, which
    torch brings too, took 0.5 times as long (AMD Zen 5, tokens=2048 d_in=512 d_sae=4096).
    """
    if x.dtype == torch.float32 and x.device.type == "cpu" and W_enc.T.is_contiguous() and _onednn_is_faster():
        return torch.ops.mkldnn._linear_pointwise(x.contiguous(), W_enc.T, b_enc, "none", [], "")
    return torch.addmm(b_enc, x, W_enc)


def product(a: Float[Tensor, "rows inner"], b: Float[Tensor, "inner columns"]) -> Float[Tensor, "rows columns"]:
    """``a @ b``, by the library that is faster here."""
    if a.dtype == torch.float32 and a.device.type == "cpu" and _onednn_is_faster():
        return torch.ops.mkldnn._linear_pointwise(a.contiguous(), b.T.contiguous(), None, "none", [], "")
    return a @ b


@cache
def _onednn_is_faster() -> bool:
    """Asked of the processor and not of a clock, so that the same machine gives the same bits."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    about = Path("/proc/cpuinfo")
    text = about.read_text(encoding="ascii", errors="replace") if about.exists() else ""
    return "avx512f" in text and "GenuineIntel" not in text
