"""CRISP: train low-rank adapters until the selected latents no longer fire on forget text, then merge them.

After arXiv 2508.13650. On the forget batch ``|z + alpha mean(z)|``, averaged over the (token, latent) pairs that fire
in the given model, falls as the latents ``z`` do; ``mean(z)`` is the token's mean act over the whole dictionary, in the
given model. On the retain batch the activations stay near the given model's. A last term holds the likelihood of
sentences that the given model wrote itself, so that the text stays fluent.
"""

import importlib
import importlib.util
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from sae_forge.errors import BackendError, CheckpointError, ConfigError, DataError
from sae_forge.hookpoint import HookPoint
from sae_forge.methods.weights.objectives import Loss, mean_squared, nats_per_token, real_tokens
from sae_forge.methods.weights.texts import TextBatch, Texts, iter_batches
from sae_forge.models.hooks import capture, capture_with_gradients, check_points
from sae_forge.models.loading import LanguageModel
from sae_forge.sae.dictionary import Dictionary


@dataclass(frozen=True, eq=False)
class Suppressed:
    """Latents that are to stop firing."""

    point: HookPoint
    sae: Dictionary
    latents: tuple[int, ...]
    """Distinct, at least one."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CRISP:
    """``suppress + beta retain + gamma coherence``, through adapters of rank ``rank`` on every projection."""

    suppressed: tuple[Suppressed, ...]
    """At one hook point or several; the losses are means over them."""
    layers: tuple[int, ...] | None = None
    """Layers that are adapted. None: all up to the highest hook point."""
    alpha: float = 5.0
    """How far below zero an act is pulled, in mean acts of the token's whole code."""
    beta: float = 0.99
    """Weight of the retain term."""
    gamma: float = 0.01
    """Weight of the coherence term; 0 leaves it out."""
    rank: int = 4
    dropout: float = 0.05
    """On what an adapter reads."""
    sentences: int = 20
    """Sentences that the given model writes for the coherence term."""
    prompt_tokens: int = 8
    """Tokens of retain text that each sentence starts with, BOS among them."""
    sentence_tokens: int = 32
    """Tokens that are written after them."""
    steps: int = 400
    lr: float = 1e-5
    batch_size: int = 1
    weight_decay: float = 0.01

    name: ClassVar[str] = "crisp"

    def __post_init__(self) -> None:
        if not self.suppressed or not all(entry.latents for entry in self.suppressed):
            raise ConfigError("CRISP needs latents to suppress; select at least one at each hook point")
        if self.rank < 1 or not 0 <= self.dropout < 1:
            raise ConfigError(f"rank={self.rank}, dropout={self.dropout}: give a rank from 1 and a dropout in [0, 1)")

    @property
    def points(self) -> list[HookPoint]:
        """Where latents are read."""
        return list(dict.fromkeys(entry.point for entry in self.suppressed))


def adapted_projections(lm: LanguageModel, recipe: CRISP) -> list[str]:
    """Names of the projections that get an adapter.

    Raises:
        ConfigError: a hook point or layer lies beyond the model.
        CheckpointError: an SAE is of another width than the model.
    """
    check_points(lm, recipe.points)
    for entry in recipe.suppressed:
        if entry.sae.d_in != lm.d_model:
            raise CheckpointError(
                f"the SAE reads activations {entry.sae.d_in} wide, but {lm.name} is {lm.d_model} wide; "
                "use one trained on it"
            )
    layers = recipe.layers or tuple(range(max(point.layer for point in recipe.points) + 1))
    check_points(lm, [HookPoint(layer) for layer in layers])
    return [f"{lm.family.layers}.{layer}.{path}" for layer in layers for path in lm.family.projections]


