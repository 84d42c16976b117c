"""One training problem for every method: the same sizes, the same first weights, the same made-up activations.

An activation is a sparse sum of true directions plus noise. Few directions are common and many are rare, as the
features of a language model are, so latents fire as unevenly as they do in earnest.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

ACTIVE = 24
"""True directions in one activation."""
NOISE = 0.2
"""Share of an activation's norm that no direction explains."""
DEAD_BIAS = -8.0
"""Keeps a latent out of every top k: standard deviations of a pre-act below the others."""


class Sizes(NamedTuple):
    """Tokens a step, width, latents, latents a token."""

    tokens: int
    d_in: int
    d_sae: int
    k: int

    def __str__(self) -> str:
        return f"N={self.tokens} d={self.d_in} m={self.d_sae} k={self.k}"


CASES = {
    "small": Sizes(2048, 512, 4096, 32),
    "mid": Sizes(4096, 768, 12288, 32),
    "gemma": Sizes(8192, 2304, 16384, 32),
    "llama": Sizes(8192, 4096, 32768, 32),
}


class Weights(NamedTuple):
    """An SAE as SAELens and Gemma Scope orient it."""

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor


class Problem(NamedTuple):
    """What every method is given."""

    sizes: Sizes
    lr: float
    device: torch.device
    half: bool
    """Whether products are made in bf16."""
    dead: Tensor | None
    """Latents that count as dead, which turns AuxK on."""
    batches: list[Tensor]
    """Taken in turn."""

    def weights(self, seed: int = 1) -> Weights:
        """Random unit rows with the encoder tied to them; dead latents are biased out of every top k."""
        _, d_in, d_sae, _ = self.sizes
        W_dec = _unit_rows(d_sae, d_in, seed, self.device)
        b_enc = torch.zeros(d_sae, device=self.device)
        if self.dead is not None:
            b_enc[self.dead] = DEAD_BIAS
        b_dec = self.batches[0].float().mean(dim=0)
        return Weights(W_dec.T.clone(), b_enc, W_dec, b_dec)


def problem(
    sizes: Sizes,
    *,
    device: torch.device,
    lr: float = 5e-4,
    half: bool = False,
    dead_share: float = 0.0,
    batches: int = 8,
) -> Problem:
    """The problem of these sizes; a batch is fp32, or bf16 where products are.

    Args:
        dead_share: Share of the latents that are dead, spread evenly.
    """
    count = round(dead_share * sizes.d_sae)
    dead = torch.arange(count, device=device) * (sizes.d_sae // count) if count else None
    directions = _unit_rows(sizes.d_sae, sizes.d_in, 7, device)
    drawn = [_batch(directions, sizes, seed).to(torch.bfloat16 if half else torch.float32) for seed in range(batches)]
    return Problem(sizes, lr, device, half, dead, drawn)


def fired(sizes: Sizes, device: torch.device, seed: int = 3) -> Tensor:
    """Indices ``[tokens, k]`` that a TopK could give: distinct in a row, some latents far more common than others."""
    draw = torch.Generator(device).manual_seed(seed)
    noise = torch.rand(sizes.tokens, sizes.d_sae, generator=draw, device=device).clamp_(1e-9, 1 - 1e-9)
    # Gumbel noise on log frequencies draws without replacement.
    noise.log_().neg_().log_().neg_().add_(_frequencies(sizes.d_sae, device).log())
    return torch.topk(noise, sizes.k, dim=1, sorted=False).indices


def _batch(directions: Tensor, sizes: Sizes, seed: int) -> Tensor:
    """Activations of about unit variance in each of ``d_in`` places."""
    device = directions.device
    draw = torch.Generator(device).manual_seed(100 + seed)
    frequencies = _frequencies(sizes.d_sae, device)
    chosen = torch.multinomial(frequencies, sizes.tokens * ACTIVE, replacement=True, generator=draw)
    chosen = chosen.view(sizes.tokens, ACTIVE)
    strength = torch.randn(sizes.tokens, ACTIVE, generator=draw, device=device).exp_()
    x = functional.embedding_bag(chosen, directions, mode="sum", per_sample_weights=strength)
    x = x * (math.sqrt(sizes.d_in) / x.norm(dim=1).mean())
    return x.add_(torch.randn(x.shape, generator=draw, device=device), alpha=NOISE)


def _frequencies(d_sae: int, device: torch.device) -> Tensor:
    """Zipf's law with a flat head; which direction is common has nothing to do with its place."""
    ranks = torch.randperm(d_sae, generator=torch.Generator().manual_seed(5)).to(device)
    return 1.0 / (ranks + 20.0)


def _unit_rows(rows: int, width: int, seed: int, device: torch.device) -> Tensor:
    drawn = torch.randn(rows, width, generator=torch.Generator(device).manual_seed(seed), device=device)
    return drawn / drawn.norm(dim=1, keepdim=True)
