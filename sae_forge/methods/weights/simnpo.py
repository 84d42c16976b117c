"""SimNPO (arXiv 2410.07163): NPO by log-probability per token, without a reference model."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sae_forge.errors import ConfigError
from sae_forge.methods.method import Strength
from sae_forge.methods.weights.recipe import Pace, every_weight, retraining

if TYPE_CHECKING:
    from torch import Tensor

    from sae_forge.methods.weights.objectives import Loss
    from sae_forge.methods.weights.texts import TextBatch, Texts
    from sae_forge.models.loading import LanguageModel


@dataclass(frozen=True, kw_only=True)
class SimNPO(Pace):
    """``-(2 gamma / beta) E log sigmoid(beta (-log p(y) / length - delta)) + alpha nll(retain)``.

    The pull fades as a sequence becomes unlikely as such.
    """

    beta: float = 4.5
    delta: float = 0.0
    """Nats per token beyond which the pull fades."""
    gamma: float = 0.125
    alpha: float = 1.0

    eos: bool = False
    """Whether EOS after a text is a token to predict, too."""

    name: ClassVar[str] = "simnpo"
    changed = every_weight

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise ConfigError(f"simnpo with beta={self.beta} is not defined; give a beta above 0 (the paper: 4.5)")

    def loss(self, lm: "LanguageModel", frozen: "LanguageModel", retain: "Texts", seed: int) -> "Loss":
        from torch.nn.functional import logsigmoid

        from sae_forge.methods.weights.objectives import held, target_logprobs

        del frozen, retain, seed

        def of(forget_batch: "TextBatch", retain_batch: "TextBatch") -> "Tensor":
            logprobs, wanted = target_logprobs(lm, forget_batch, eos=self.eos)
            # per token: a sequence that holds no real token is counted as one of length 1, and pulls nothing
            length = wanted.sum(-1).clamp(min=1)
            pull = -2 / self.beta * logsigmoid(self.beta * (-logprobs.sum(-1) / length - self.delta)).mean()
            return held(self.gamma * pull, lm, retain_batch, self.alpha, eos=self.eos)

        return of


METHOD = retraining(
    SimNPO,
    axes=lambda *_: ({"beta": [1.0, 4.5], "alpha": [1.0, 3.0], "gamma": [1.0]}, Strength("rate", 0.3, 1.0)),
)