@contextmanager
def adapters(lm: LanguageModel, recipe: CRISP) -> Iterator[list[nn.Parameter]]:
    """Inside the block ``lm`` has adapters, whose weights are given; after it they are merged and it is plain again.

    Draws from torch's own random numbers: seed them first.

    Raises:
        BackendError: peft is not installed.
    """
    names = adapted_projections(lm, recipe)
    peft = _peft()
    config = peft.LoraConfig(
        r=recipe.rank,
        lora_alpha=2 * recipe.rank,
        lora_dropout=recipe.dropout,
        target_modules=names,
        fan_in_fan_out=isinstance(lm.model.get_submodule(names[0]), Conv1D),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft 0.21 asks transformers 5.23 for a name it renamed
        wrapped = peft.get_peft_model(lm.model, config)
    for name, module in lm.model.named_modules():
        if name.endswith("lora_dropout.default"):
            module.train()
    try:
        yield [weight for weight in lm.model.parameters() if weight.requires_grad]
    finally:
        wrapped.merge_and_unload()
        if hasattr(lm.model, "peft_config"):
            del lm.model.peft_config


def loss(changed: LanguageModel, frozen: LanguageModel, recipe: CRISP, retain: Texts, seed: int) -> Loss:
    """The loss as a function of ``changed``'s weights; but for the coherence term no layer above the points runs.

    Args:
        retain: Text that the coherence term's sentences start with.
    """
    coherence = cycle(_written(frozen, recipe, retain, seed)) if recipe.gamma else None

    def of(forget: TextBatch, held: TextBatch) -> Tensor:
        total = suppression(changed, frozen, recipe, forget) + recipe.beta * drift(changed, frozen, recipe, held)
        if coherence is not None:
            total = total + recipe.gamma * nats_per_token(changed, next(coherence)).to(total.device)
        return total

    return of


def suppression(changed: LanguageModel, frozen: LanguageModel, recipe: CRISP, forget: TextBatch) -> Float[Tensor, ""]:
    """How much of what fires in ``frozen`` still fires in ``changed``, and beyond zero by ``alpha`` mean acts."""
    real = real_tokens(frozen, forget)
    before = capture(frozen, recipe.points, *forget)
    after = capture_with_gradients(changed, recipe.points, *forget)
    parts = [_suppression(entry, before[entry.point], after[entry.point], real, recipe) for entry in recipe.suppressed]
    return torch.stack(parts).mean()


def drift(changed: LanguageModel, frozen: LanguageModel, recipe: CRISP, retain: TextBatch) -> Float[Tensor, ""]:
    """Mean squared change of the retain text's activations."""
    real = real_tokens(frozen, retain)
    before = capture(frozen, recipe.points, *retain)
    after = capture_with_gradients(changed, recipe.points, *retain)
    return torch.stack([mean_squared(after[point], before[point], real).to(real.device) for point in after]).mean()


def _suppression(entry: Suppressed, before: Tensor, after: Tensor, real: Tensor, recipe: CRISP) -> Tensor:
    weights = entry.sae.W_dec
    dtype = torch.promote_types(after.dtype, weights.dtype)
    latents = torch.tensor(entry.latents, device=weights.device)
    with torch.no_grad():
        inside = before.to(weights.device, dtype)
        fired = (entry.sae.latent_acts(inside, latents) > 0) & real.to(weights.device)[..., None]
        mean_act = entry.sae.encode(inside).values.sum(-1, keepdim=True) / entry.sae.d_sae
    acts = entry.sae.latent_acts(after.to(weights.device, dtype), latents)
    pulled = (acts + (recipe.alpha * mean_act).abs()).abs()
    return (torch.where(fired, pulled, 0.0).sum() / fired.sum().clamp(min=1)).to(real.device)


def _written(lm: LanguageModel, recipe: CRISP, retain: Texts, seed: int) -> list[TextBatch]:
    """Sentences that ``lm`` goes on with, most likely token by token, after the beginnings of retain text."""
    long_enough = retain.attention_mask[:, : recipe.prompt_tokens].sum(-1) == recipe.prompt_tokens
    openings = Texts(retain.token_ids[long_enough], retain.attention_mask[long_enough])
    if not len(openings):
        raise DataError(
            f"no retain sequence has the {recipe.prompt_tokens} tokens that a sentence starts with; "
            "collect longer text, lower prompt_tokens or leave the coherence term out with gamma=0"
        )
    count = -(-recipe.sentences // recipe.batch_size)
    batches = iter_batches(openings, count=count, batch_size=recipe.batch_size, seed=seed, purpose="crisp sentences")
    return [_continued(lm, batch.token_ids[:, : recipe.prompt_tokens], recipe.sentence_tokens) for batch in batches]


@torch.no_grad()
def _continued(lm: LanguageModel, token_ids: Tensor, new_tokens: int) -> TextBatch:
    written: Any = lm.model.generate(  # pyright: ignore[reportCallIssue]
        input_ids=token_ids.to(lm.device),
        attention_mask=torch.ones_like(token_ids).to(lm.device),
        max_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=lm.pad_id,
    )
    ids = written.cpu()
    mask = ids != lm.pad_id
    mask[:, : token_ids.shape[1]] = True
    return TextBatch(ids, mask)


def _peft() -> Any:
    if importlib.util.find_spec("peft") is None:
        raise BackendError("crisp needs peft, which is not installed: pip install 'sae-forge[baselines]'")
    return importlib.import_module("peft")
