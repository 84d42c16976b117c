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
from typing import TYPE_CHECKING, Any, ClassVar

from sae_forge.errors import BackendError, CheckpointError, ConfigError, DataError
from sae_forge.hookpoint import HookPoint
from sae_forge.methods.edits.latents import latents_of, parts
from sae_forge.methods.method import Strength
from sae_forge.methods.weights.recipe import Pace, paced, retraining

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sae_forge.methods.weights.objectives import Loss
    from sae_forge.methods.weights.texts import TextBatch, Texts
    from sae_forge.models.loading import LanguageModel
    from sae_forge.models.projections import Projection
    from sae_forge.sae.dictionary import Dictionary


@dataclass(frozen=True, eq=False)
class Suppressed:
    """Latents that are to stop firing."""

    point: HookPoint
    sae: "Dictionary"
    latents: tuple[int, ...]
    """Distinct, at least one."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CRISP(Pace):
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
    """Of what adapters read; 0 in models with experts, whose stacked weights peft adapts without it."""
    """On what an adapter reads."""
    sentences: int = 20
    """Sentences that the given model writes for the coherence term."""
    prompt_tokens: int = 8
    """Tokens of retain text that each sentence starts with, BOS among them."""
    sentence_tokens: int = 32
    """Tokens that are written after them."""
    batch_size: int = 1
    amsgrad: bool = True

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

    def adapted(self, lm: "LanguageModel") -> "list[Projection]":
        """The projections that get an adapter.

        Raises:
            ConfigError: a hook point or layer lies beyond the model.
            CheckpointError: an SAE is of another width than the model.
        """
        from sae_forge.models.hooks import check_points
        from sae_forge.models.projections import projections

        check_points(lm, self.points)
        for entry in self.suppressed:
            if entry.sae.d_in != lm.d_model:
                raise CheckpointError(
                    f"the SAE reads activations {entry.sae.d_in} wide, but {lm.name} is {lm.d_model} wide; "
                    "use one trained on it"
                )
        layers = self.layers or tuple(range(max(point.layer for point in self.points) + 1))
        check_points(lm, [HookPoint(layer) for layer in layers])
        return [projection for layer in layers for projection in projections(lm, layer)]

    def changed(self, lm: "LanguageModel") -> list[str]:
        return [projection.weight for projection in self.adapted(lm)]

    @contextmanager
    def training(self, lm: "LanguageModel") -> Iterator["list[nn.Parameter]"]:
        """Inside the block ``lm`` has adapters, whose weights are given; after it they are merged into its own.

        Draws from torch's own random numbers: seed them first.

        Raises:
            BackendError: peft is not installed.
        """
        from transformers.pytorch_utils import Conv1D

        if error := _without_peft():
            raise error
        adapted, peft = self.adapted(lm), importlib.import_module("peft")
        linear = [projection.module for projection in adapted if projection.module]
        experts = [projection.weight for projection in adapted if not projection.module]
        config = peft.LoraConfig(
            r=self.rank,
            lora_alpha=2 * self.rank,
            lora_dropout=0.0 if experts else self.dropout,
            target_modules=linear,
            target_parameters=experts or None,
            fan_in_fan_out=isinstance(lm.model.get_submodule(linear[0]), Conv1D),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft 0.21 asks transformers 5.23 for a name it renamed
            wrapped = peft.get_peft_model(lm.model, config)
        # the model itself stays in eval mode; of the adapters only dropout trains
        for name, module in lm.model.named_modules():
            if name.endswith("lora_dropout.default"):
                module.train()
        try:
            yield [weight for weight in lm.model.parameters() if weight.requires_grad]
        finally:
            wrapped.merge_and_unload()
            if hasattr(lm.model, "peft_config"):
                del lm.model.peft_config

    def loss(self, lm: "LanguageModel", frozen: "LanguageModel", retain: "Texts", seed: int) -> "Loss":
        """But for the coherence term no layer above the points runs; its sentences start as retain text does."""
        from sae_forge.methods.weights.objectives import nats_per_token

        # written once, before the first step, by the model as it was given
        coherence = cycle(_written(frozen, self, retain, seed)) if self.gamma else None

        def of(forget_batch: "TextBatch", retain_batch: "TextBatch") -> "Tensor":
            total = suppression(lm, frozen, self, forget_batch) + self.beta * drift(lm, frozen, self, retain_batch)
            if coherence is not None:
                total = total + self.gamma * nats_per_token(lm, next(coherence)).to(total.device)
            return total

        return of


def suppression(lm: "LanguageModel", frozen: "LanguageModel", recipe: CRISP, forget: "TextBatch") -> "Tensor":
    """How much of what fires in ``frozen`` still fires in ``lm``, and beyond zero by ``alpha`` mean acts: a number."""
    import torch

    from sae_forge.methods.weights.objectives import real_tokens
    from sae_forge.models.hooks import capture, capture_with_gradients

    real = real_tokens(frozen, forget)
    before = capture(frozen, recipe.points, *forget)
    after = capture_with_gradients(lm, recipe.points, *forget)
    means = []
    for entry in recipe.suppressed:
        weights, still = entry.sae.W_dec, after[entry.point]
        dtype = torch.promote_types(still.dtype, weights.dtype)
        latents = torch.tensor(entry.latents, device=weights.device)
        with torch.no_grad():
            inside = before[entry.point].to(weights.device, dtype)
            fired = (entry.sae.latent_acts(inside, latents) > 0) & real.to(weights.device)[..., None]
            # zeros of the code count: the mean act over all d_sae latents, [batch, seq, 1]
            mean_act = entry.sae.encode(inside).values.sum(-1, keepdim=True) / entry.sae.d_sae
        acts = entry.sae.latent_acts(still.to(weights.device, dtype), latents)
        pulled = (acts + (recipe.alpha * mean_act).abs()).abs()
        means.append((torch.where(fired, pulled, 0.0).sum() / fired.sum().clamp(min=1)).to(real.device))
    return torch.stack(means).mean()


def drift(lm: "LanguageModel", frozen: "LanguageModel", recipe: CRISP, retain: "TextBatch") -> "Tensor":
    """Mean squared change of the retain text's activations: a number."""
    import torch

    from sae_forge.methods.weights.objectives import mean_squared, real_tokens
    from sae_forge.models.hooks import capture, capture_with_gradients

    real = real_tokens(frozen, retain)
    before = capture(frozen, recipe.points, *retain)
    after = capture_with_gradients(lm, recipe.points, *retain)
    return torch.stack([mean_squared(after[point], before[point], real).to(real.device) for point in after]).mean()


