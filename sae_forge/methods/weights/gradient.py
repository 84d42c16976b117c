"""Unlearning by the loss itself: make the forget text unlikely, and hold the retain text likely.

One family of losses, of one forward pass a corpus each. ``nll`` is the mean over a batch's real tokens, ``log p(y)``
the sum over a sequence's. GradDiff and NPO: arXiv 2404.05868; SimNPO: arXiv 2410.07163.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, assert_never, get_args

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from sae_forge.errors import ConfigError
from sae_forge.methods.weights.objectives import Loss, divergence, nats_per_token, target_logprobs
from sae_forge.methods.weights.texts import TextBatch
from sae_forge.models.loading import LanguageModel

RetainLoss = Literal["nll", "kl"]


@dataclass(frozen=True, kw_only=True)
class GradientAscent:
    """``-nll(forget)``: no bound below and nothing that holds the rest."""

    steps: int = 400
    lr: float = 1e-5
    batch_size: int = 8
    weight_decay: float = 0.01

    name: ClassVar[str] = "gradient_ascent"


@dataclass(frozen=True, kw_only=True)
class GradDiff:
    """``-gamma nll(forget) + alpha nll(retain)``."""

    gamma: float = 1.0
    alpha: float = 1.0
    steps: int = 400
    lr: float = 1e-5
    batch_size: int = 8
    weight_decay: float = 0.01

    name: ClassVar[str] = "grad_diff"


@dataclass(frozen=True, kw_only=True)
class NPO:
    """``-(2 / beta) E log sigmoid(-beta (log p(y) - log p_reference(y))) + alpha retain loss``.

    The pull fades as a sequence becomes unlikelier than the given model finds it.
    """

    beta: float = 0.1
    """Inverse temperature; as it goes to 0 this becomes gradient ascent."""
    alpha: float = 1.0
    retain: RetainLoss = "nll"
    """``kl``: stay near the given model's next-token distributions."""
    steps: int = 400
    lr: float = 1e-5
    batch_size: int = 8
    weight_decay: float = 0.01

    name: ClassVar[str] = "npo"

    def __post_init__(self) -> None:
        _require_beta(self.name, self.beta)
        if self.retain not in get_args(RetainLoss):
            raise ConfigError(f"retain={self.retain!r} is unknown; choose one of {', '.join(get_args(RetainLoss))}")


@dataclass(frozen=True, kw_only=True)
class SimNPO:
    """``-(2 gamma / beta) E log sigmoid(beta (-log p(y) / length - delta)) + alpha nll(retain)``.

    NPO without a reference model: the pull fades as a sequence becomes unlikely as such.
    """

    beta: float = 4.5
    delta: float = 0.0
    """Nats per token beyond which the pull fades."""
    gamma: float = 0.125
    alpha: float = 1.0
    steps: int = 400
    lr: float = 1e-5
    batch_size: int = 8
    weight_decay: float = 0.01

    name: ClassVar[str] = "simnpo"

    def __post_init__(self) -> None:
        _require_beta(self.name, self.beta)


Gradient = GradientAscent | GradDiff | NPO | SimNPO


def trained_weights(lm: LanguageModel) -> list[str]:
    """Names of all of the model's weights."""
    return [name for name, _ in lm.model.named_parameters()]


def loss(changed: LanguageModel, frozen: LanguageModel, recipe: Gradient) -> Loss:
    """The loss as a function of ``changed``'s weights; ``frozen`` is the reference where the recipe has one."""

    def of(forget: TextBatch, retain: TextBatch) -> Tensor:
        match recipe:
            case GradientAscent():
                return -nats_per_token(changed, forget)
            case GradDiff():
                return _held(-recipe.gamma * nats_per_token(changed, forget), changed, retain, recipe.alpha)
            case NPO(retain="kl"):
                return _npo(changed, frozen, forget, recipe) + recipe.alpha * divergence(changed, frozen, retain)
            case NPO():
                return _held(_npo(changed, frozen, forget, recipe), changed, retain, recipe.alpha)
            case SimNPO():
                return _held(recipe.gamma * _simnpo(changed, forget, recipe), changed, retain, recipe.alpha)
            case _:
                assert_never(recipe)

    return of


def _held(forget_loss: Tensor, lm: LanguageModel, retain: TextBatch, alpha: float) -> Tensor:
    return forget_loss + alpha * nats_per_token(lm, retain) if alpha else forget_loss


def _npo(lm: LanguageModel, reference: LanguageModel, forget: TextBatch, recipe: NPO) -> Tensor:
    with torch.no_grad():
        before = target_logprobs(reference, forget)[0].sum(-1)
    ratio = target_logprobs(lm, forget)[0].sum(-1) - before
    return -2 / recipe.beta * logsigmoid(-recipe.beta * ratio).mean()


def _simnpo(lm: LanguageModel, forget: TextBatch, recipe: SimNPO) -> Tensor:
    logprobs, wanted = target_logprobs(lm, forget)
    length = wanted.sum(-1).clamp(min=1)
    return -2 / recipe.beta * logsigmoid(recipe.beta * (-logprobs.sum(-1) / length - recipe.delta)).mean()


def _require_beta(name: str, beta: float) -> None:
    if beta <= 0:
        raise ConfigError(f"{name} with beta={beta} is not defined; give a beta above 0 (the papers: 0.1 to 4.5)")
