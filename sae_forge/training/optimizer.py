"""How weights move: Adam with a warm-up and a decay, on decoder rows that keep unit norm."""

import math

import torch
from torch import nn

from sae_forge.sae.topk import TopKSAE

BETAS = (0.9, 0.999)
EPS = 6.25e-10
"""Small, because the gradient of a rarely firing latent is; Gao et al. 2024 (arXiv 2406.04093), appendix A."""


def named_weights(sae: TopKSAE) -> dict[str, nn.Parameter]:
    """The trained tensors by the names they have on disk."""
    return {"W_enc": sae.W_enc, "W_dec": sae.W_dec, "b_enc": sae.b_enc, "b_dec": sae.b_dec}


def make_adam(sae: TopKSAE) -> torch.optim.Adam:
    """Adam over all weights with its moments there from the start, at zero."""
    weights = named_weights(sae).values()
    optimizer = torch.optim.Adam(weights, lr=0.0, betas=BETAS, eps=EPS, fused=True)
    for weight in weights:
        optimizer.state[weight] = {
            "step": torch.zeros((), dtype=torch.float32, device=weight.device),
            "exp_avg": torch.zeros_like(weight),
            "exp_avg_sq": torch.zeros_like(weight),
        }
    return optimizer


def default_lr(d_sae: int) -> float:
    """Peak rate for a dictionary of this size; Gao et al. 2024, as EleutherAI sparsify scales it."""
    return 2e-4 / math.sqrt(d_sae / 16_384)


def lr_at(step: int, *, steps: int, peak: float, warmup: float, decay: float) -> float:
    """Learning rate of the step with this zero-based index: up, level, down; above 0 at every step.

    Args:
        warmup: Share of the steps spent rising.
        decay: Share of the steps spent falling, at the end.
    """
    rising = (step + 1) / max(1.0, warmup * steps)
    falling = (steps - step) / max(1.0, decay * steps)
    return peak * min(1.0, rising, falling)


@torch.no_grad()
def remove_parallel_gradient_(sae: TopKSAE) -> None:
    """Take from each decoder row's gradient what would only change its length, which is fixed at one."""
    grad = sae.W_dec.grad
    if grad is not None:
        along = torch.linalg.vecdot(grad, sae.W_dec).unsqueeze(1)
        grad.addcmul_(along, sae.W_dec, value=-1.0)


@torch.no_grad()
def normalise_rows_(sae: TopKSAE) -> None:
    """Bring every decoder row back to unit norm."""
    sae.W_dec.div_(sae.W_dec.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny))
