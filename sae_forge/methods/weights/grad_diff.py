"""GradDiff (arXiv 2404.05868): make the forget text unlikely, and hold the retain text likely."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sae_forge.methods.method import Strength
from sae_forge.methods.weights.recipe import Pace, every_weight, retraining

if TYPE_CHECKING:
    from torch import Tensor

    from sae_forge.methods.weights.objectives import Loss
    from sae_forge.methods.weights.texts import TextBatch, Texts
    from sae_forge.models.loading import LanguageModel


@dataclass(frozen=True, kw_only=True)
class GradDiff(Pace):
    """``-gamma nll(forget) + alpha nll(retain)``, where ``nll`` is the mean over a batch's real tokens."""

    gamma: float = 1.0
    alpha: float = 1.0

    eos: bool = False
    """Whether EOS after a text is a token to predict, too."""

    name: ClassVar[str] = "grad_diff"
    changed = every_weight

    def loss(self, lm: "LanguageModel", frozen: "LanguageModel", retain: "Texts", seed: int) -> "Loss":
        from sae_forge.methods.weights.objectives import held, nats_per_token

        del frozen, retain, seed

        def of(forget_batch: "TextBatch", retain_batch: "TextBatch") -> "Tensor":
            return held(
                -self.gamma * nats_per_token(lm, forget_batch, eos=self.eos), lm, retain_batch, self.alpha, eos=self.eos
            )

        return of


METHOD = retraining(GradDiff, axes=lambda *_: ({"alpha": [0.1, 1.0, 3.0, 10.0]}, Strength("rate", 0.1, 1.0)))