def _written(lm: "LanguageModel", recipe: CRISP, retain: "Texts", seed: int) -> "list[TextBatch]":
    """Sentences that ``lm`` goes on with, most likely token by token, after the beginnings of retain text."""
    import torch

    from sae_forge.methods.weights.texts import TextBatch, Texts, iter_batches
    from sae_forge.models.tokens import room_after

    long_enough = retain.attention_mask[:, : recipe.prompt_tokens].sum(-1) == recipe.prompt_tokens
    openings = Texts(retain.token_ids[long_enough], retain.attention_mask[long_enough])
    if not len(openings):
        raise DataError(
            f"no retain sequence has the {recipe.prompt_tokens} tokens that a sentence starts with; "
            "collect longer text, lower prompt_tokens or leave the coherence term out with gamma=0"
        )
    count = -(-recipe.sentences // recipe.batch_size)
    batches = iter_batches(openings, count=count, batch_size=recipe.batch_size, seed=seed, purpose="crisp sentences")
    sentences = []
    for batch in batches:
        token_ids = batch.token_ids[:, : recipe.prompt_tokens]
        with torch.no_grad():
            written: Any = lm.model.generate(  # pyright: ignore[reportCallIssue]
                input_ids=token_ids.to(lm.device),
                attention_mask=torch.ones_like(token_ids).to(lm.device),
                max_new_tokens=room_after(lm, token_ids[0].tolist(), recipe.sentence_tokens),
                do_sample=False,
                pad_token_id=lm.pad_id,
            )
        ids = written.cpu()
        mask = ids != lm.pad_id
        mask[:, : recipe.prompt_tokens] = True  # a family may pad with a token that its text holds, such as EOS
        sentences.append(TextBatch(ids, mask))
    return sentences


# ---- the method ---------------------------------------------------------------------------------


def _without_peft() -> BackendError | None:
    if importlib.util.find_spec("peft") is not None:
        return None
    return BackendError("crisp needs peft, which is not installed: pip install 'sae-forge[baselines]'")


METHOD = retraining(
    CRISP,
    axes=lambda size, _: ({"num_features": parts(size, 2), "beta": [0.99, 10.0]}, Strength("rate", 1.0, 10.0)),
    from_flags=lambda size, materials: [{"num_features": size} | paced(CRISP, materials)],
    needs=lambda _: _without_peft(),
    build=lambda settings, materials: CRISP(
        suppressed=(Suppressed(materials.point, materials.sae, latents_of(settings, materials)),),
        **{name: value for name, value in settings.items() if name != "num_features"},
    ),
)
