"""The TopK sparse autoencoder: a token is rebuilt from the k latents that answer to it most."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sae_forge.config.train import Backend
from sae_forge.errors import ConfigError
from sae_forge.kernels.dispatch import sparse_decode, topk_encode
from sae_forge.sae.dictionary import LatentActs, acts_of


class TopKSAE(nn.Module):
    """``x_hat = b_dec + sum over the k largest of relu((x - b_dec) @ W_enc + b_enc) times its row of W_dec``.

    Weights are fp32 and lie as SAELens and Gemma Scope orient them; a row of ``W_dec`` is a latent's direction. In
    memory ``W_enc`` is held latent by latent, the order in which its sparse gradient is made.
    """

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        k: int,
        *,
        seed: int | None = 0,
        backend: Backend = "auto",
        product_dtype: torch.dtype | None = None,
    ) -> None:
        """Random unit rows of ``W_dec``, ``W_enc`` tied to them, biases at zero.

        Args:
            seed: Of the random rows; None leaves every weight at zero, to be filled.
            product_dtype: Precision of encoder and decoder products (None: that of the weights).
        """
        super().__init__()
        if not 1 <= k <= d_sae:
            raise ConfigError(f"k={k} latents per token, but the SAE has only d_sae={d_sae}")
        self.d_in, self.d_sae, self.k = d_in, d_sae, k
        self.backend: Backend = backend
        self.product_dtype = product_dtype
        self.W_dec = nn.Parameter(_unit_rows(d_sae, d_in, seed))
        self.W_enc = nn.Parameter(self.W_dec.detach().clone().T)
        self.b_enc = nn.Parameter(torch.zeros(d_sae))
        self.b_dec = nn.Parameter(torch.zeros(d_in))

    @classmethod
    def from_weights(
        cls,
        W_enc: Float[Tensor, "d_in d_sae"],
        b_enc: Float[Tensor, "d_sae"],
        W_dec: Float[Tensor, "d_sae d_in"],
        b_dec: Float[Tensor, "d_in"],
        k: int,
    ) -> "TopKSAE":
        """An SAE that owns fp32 copies of these weights, on the CPU."""
        sae = cls(W_enc.shape[0], W_enc.shape[1], k, seed=None)
        with torch.no_grad():
            for parameter, weights in ((sae.W_enc, W_enc), (sae.b_enc, b_enc), (sae.W_dec, W_dec), (sae.b_dec, b_dec)):
                parameter.copy_(weights)
        return sae

    @classmethod
    def holding(
        cls,
        encoders: Float[Tensor, "d_sae d_in"],
        b_enc: Float[Tensor, "d_sae"],
        W_dec: Float[Tensor, "d_sae d_in"],
        b_dec: Float[Tensor, "d_in"],
        k: int,
    ) -> "TopKSAE":
        """An SAE for use whose weights are these very fp32 tensors; the encoder is given latent by latent."""
        with torch.device("meta"):
            sae = cls(encoders.shape[1], encoders.shape[0], k, seed=None)
        for name, weights in (("W_enc", encoders.T), ("b_enc", b_enc), ("W_dec", W_dec), ("b_dec", b_dec)):
            setattr(sae, name, nn.Parameter(weights, requires_grad=False))
        return sae

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> LatentActs:
        """The k latents that answer most to each token, with their acts."""
        values, indices = topk_encode(
            x, self.W_enc, self.b_enc, self.b_dec, self.k, backend=self.backend, product_dtype=self.product_dtype
        )
        return LatentActs(values, indices)

    def decode(self, acts: LatentActs) -> Float[Tensor, "*batch d_in"]:
        """The reconstruction these acts stand for."""
        return self._decode(acts, trusted=False)

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """The reconstruction of each token, in fp32."""
        return self.reconstruct(x)[0]

    def reconstruct(self, x: Float[Tensor, "*batch d_in"]) -> tuple[Float[Tensor, "*batch d_in"], LatentActs]:
        """The reconstruction of each token and the acts behind it."""
        acts = self.encode(x)
        return self._decode(acts, trusted=True), acts

    def pre_acts(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """What every latent answers before TopK; d_sae numbers a token, so for few tokens at a time."""
        return (x.to(self.W_enc.dtype) - self.b_dec) @ self.W_enc + self.b_enc

    def activated(self, pre_acts: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        """The dense acts: the k largest pre-acts of each token where above 0, and 0 elsewhere."""
        values, places = pre_acts.relu().topk(self.k, dim=-1)
        return torch.zeros_like(pre_acts).scatter(-1, places, values)

    def latent_acts(self, x: Float[Tensor, "*batch d_in"], latents: Int[Tensor, "n"]) -> Float[Tensor, "*batch n"]:
        """Acts of the chosen latents, zero where one is not among the token's top k.

        Args:
            latents: Distinct latents, in ``[0, d_sae)``; the result has their order.
        """
        return self.chosen(self.encode(x), latents)

    def chosen(self, acts: LatentActs, latents: Int[Tensor, "n"]) -> Float[Tensor, "*batch n"]:
        """Of encoded tokens the acts of the chosen latents, as :meth:`latent_acts` gives them."""
        return acts_of(acts, latents, self.d_sae)

    def folded(self, scale: float) -> "TopKSAE":
        """The SAE that does to ``x`` what this one does to ``scale * x``, with acts and output in the units of ``x``.

        Exact, because TopK keeps its choice when every pre-act is scaled alike; the two weight matrices stay.
        """
        return self.from_weights(self.W_enc, self.b_enc / scale, self.W_dec, self.b_dec / scale, self.k)

    def _decode(self, acts: LatentActs, *, trusted: bool) -> Float[Tensor, "*batch d_in"]:
        table = self.W_dec if self.product_dtype is None else self.W_dec.to(self.product_dtype)
        decoded = sparse_decode(acts.values, acts.indices, table, backend=self.backend, trusted=trusted)
        return decoded.to(self.b_dec.dtype) + self.b_dec


def _unit_rows(rows: int, width: int, seed: int | None) -> Float[Tensor, "rows width"]:
    if seed is None:
        return torch.zeros(rows, width)
    drawn = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    return drawn / drawn.norm(dim=1, keepdim=True)
