"""NPO (arXiv 2404.05868): the forget text is the answer to avoid of a preference pair that has no other side."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

from sae_forge.errors import ConfigError
from sae_forge.methods.method import Strength
from sae_forge.methods.weights.recipe import Pace, every_weight, retraining

if TYPE_CHECKING:
    from torch import Tensor

    from sae_forge.methods.weights.objectives import Loss
    from sae_forge.methods.weights.texts import TextBatch, Texts
    from sae_forge.models.loading import LanguageModel

RetainLoss = Literal["nll", "kl"]


@dataclass(frozen=True, kw_only=True)
class NPO(Pace):
    """``-(2 / beta) E log sigmoid(-beta (log p(y) - log p_reference(y))) + alpha retain loss``.

    ``log p(y)`` is the sum over a sequence's real tokens. The pull fades as a sequence becomes unlikelier than the
    given model finds it.
    """

    beta: float = 0.1
    """Inverse temperature; as it goes to 0 this becomes gradient ascent."""
    alpha: float = 1.0
    retain: RetainLoss = "nll"
    """``kl``: stay near the given model's next-token distributions."""

    eos: bool = False
    """Whether EOS after a text is a token to predict, too."""

    name: ClassVar[str] = "npo"
    changed = every_weight

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise ConfigError(f"npo with beta={self.beta} is not defined; give a beta above 0 (the paper: 0.1)")
        if self.retain not in get_args(RetainLoss):
            raise ConfigError(f"retain={self.retain!r} is unknown; choose one of {', '.join(get_args(RetainLoss))}")

    def loss(self, lm: "LanguageModel", frozen: "LanguageModel", retain: "Texts", seed: int) -> "Loss":
        import torch
        from torch.nn.functional import logsigmoid

        from sae_forge.methods.weights.objectives import divergence, held, target_logprobs

        del retain, seed

        def of(forget_batch: "TextBatch", retain_batch: "TextBatch") -> "Tensor":
            with torch.no_grad():
                before = target_logprobs(frozen, forget_batch, eos=self.eos)[0].sum(-1)
            # log p(y) - log p_reference(y), [batch]; sums over tokens, so long sequences are pulled harder
            ratio = target_logprobs(lm, forget_batch, eos=self.eos)[0].sum(-1) - before
            pull = -2 / self.beta * logsigmoid(-self.beta * ratio).mean()
            if self.retain == "kl":
                return pull + self.alpha * divergence(lm, frozen, retain_batch, eos=self.eos)
            return held(pull, lm, retain_batch, self.alpha, eos=self.eos)

        return of


METHOD = retraining(NPO, axes=lambda *_: ({"beta": [0.02, 0.1, 1.0], "alpha": [1.0, 5.0]}, Strength("rate", 0.5, 2.0)))
