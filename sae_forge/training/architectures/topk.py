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


def _encode(state: TrainState, parts: Sequence[Float[Tensor, "part d_in"]], plan: Plan) -> Iterator[Code]:
    for part in parts:
        target = target_of(state, part)
        yield Code(target, *(_among_all_ranks if plan.shards_latents else _k_best)(state, target, plan))


def _k_best(
    state: TrainState, target: Float[Tensor, "tokens d_in"], plan: Plan
) -> tuple[Float[Tensor, "tokens k"], Int[Tensor, "tokens k"]]:
    W_enc, b_enc = state.rows.W_enc.product.T, state.rows.b_enc.weight
    screened = plan.config.int8_topk and not plan.shards_latents
    return topk_encode(target, W_enc, b_enc, None, plan.local_k, backend=plan.config.backend, screened=screened)


def _among_all_ranks(
    state: TrainState, target: Float[Tensor, "tokens d_in"], plan: Plan
) -> tuple[Float[Tensor, "tokens k"], Int[Tensor, "tokens k"]]:
    """This rank's latents in rising order, with acts where they are among the k best of all ranks, and zeros.

    Each rank offers its best; all look at all offers and take the k best, as one process would.
    """
    values, indices = _k_best(state, target, plan)
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
