"""The GroupMax sparse autoencoder of sparsify: of each run of neighbouring latents the largest one fires."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sae_forge.config.train import Backend
from sae_forge.errors import ConfigError
from sae_forge.kernels.dispatch import sparse_decode
from sae_forge.sae.dictionary import LatentActs, acts_of


class GroupMaxSAE(nn.Module):
    """``x_hat = b_dec + acts @ W_dec``; latents stand in ``k`` runs, and of each the largest ``relu(pre_act)`` is kept.

    ``pre_acts = x @ W_enc + b_enc``. Weights are fp32 and ask for no gradient.
    """

    def __init__(
        self,
        encoders: Float[Tensor, "d_sae d_in"],
        b_enc: Float[Tensor, "d_sae"],
        W_dec: Float[Tensor, "d_sae d_in"],
        b_dec: Float[Tensor, "d_in"],
        k: int,
        *,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        self.d_sae, self.d_in = encoders.shape
        if not 1 <= k <= self.d_sae or self.d_sae % k:
            raise ConfigError(f"k={k} runs of equal length cannot be made of d_sae={self.d_sae} latents")
        self.k = k
        self.backend: Backend = backend
        self.W_enc = nn.Parameter(encoders.T, requires_grad=False)
        self.b_enc = nn.Parameter(b_enc, requires_grad=False)
        self.W_dec = nn.Parameter(W_dec, requires_grad=False)
        self.b_dec = nn.Parameter(b_dec, requires_grad=False)

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> LatentActs:
        """The largest latent of each run, with its act."""
        acts = (x.to(self.W_enc.dtype) @ self.W_enc + self.b_enc).relu()
        values, places = acts.unflatten(-1, (self.k, self.d_sae // self.k)).max(dim=-1)
        return LatentActs(values, places + torch.arange(0, self.d_sae, self.d_sae // self.k, device=places.device))

    def decode(self, acts: LatentActs) -> Float[Tensor, "*batch d_in"]:
        """The reconstruction these acts stand for."""
        return sparse_decode(acts.values, acts.indices, self.W_dec, backend=self.backend) + self.b_dec

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """The reconstruction of each token, in fp32."""
        return self.decode(self.encode(x))

    def latent_acts(self, x: Float[Tensor, "*batch d_in"], latents: Int[Tensor, "n"]) -> Float[Tensor, "*batch n"]:
        """Acts of the chosen latents, zero where one is not the largest of its run."""
        return acts_of(self.encode(x), latents, self.d_sae)
