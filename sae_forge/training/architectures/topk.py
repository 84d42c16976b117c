"""TopK: the k latents that answer most to a token give its reconstruction. Source: Gao et al. 2024 (2406.04093)."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_forge.kernels.dispatch import topk, topk_encode
from sae_forge.sae.topk import TopKSAE
from sae_forge.training.architectures.architecture import TrainedArchitecture
from sae_forge.training.code import Code, target_of
from sae_forge.training.plan import Plan
from sae_forge.training.state import TrainState


def _encode(
    state: TrainState, parts: Sequence[Float[Tensor, "part d_in"]], plan: Plan, beside: Tensor | None = None
) -> Iterator[Code]:
    choose = _among_all_ranks if plan.shards_latents else _k_best
    for part in parts:
        target, moments = target_of(state, part, plan)
        kept = None if beside is None else _Kept(target, beside)
        values, indices = choose(state, target, plan, kept)
        yield Code(target, values, indices, beside=kept.whole() if kept else None, moments=moments)


class _Kept:
    """Pre-acts of some latents, kept while a dense product makes all.

    Their place is taken beforehand: taken after each part, it would lie behind that part's pre-acts, and the C library
    would give those back to the system each time (20 ms a step at 4096 latents).
    """

    def __init__(self, target: Float[Tensor, "tokens d_in"], latents: Int[Tensor, "few"]) -> None:
        self._latents, self._pre_acts, self._tokens = latents, target.new_empty(len(target), len(latents)), 0

    def keep(self, pre_acts: Float[Tensor, "some d_sae"]) -> None:
        """Of the tokens that come next."""
        start, self._tokens = self._tokens, self._tokens + len(pre_acts)
        torch.index_select(pre_acts, 1, self._latents, out=self._pre_acts[start : self._tokens])

    def whole(self) -> Float[Tensor, "tokens few"] | None:
        """All, or None where no product made them."""
        return self._pre_acts if self._tokens == len(self._pre_acts) else None


def _k_best(
    state: TrainState, target: Float[Tensor, "tokens d_in"], plan: Plan, kept: _Kept | None
) -> tuple[Float[Tensor, "tokens k"], Int[Tensor, "tokens k"]]:
    W_enc, b_enc, backend = state.rows.W_enc.product.T, state.rows.b_enc.weight, plan.config.backend
    screened = plan.config.int8_topk and not plan.shards_latents
    seen = kept.keep if kept else None
    return topk_encode(target, W_enc, b_enc, None, plan.local_k, backend=backend, screened=screened, seen=seen)


def _among_all_ranks(
    state: TrainState, target: Float[Tensor, "tokens d_in"], plan: Plan, kept: _Kept | None
) -> tuple[Float[Tensor, "tokens k"], Int[Tensor, "tokens k"]]:
    """This rank's latents in rising order, with acts where they are among the k best of all ranks, and zeros.

    Each rank offers its best; all look at all offers and take the k best, as one process would.
    """
    values, indices = _k_best(state, target, plan, kept)
    indices, order = indices.sort(dim=1)
    values = values.gather(1, order)
    offers = torch.cat(plan.team.each(values), dim=1)  # in the order of the latents, so that ties go to the lower one
    _, best = topk(offers, plan.k, backend=plan.config.backend)
    taken = torch.zeros_like(offers, dtype=torch.bool).scatter_(1, best.long(), True)
    return values * taken.tensor_split(plan.team.world, dim=1)[plan.team.rank], indices


def _finish(sae: TopKSAE, scale: float, own: Mapping[str, Tensor]) -> TopKSAE:
    del own
    return sae.folded(scale)


TOPK = TrainedArchitecture(name="topk", encode=_encode, finish=_finish)
