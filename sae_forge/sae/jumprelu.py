"""The JumpReLU sparse autoencoder of Gemma Scope: a latent is silent until it passes a threshold of its own.

Source: Rajamanoharan et al. 2024 (arXiv 2407.14435) for the activation; Lieberum et al. 2024 (arXiv 2408.05147) for
the release, whose encoder reads ``x`` itself: ``b_dec`` is not taken off first, as TopK SAEs do.
"""

from collections.abc import Sequence

import torch
from einops import rearrange, unpack
from jaxtyping import Float, Int
from torch import Tensor, nn

from sae_forge.config.train import Backend
from sae_forge.errors import ConfigError
from sae_forge.kernels.dispatch import sparse_decode
from sae_forge.sae.dictionary import LatentActs

PRE_ACTS_AT_ONCE = 2**25
"""Pre-activations that exist at once, 128 MB in fp32: 2,048 tokens of a dictionary of 16,384."""


class JumpReLUSAE(nn.Module):
    """``x_hat = b_dec + acts @ W_dec``, where ``acts = pre_acts`` above ``threshold`` and above 0, and 0 elsewhere.

    ``pre_acts = x @ W_enc + b_enc``. Weights are fp32, ask for no gradient, and lie as Gemma Scope orients them; in
    memory ``W_enc`` is held latent by latent, so that a few latents are read without the others.
    """

    def __init__(
        self,
        W_enc: Float[Tensor, "d_in d_sae"],
        b_enc: Float[Tensor, "d_sae"],
        W_dec: Float[Tensor, "d_sae d_in"],
        b_dec: Float[Tensor, "d_in"],
        threshold: Float[Tensor, "d_sae"],
        *,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        self.d_in, self.d_sae = W_enc.shape
        self.backend: Backend = backend
        self.W_enc = _frozen(W_enc.float().T.contiguous().T)
        self.b_enc = _frozen(b_enc.float())
        self.W_dec = _frozen(W_dec.float())
        self.b_dec = _frozen(b_dec.float())
        self.threshold = _frozen(threshold.float())

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> LatentActs:
        """Every latent that fires on each token; as many columns as the token with the most needs, the rest zeros.

        The pre-activations of at most ``PRE_ACTS_AT_ONCE`` / d_sae tokens exist at once.
        """
        self._require_width(x)
        flat = rearrange(x, "... d_in -> (...) d_in").to(self.W_enc.dtype)
        parts = [self._firing(rows) for rows in flat.split(max(1, PRE_ACTS_AT_ONCE // self.d_sae))]
        counts, latents, values = (torch.cat(column) for column in zip(*parts, strict=True))
        columns = max(1, int(counts.max())) if len(counts) else 1
        places = torch.arange(columns, device=flat.device) < counts[:, None]  # tokens columns
        packed_values = flat.new_zeros(len(flat), columns).masked_scatter(places, values)
        packed_latents = latents.new_zeros(len(flat), columns).masked_scatter(places, latents)
        return LatentActs(
            *(unpack(packed, [x.shape[:-1]], "* columns")[0] for packed in (packed_values, packed_latents))
        )

    def decode(self, acts: LatentActs) -> Float[Tensor, "*batch d_in"]:
        """The reconstruction these acts stand for."""
        return sparse_decode(acts.values, acts.indices, self.W_dec, backend=self.backend) + self.b_dec

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """The reconstruction of each token, in fp32."""
        return self.reconstruct(x)[0]

    def reconstruct(self, x: Float[Tensor, "*batch d_in"]) -> tuple[Float[Tensor, "*batch d_in"], LatentActs]:
        """The reconstruction of each token and the acts behind it."""
        acts = self.encode(x)
        return self.decode(acts), acts

    def pre_acts(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """What every latent answers before its threshold; d_sae numbers a token, so for few tokens at a time."""
        self._require_width(x)
        return x.to(self.W_enc.dtype) @ self.W_enc + self.b_enc

    def activated(self, pre_acts: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        """The dense acts: pre-acts above threshold and 0, and 0 elsewhere."""
        return _jump(pre_acts, self.threshold)

    def latent_acts(self, x: Float[Tensor, "*batch d_in"], latents: Int[Tensor, "n"]) -> Float[Tensor, "*batch n"]:
        """Acts of the chosen latents alone, in the order given; the other latents' weights are not read."""
        self._require_width(x)
        pre_acts = nn.functional.linear(x.to(self.W_enc.dtype), self.W_enc.T[latents], self.b_enc[latents])
        return _jump(pre_acts, self.threshold[latents])

    def cut(self, latents: Sequence[int]) -> "JumpReLUSAE":
        """Some of its latents, in the order given, as an SAE of their own; acts and rows are the same to the bit."""
        places = torch.tensor(latents, dtype=torch.long, device=self.b_dec.device)
        W_enc, b_enc, threshold = self.W_enc[:, places], self.b_enc[places], self.threshold[places]
        return JumpReLUSAE(W_enc, b_enc, self.W_dec[places], self.b_dec, threshold, backend=self.backend)

    def _firing(self, x: Float[Tensor, "tokens d_in"]) -> tuple[Tensor, Tensor, Tensor]:
        """Of each token the number of latents that fire; then which they are and their acts, token by token."""
        acts = _jump(torch.addmm(self.b_enc, x, self.W_enc), self.threshold)
        fires = acts > 0
        return fires.sum(dim=-1), fires.nonzero()[:, 1], acts[fires]

    def _require_width(self, x: Tensor) -> None:
        if x.shape[-1] != self.d_in:
            raise ConfigError(f"the activations are {x.shape[-1]} wide, but the SAE reads {self.d_in}")


def _jump(pre_acts: Float[Tensor, "*batch n"], threshold: Float[Tensor, "n"]) -> Float[Tensor, "*batch n"]:
    return torch.where(pre_acts > threshold.clamp_min(0), pre_acts, 0.0)


def _frozen(weights: Tensor) -> nn.Parameter:
    return nn.Parameter(weights, requires_grad=False)
