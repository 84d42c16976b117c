"""Gradient ascent: make the forget text unlikely, with no bound below and nothing that holds the rest."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sae_forge.methods.method import Strength
from sae_forge.methods.weights.recipe import Pace, every_weight, retraining

if TYPE_CHECKING:
    from sae_forge.methods.weights.objectives import Loss
    from sae_forge.methods.weights.texts import Texts
    from sae_forge.models.loading import LanguageModel


@dataclass(frozen=True, kw_only=True)
class GradientAscent(Pace):
    """``-nll(forget)``, where ``nll`` is the mean over a batch's real tokens."""

    eos: bool = False
    """Whether EOS after a text is a token to predict, too."""

    name: ClassVar[str] = "gradient_ascent"
    changed = every_weight

    def loss(self, lm: "LanguageModel", frozen: "LanguageModel", retain: "Texts", seed: int) -> "Loss":
        from sae_forge.methods.weights.objectives import nats_per_token

        del frozen, retain, seed
        return lambda forget_batch, _: -nats_per_token(lm, forget_batch, eos=self.eos)


METHOD = retraining(GradientAscent, axes=lambda *_: ({"passes": [0.5, 1.0]}, Strength("rate", 0.05, 1.0)))
