"""How much of the model survives being rebuilt by the SAE: of its activations' variance, and of its loss.

Both are of activations as the model has them, not as they were stored: what rounding took from the shards the SAE
never learned, and shards cannot show it.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_forge.data.sinks import are_sinks
from sae_forge.hookpoint import HookPoint
from sae_forge.models.hooks import splice
from sae_forge.models.loading import LanguageModel
from sae_forge.progress import SILENT, Progress
from sae_forge.sae.architectures.architecture import Built
from sae_forge.tasks.engines.losses import Corpus, sequence_losses
from sae_forge.training.explained import Explained


@dataclass(frozen=True)
class Recovered:
    """Cross-entropies in nats per real token, over the same text."""

    base: float
    """The model as it is."""
    sae: float
    """The site's real tokens replaced by their reconstructions."""
    zero: float
    """The site's real tokens replaced by zero."""
    fvu: float
    """Fraction of variance that the SAE leaves unexplained, of the activations of real tokens that are no sinks."""
    l0: float
    """Latents that fire on such a token, on average."""
    fvu_pca: float | None
    """What a PCA of as many directions as the SAE has latents a token leaves unexplained of them; None: it has no k."""
    fvu_with_sinks: float | None
    """``fvu`` with sinks; None where there is none."""
    share_with_sinks: float | None
    """``share`` with sinks rebuilt and silenced too; None where there is none."""

    @property
    def share(self) -> float:
        """``ce_recovered``: 1 loses nothing, 0 is as bad as having no activation at all."""
        return (self.zero - self.sae) / (self.zero - self.base)


def ce_recovered(
    lm: LanguageModel,
    sae: Built,
    point: HookPoint,
    corpora: Sequence[Corpus],
    sink_norm: float | None = None,
    progress: Progress = SILENT,
) -> Recovered:
    """Losses on ``corpora`` with the SAE in the model, beside the model itself and the whole site at zero; and its FVU.

    Special tokens stay as they are in all three, and so do sinks: the SAE has never seen one. Where there are sinks the
    losses are taken once more with them rebuilt and silenced too.

    Args:
        sink_norm: Length beyond which an activation is a sink's.
    """
    meter = Explained(sae.d_in, sae.W_dec.device, sink_norm)
    rows = sum(corpus.rows for corpus in corpora)
    with progress.task("loss of the model as it is", rows, "sequences") as task:
        base = loss_on(lm, corpora, done=task.advance)

    def losses(norm: float | None, meter: Explained | None) -> tuple[float, float]:
        def rebuild(x: Tensor, real: Tensor) -> Tensor:
            given, kept = x.to(sae.W_dec.device, torch.float32), real.to(sae.W_dec.device)
            acts = sae.encode(given)
            x_hat = sae.decode(acts)
            if meter is not None:
                meter.add(given[kept], x_hat[kept], acts.values[kept])
            return _written(x, x_hat.to(x.device), real & ~are_sinks(x, norm))

        def silence(x: Tensor, real: Tensor) -> Tensor:
            return _written(x, torch.zeros_like(x), real & ~are_sinks(x, norm))

        with progress.task("loss with the SAE in its place", 2 * rows, "sequences") as task:
            each = [loss_on(lm, corpora, splice(lm, point, edit), done=task.advance) for edit in (rebuild, silence)]
        return each[0], each[1]

    rebuilt, silent = losses(sink_norm, meter)
    with_sinks = None
    if meter.sinks:
        every, nothing = losses(None, None)
        with_sinks = (nothing - every) / (nothing - base)
    return Recovered(
        base=base,
        sae=rebuilt,
        zero=silent,
        fvu=meter.ordinary.fvu,
        l0=meter.ordinary.l0,
        fvu_pca=meter.fvu_pca(getattr(sae, "k", 0) or max(1, round(meter.ordinary.l0))),
        fvu_with_sinks=meter.fvu_with_sinks,
        share_with_sinks=with_sinks,
    )


def _written(
    x: Float[Tensor, "batch seq d_in"], new: Float[Tensor, "batch seq d_in"], real: Bool[Tensor, "batch seq"]
) -> Float[Tensor, "batch seq d_in"]:
    return torch.where(real[..., None], new.to(x.dtype), x)


def loss_on(
    lm: LanguageModel,
    corpora: Sequence[Corpus],
    edit: AbstractContextManager[None] | None = None,
    done: Callable[[int], None] | None = None,
) -> float:
    """Nats per real token, over all of them together."""
    with edit or nullcontext():
        measured = [sequence_losses(lm, corpus.batches, done=done) for corpus in corpora]
    return sum(sum(losses.nats) for losses in measured) / sum(sum(losses.tokens) for losses in measured)
