"""What the kernels compute, in float64 on a sample of tokens or latents: what every number of a benchmark rests on."""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from sae_forge.kernels.rows import BETAS, EPS, DecodeLoss, Rates, RowGradients, Rows, Slopes, Slot

SAMPLE = 64
"""Tokens or latents looked at."""


class Bound(NamedTuple):
    """How far a result may be from float64, in relative norm, with fp32 and with bf16 operands."""

    fp32: float
    bf16: float

    def of(self, half: bool) -> float:
        return self.bf16 if half else self.fp32


DECODED = Bound(2e-6, 5e-3)
"""A reconstruction or what is left over, stored in the dtype of the products."""
SUMMED = Bound(5e-6, 5e-3)
"""Sums kept in fp32. With bf16, what is left over may be rounded before they are taken."""
GRADIENT = Bound(5e-6, 1e-5)
"""Operands are given as they are, so only the summing is left."""
WEIGHT = Bound(1e-6, 1e-6)
COPY = Bound(4e-3, 4e-3)
"""A weight in bf16, however it is rounded; a copy that was not renewed is farther off."""


def sample(count: int, device: torch.device) -> Tensor:
    """Numbers below ``count``, first and last among them."""
    return torch.linspace(0, count - 1, min(SAMPLE, count), device=device).round().long()


def apart(found: Tensor, exact: Tensor) -> float:
    """Relative norm of the difference; infinite where something is not finite."""
    difference = (found.double() - exact.double()).norm() / exact.double().norm().clamp_min(1e-300)
    return float(torch.nan_to_num(difference, nan=torch.inf))


def decode(values: Tensor, indices: Tensor, W_dec: Tensor, tokens: Tensor) -> Tensor:
    """Reconstructions of these tokens."""
    return (values[tokens].double().unsqueeze(-1) * W_dec[indices[tokens].long()].double()).sum(dim=1)


def decode_loss_error(
    found: DecodeLoss, values: Tensor, indices: Tensor, W_dec: Tensor, target: Tensor, tokens: Tensor
) -> dict[str, float]:
    """How far each part is from float64."""
    residual = decode(values, indices, W_dec, tokens) - target[tokens].double()
    dots = (W_dec[indices[tokens].long()].double() @ residual.unsqueeze(-1)).squeeze(-1)
    exact = (residual, residual.square().sum(dim=1), dots)
    return {name: apart(part[tokens], true) for name, part, true in zip(found._fields, found, exact, strict=True)}


def topk_wrong(pre_acts: Tensor, k: int, values: Tensor, indices: Tensor) -> int:
    """Rows that are not the top k: a number not where it is said to be, or an equal one of a lower latent left out."""
    true = torch.sort(pre_acts, dim=1, descending=True, stable=True).indices[:, :k]
    where = indices.long()
    same = (where.sort(dim=1).values == true.sort(dim=1).values).all(dim=1)
    return int((~(same & (pre_acts.gather(1, where) == values).all(dim=1))).sum())


def sums(weights: Tensor, rows: Tensor | None, indices: Tensor, latents: Tensor, d_sae: int) -> Tensor:
    """For each of these latents the sum over its entries of weight × the token's row, or of the weights alone."""
    place = torch.full((d_sae,), -1, device=latents.device)
    place[latents] = torch.arange(len(latents), device=latents.device)
    owner = place[indices.long()].flatten()
    entries = torch.nonzero(owner >= 0).squeeze(1)
    taken = weights.flatten()[entries].double()
    if rows is None:
        return taken.new_zeros(len(latents)).index_add_(0, owner[entries], taken)
    token = entries.div(indices.shape[1], rounding_mode="floor")
    zeros = taken.new_zeros(len(latents), rows.shape[1])
    return zeros.index_add_(0, owner[entries], taken.unsqueeze(1) * rows[token].double())


def gradients(slopes: Slopes, rows: Rows, latents: Tensor) -> RowGradients:
    """Gradients of what these latents own, in float64."""
    of = partial(sums, indices=slopes.indices, latents=latents, d_sae=len(rows.b_enc.weight))
    W_dec = of(slopes.values, slopes.residual)
    directions = rows.W_dec.weight[latents].double()
    W_dec -= (W_dec * directions).sum(dim=1, keepdim=True) * directions
    return RowGradients(of(slopes.pre_acts, slopes.target), W_dec, of(slopes.pre_acts, None))


def sampled(slopes: Slopes, d_sae: int) -> Tensor:
    """Latents to look at: spread over all, and the one that fired most."""
    most = torch.bincount(slopes.indices.flatten(), minlength=d_sae).argmax()
    return torch.cat([sample(d_sae, most.device), most.unsqueeze(0)]).unique()


class Held(NamedTuple):
    """Some latents' rows before a step, in float64."""

    latents: Tensor
    rows: Rows


def hold(rows: Rows, latents: Tensor) -> Held:
    """Keep what these latents own."""
    return Held(latents, Rows(*(_wide(slot, latents) for slot in rows)))


def adam_error(before: Held, after: Rows, slopes: Slopes, rates: Rates) -> dict[str, float]:
    """How far a step's weights and the gradients that its first moments tell of are from float64."""
    held, latents = before.rows, before.latents
    found: dict[str, float] = {}
    taken = gradients(slopes, _whole(after, held, latents), latents)
    for name, slot, gradient in zip(Rows._fields, held, taken, strict=True):
        mean = BETAS[0] * slot.exp_avg + (1 - BETAS[0]) * gradient
        square = BETAS[1] * slot.exp_avg_sq + (1 - BETAS[1]) * gradient.square()
        weight = slot.weight - float(rates.size) * mean / (square.sqrt() * float(rates.root) + EPS)
        if name == "W_dec":
            weight /= weight.norm(dim=1, keepdim=True)
        now: Slot = getattr(after, name)
        moved = (now.exp_avg[latents].double() - BETAS[0] * slot.exp_avg) / (1 - BETAS[0])
        found[f"gradient of {name}"] = apart(moved, gradient)
        found[f"second moment of {name}"] = apart(now.exp_avg_sq[latents], square)
        found[name] = apart(now.weight[latents], weight)
        if now.copy is not None:
            found[f"copy of {name}"] = apart(now.copy[latents], now.weight[latents])
    return found


def adam_bound(name: str, half: bool) -> float:
    """What :func:`adam_error` may find under this name."""
    bound = WEIGHT if name in Rows._fields else COPY if name.startswith("copy") else GRADIENT
    return bound.of(half)


def _wide(slot: Slot, latents: Tensor) -> Slot:
    return Slot(*(tensor[latents].double() for tensor in slot[:3]))


def _whole(after: Rows, held: Rows, latents: Tensor) -> Rows:
    """All directions, those of the sample as they were: the parallel part is taken along the old ones."""
    directions = after.W_dec.weight.clone()
    directions[latents] = held.W_dec.weight.to(directions.dtype)
    return after._replace(W_dec=after.W_dec._replace(weight=directions))
