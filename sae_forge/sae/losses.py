"""What an SAE is trained on and judged by: variance left unexplained, and AuxK, which revives dead latents."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_forge.sae.topk import TopKSAE


def fvu(x: Float[Tensor, "tokens d_in"], x_hat: Float[Tensor, "tokens d_in"]) -> Float[Tensor, ""]:
    """Fraction of the batch's variance about its mean that the reconstruction leaves unexplained; 0 is perfect."""
    return (x - x_hat).square().sum() / variance(x)


def variance(x: Float[Tensor, "tokens d_in"]) -> Float[Tensor, ""]:
    """Summed squared distance to the batch mean, kept above zero so that constant input divides."""
    return (x - x.mean(dim=0)).square().sum().clamp_min(torch.finfo(x.dtype).tiny)


def auxk_loss(
    sae: TopKSAE,
    x: Float[Tensor, "tokens d_in"],
    x_hat: Float[Tensor, "tokens d_in"],
    dead: Int[Tensor, "dead"],
) -> Float[Tensor, ""]:
    """Share of the residual's variance that the dead latents alone, their top d_in / 2, leave unexplained.

    Gradients reach the rows and columns of the dead latents only. Dense, but over the dead set alone: gathering
    d_in / 2 rows a token would cost more than the whole step. With fewer dead latents than d_in / 2 the loss fades
    with their number, so the last few are not pushed harder than the many. Acts pass no ReLU here: a latent whose
    pre-acts are all negative would get no gradient and stay dead for good.

    Source: Gao et al. 2024 (arXiv 2406.04093), AuxK; the fading is EleutherAI sparsify's, the missing ReLU SAELens's.
    """
    residual = (x - x_hat).detach()
    kept = min(max(1, sae.d_in // 2), len(dead))
    acts = torch.addmm(sae.b_enc[dead], x - sae.b_dec.detach(), sae.W_enc[:, dead])
    if kept < len(dead):
        top = torch.topk(acts, kept, dim=-1, sorted=False)
        acts = torch.zeros_like(acts).scatter(-1, top.indices, top.values)
    share = (residual - acts @ sae.W_dec[dead]).square().sum() / variance(residual)
    return share * (kept / max(1, sae.d_in // 2))


class FvuMeter:
    """FVU and L0 over many batches as if they were one, summed in float64 on the device of the batches."""

    def __init__(self, d_in: int, device: torch.device | str = "cpu") -> None:
        self.tokens = 0
        self._total = torch.zeros(d_in, dtype=torch.float64, device=device)
        self._residual, self._squares, self._fires = torch.zeros(3, dtype=torch.float64, device=device).unbind()

    def add(
        self, x: Float[Tensor, "tokens d_in"], x_hat: Float[Tensor, "tokens d_in"], values: Float[Tensor, "tokens k"]
    ) -> None:
        """Count one more batch."""
        wide = x.double()
        self.tokens += len(x)
        self._total += wide.sum(dim=0)
        self._residual += (wide - x_hat.double()).square().sum()
        self._squares += wide.square().sum()
        self._fires += (values > 0).sum()

    @property
    def fvu(self) -> float:
        """Fraction of variance unexplained over every token added."""
        spread = self._squares - self._total.square().sum() / self.tokens
        return float(self._residual / spread)

    @property
    def l0(self) -> float:
        """Mean number of latents that fire on a token."""
        return float(self._fires) / self.tokens
