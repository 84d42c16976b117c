"""What a training step hands to the kernels: the latents' rows, what Adam keeps of them, what a batch says about them.

Weights lie latent by latent here, ``W_enc`` transposed, because a latent's gradients are made, and may be applied, by
one program that owns its rows.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

BETAS = (0.9, 0.999)
EPS = 6.25e-10
"""Small, because the gradient of a rarely firing latent is; Gao et al. 2024 (arXiv 2406.04093), appendix A."""


class Slot(NamedTuple):
    """One weight and what Adam keeps of it, all fp32."""

    weight: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    copy: Tensor | None = None
    """The weight in half precision, where products and gathers read that."""

    @property
    def product(self) -> Tensor:
        """What products and gathers read."""
        return self.weight if self.copy is None else self.copy


class Rows(NamedTuple):
    """What the latents own."""

    W_enc: Slot
    """``[d_sae, d_in]``: the transpose of the SAE's."""
    W_dec: Slot
    """``[d_sae, d_in]``, rows of unit norm."""
    b_enc: Slot
    """``[d_sae]``"""


class Slopes(NamedTuple):
    """What a batch says about the latents it fired: per token two rows to add up, per entry their two weights.

    Entries lie ``[tokens, k]``, or flat in the order of their tokens where some have more than others.
    """

    target: Float[Tensor, "tokens d_in"]
    """What the encoder read."""
    residual: Float[Tensor, "tokens d_in"]
    """Decoded minus target."""
    values: Float[Tensor, "*entries"]
    """Weight of the token's residual in the gradient of the latent's row of ``W_dec``."""
    pre_acts: Float[Tensor, "*entries"]
    """Gradient of the pre-act: weight of the token's target in that of ``W_enc``; 0 where the ReLU is shut."""
    indices: Int[Tensor, "*entries"]
    tokens: Int[Tensor, " entries"] | None = None
    """Of flat entries the token of each; None where they lie ``[tokens, k]``."""
    bias: Float[Tensor, "d_sae"] | None = None
    """Each latent's sum of its ``pre_acts``, where it was taken before."""


class Extra(NamedTuple):
    """Dense gradients of a few latents, from AuxK, to be added."""

    row_of: Int[Tensor, "d_sae"]
    """int32: which row below is a latent's, or -1."""
    W_enc: Float[Tensor, "few d_in"]
    W_dec: Float[Tensor, "few d_in"]
    b_enc: Float[Tensor, "few"]


class RowGradients(NamedTuple):
    """Gradients of the latents' weights, fp32, without the part along a row of ``W_dec``."""

    W_enc: Float[Tensor, "d_sae d_in"]
    W_dec: Float[Tensor, "d_sae d_in"]
    b_enc: Float[Tensor, "d_sae"]


class DecodeLoss(NamedTuple):
    """A reconstruction held against what it should be."""

    residual: Float[Tensor, "tokens d_in"]
    """Decoded minus target, in the dtype of the target."""
    squares: Float[Tensor, "tokens"]
    """Squared length of each residual, fp32."""
    dots: Float[Tensor, "tokens k"]
    """Each residual times the rows it was decoded from, fp32: half the gradient of ``squares`` by the values."""


class Rates(NamedTuple):
    """Adam's numbers of one step, each 0-dim fp32 on the device, so that a recorded step can be played with others."""

    lr: Tensor
    step: Tensor
    """Counted from 1."""
    size: Tensor
    """``lr / (1 - beta1 ** step)``"""
    root: Tensor
    """``1 / sqrt(1 - beta2 ** step)``"""
    found_inf: Tensor
    """1.0 where the loss was not finite: nothing is changed."""

    @classmethod
    def at(cls, step: int, lr: float, device: torch.device | str = "cpu") -> "Rates":
        """The numbers of the step with this one-based index, of a loss that is finite."""
        return cls(*(torch.tensor(number, device=device) for number in (*_numbers(step, lr), 0.0)))

    def set(self, step: int, lr: float) -> None:
        """Become the numbers of another step, in place."""
        for tensor, number in zip(self, _numbers(step, lr), strict=False):
            tensor.fill_(number)


def _numbers(step: int, lr: float) -> tuple[float, float, float, float]:
    return lr, float(step), lr / (1 - BETAS[0] ** step), 1 / math.sqrt(1 - BETAS[1] ** step)


def adam_(slots: list[Slot], gradients: list[Tensor], rates: Rates) -> None:
    """Adam on every weight, as ``torch.optim.Adam(fused=True)`` does it; half-precision copies follow."""
    torch._fused_adam_(  # pyright: ignore[reportPrivateImportUsage]
        [slot.weight for slot in slots], gradients,
        [slot.exp_avg for slot in slots], [slot.exp_avg_sq for slot in slots], [], [rates.step] * len(slots),
        lr=rates.lr, beta1=BETAS[0], beta2=BETAS[1], eps=EPS, weight_decay=0.0, amsgrad=False, maximize=False,
        found_inf=rates.found_inf,
    )  # fmt: skip
    for slot in slots:
        if slot.copy is not None:
            slot.copy.copy_(slot.weight)


def adam_rows_(rows: Rows, gradients: RowGradients, rates: Rates) -> None:
    """Adam on what the latents own, then every row of ``W_dec`` back to unit norm."""
    adam_(list(rows), list(gradients), rates)
    weight, copy = rows.W_dec.weight, rows.W_dec.copy
    norms = torch.linalg.vector_norm(weight, dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    weight.div_(torch.where(rates.found_inf > 0, 1.0, norms))
    if copy is not None:
        copy.copy_(weight)


def remove_parallel_(gradient: Float[Tensor, "latents d_in"], W_dec: Float[Tensor, "latents d_in"]) -> None:
    """Take from each row's gradient what would only change the row's length, which is fixed at one."""
    gradient.addcmul_(torch.linalg.vecdot(gradient, W_dec).unsqueeze(1), W_dec, value=-1.0)
