"""BatchTopK: of a batch of N tokens the k·N largest pre-activations fire, so a token has k in the mean and as many as
it needs. Source: Bussmann et al. 2024 (arXiv 2412.06410); SAELens and dictionary_learning for the threshold.

Which of a token's latents fire must not hang on its company when the SAE is used. So training keeps a running estimate
of the least act that fires, and the SAE is saved as a JumpReLU with that threshold for every latent.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_forge.config.train import TrainConfig
from sae_forge.kernels.dispatch import encode_above
from sae_forge.sae.jumprelu import JumpReLUSAE
from sae_forge.sae.topk import TopKSAE
from sae_forge.training.architectures.architecture import TrainedArchitecture
from sae_forge.training.code import Code, target_of
from sae_forge.training.plan import Plan
from sae_forge.training.state import TrainState

RATE = 0.01
"""Weight of a step in the running threshold, as in SAELens. In the first thousand steps it is more, 10 over the steps
taken: acts still change, and a beginning at 0, as there, would weigh on the threshold for hundreds of steps."""
MARGIN = 0.9
"""Candidates lie above this share of the running threshold: below what the next batch will ask for, and still few."""
SAMPLE = 256
"""Tokens from which the very first bound is guessed."""


class _Candidates(NamedTuple):
    """Pre-acts of one part that may be among the largest; flat, in rising order of tokens."""

    values: Float[Tensor, " entries"]
    tokens: Int[Tensor, " entries"]
    latents: Int[Tensor, " entries"]


def _encode(
    state: TrainState, parts: Sequence[Float[Tensor, "part d_in"]], plan: Plan, beside: Tensor | None = None
) -> Iterator[Code]:
    """The choice is one over all parts and ranks, so every part is encoded before the first is given out."""
    del beside  # the parts were encoded long before they are given out, and all of these would have to be held
    candidates, wanted = _candidates(state, parts, plan)
    kept, least = _largest(candidates, wanted, [len(part) for part in parts], plan)
    _follow(state, least)
    for part, (values, tokens, latents), mask in zip(parts, candidates, kept, strict=True):
        target, moments = target_of(state, part, plan)
        yield Code(target, values[mask], latents[mask], tokens[mask], moments=moments)


def _candidates(
    state: TrainState, parts: Sequence[Float[Tensor, "part d_in"]], plan: Plan
) -> tuple[list[_Candidates], int]:
    """At least the k·N largest pre-acts that are above 0, or all of those there are; and that number."""
    W_enc, b_enc = state.rows.W_enc.product.T, state.rows.b_enc.weight
    wanted = plan.k * plan.replicas * sum(map(len, parts))
    bound = MARGIN * float(state.own["threshold"]) or _guess(state, parts[0], plan)
    while True:
        candidates = [
            _Candidates(*encode_above(target_of(state, part, plan)[0], W_enc, b_enc, bound)) for part in parts
        ]
        count = torch.tensor(sum(len(each.values) for each in candidates), device=plan.device)
        plan.team.sum_(count)
        if int(count) >= wanted or bound <= 0:
            return candidates, wanted
        bound = bound / 2 if bound > MARGIN * float(state.own["threshold"]) / 8 else 0.0


def _guess(state: TrainState, part: Float[Tensor, "part d_in"], plan: Plan) -> float:
    """A bound for the first step: well below the pre-act that as many exceed in a sample as are wanted."""
    target, _ = target_of(state, part[:SAMPLE], plan)
    pre_acts = (target @ state.rows.W_enc.product.T + state.rows.b_enc.weight.to(target.dtype)).float().flatten()
    guess = torch.topk(pre_acts, plan.k * len(target), sorted=False).values.min() * 0.8
    lowest = torch.stack(plan.team.each(guess)).min()  # one bound for all ranks, or the choice would not be exact
    return float(lowest.nan_to_num(0.0, 0.0, 0.0).clamp_min(0.0))


def _largest(
    found: Sequence[_Candidates], wanted: int, sizes: Sequence[int], plan: Plan
) -> tuple[list[Bool[Tensor, " entries"]], Float[Tensor, ""]]:
    """Which candidates are the ``wanted`` largest of all parts and ranks, of equal ones the earlier token's and lower
    latent; and the least of them."""
    ours = torch.cat([each.values for each in found])
    everyones = _of_all_ranks(ours, -torch.inf, plan)
    if len(everyones) <= wanted:
        least = everyones.min() if len(everyones) else ours.new_zeros(())
        return [torch.ones_like(each.values, dtype=torch.bool) for each in found], least
    least = torch.kthvalue(everyones, len(everyones) - wanted + 1).values
    kept = ~(ours < least)  # a NaN stays, so that the loss becomes one
    if int((~(everyones < least)).sum()) > wanted:
        above = int((everyones > least).sum() + everyones.isnan().sum())
        kept &= (ours > least) | ours.isnan() | _first(found, least, wanted - above, sizes, plan)
    return list(kept.split([len(each.values) for each in found])), least


def _first(
    found: Sequence[_Candidates], least: Tensor, wanted: int, sizes: Sequence[int], plan: Plan
) -> Bool[Tensor, " entries"]:
    """Which candidates are the first ``wanted`` of those equal to ``least``, by token and latent."""
    firsts = [plan.team.rank * sum(sizes) + sum(sizes[:number]) for number in range(len(sizes))]
    keys = torch.cat(
        [(each.tokens + first) * plan.d_sae + each.latents for each, first in zip(found, firsts, strict=True)]
    )
    equal = torch.cat([each.values for each in found]) == least
    last = _of_all_ranks(keys[equal], -1, plan).sort().values[wanted - 1]
    return equal & (keys <= last)


def _of_all_ranks(ours: Tensor, nothing: float, plan: Plan) -> Tensor:
    """The numbers of every rank, which have not the same number of them."""
    if plan.team.world == 1:
        return ours
    longest = plan.team.largest(len(ours), plan.device)
    filled = ours.new_full((longest,), nothing)
    filled[: len(ours)] = ours
    every = torch.cat(plan.team.each(filled))
    return every[every != nothing]


def _follow(state: TrainState, least: Float[Tensor, ""]) -> None:
    """Move the running threshold towards the least act of this step."""
    rate = max(RATE, min(1.0, 10 / (state.step + 1)))
    threshold = state.own["threshold"]
    moved = threshold + rate * (least.double() - threshold)
    threshold.copy_(torch.where(least > 0, moved, threshold))


def _finish(sae: TopKSAE, scale: float, own: Mapping[str, Tensor]) -> JumpReLUSAE:
    """As trained, but for a token whose acts come within rounding of the threshold; ``b_dec`` stands in ``b_enc``."""
    encoders, b_dec = sae.W_enc.detach().T, sae.b_dec.detach().double()
    answers = torch.cat([rows.double() @ b_dec for rows in encoders.split(1024)])
    b_enc = (sae.b_enc.detach().double() - answers) / scale
    threshold = own["threshold"].to(b_enc.device).expand(len(b_enc)) / scale
    return JumpReLUSAE(sae.W_enc.detach(), b_enc, sae.W_dec.detach(), b_dec / scale, threshold)


def _refused(config: TrainConfig) -> str:
    if config.shard_latents:
        return (
            "--shard_latents spreads the latents of a token over ranks, and the report of a BatchTopK SAE needs them "
            "in one place; leave it out (ranks then share the batch)"
        )
    if config.int8_topk:
        return (
            "--int8_topk names candidates for the k best of each token, which BatchTopK does not ask for; leave it out"
        )
    return ""


BATCHTOPK = TrainedArchitecture(
    name="batchtopk",
    encode=_encode,
    finish=_finish,
    own=lambda: {"threshold": torch.zeros((), dtype=torch.float64)},
    waits=True,
    refused=_refused,
)
