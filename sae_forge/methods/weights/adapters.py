"""Low-rank adapters on a model's projections: trained in the place of its weights, then merged into them."""

import importlib
import importlib.util
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING

from sae_forge.errors import BackendError, CheckpointError, ConfigError
from sae_forge.hookpoint import HookPoint
from sae_forge.methods.weights.recipe import Pace
from sae_forge.methods.weights.sentences import DEFAULT, Writing, given, written

if TYPE_CHECKING:
    from torch import nn

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
    sink_norm: float | None = None
    """Length beyond which an activation of the given model is a sink's there and counts in no loss; None: all count."""


@dataclass(frozen=True, kw_only=True, eq=False)
class AdapterPace(Pace):
    """What recipes have in common that silence latents through adapters; the defaults are CRISP's."""

    suppressed: tuple[Suppressed, ...]
    """At one hook point or several; the losses are means over them."""
    layers: tuple[int, ...] | None = None
    """Layers that are adapted. None: all up to the highest hook point."""
    alpha: float = 5.0
    """How far an act is moved, in means of the token's whole code."""
    beta: float = 0.99
    """Weight of the retain term."""
    gamma: float = 0.01
    """Weight of the coherence term; 0 leaves it out."""
    rank: int = 4
    dropout: float = 0.05
    """Of what adapters read; 0 in models with experts, whose stacked weights peft adapts without it."""
    writing: Writing = DEFAULT
    """The sentences of the coherence term, where they are the given model's own."""
    fixed: tuple[str, ...] = ()
    """Sentences to take instead."""
    batch_size: int = 1
    amsgrad: bool = True

    def __post_init__(self) -> None:
        if not self.suppressed or not all(entry.latents for entry in self.suppressed):
            raise ConfigError("CRISP needs latents to suppress; select at least one at each hook point")
        if self.rank < 1 or not 0 <= self.dropout < 1:
            raise ConfigError(f"rank={self.rank}, dropout={self.dropout}: give a rank from 1 and a dropout in [0, 1)")

    @property
    def points(self) -> list[HookPoint]:
        """Where latents are read."""
        return list(dict.fromkeys(entry.point for entry in self.suppressed))

    @property
    def sink_norms(self) -> dict[HookPoint, float | None]:
        """The sinks' length at each point."""
        return {entry.point: entry.sink_norm for entry in self.suppressed}

    def changed(self, lm: "LanguageModel") -> list[str]:
        return [projection.weight for projection in adapted(lm, self.suppressed, self.layers)]

    def training(self, lm: "LanguageModel") -> AbstractContextManager["list[nn.Parameter]"]:
        return adapting(lm, adapted(lm, self.suppressed, self.layers), self.rank, self.dropout)

    def sentences(self, frozen: "LanguageModel", retain: "Texts", seed: int) -> "Iterator[TextBatch] | None":
        """Those of the coherence term, over and over; None without.

        They are fixed, or written by ``frozen`` before the first step.
        """
        if not self.gamma:
            return None
        if self.fixed:
            return cycle(given(frozen, self.fixed, self.batch_size))
        return cycle(written(frozen, self.writing, retain, self.batch_size, seed))


def adapted(
    lm: "LanguageModel", suppressed: Sequence[Suppressed], layers: tuple[int, ...] | None
) -> "list[Projection]":
    """Every projection of the layers; None: of all up to the highest hook point.

    Raises:
        ConfigError: a hook point or layer lies beyond the model.
        CheckpointError: an SAE is of another width than the model.
    """
    from sae_forge.models.hooks import check_points
    from sae_forge.models.projections import projections

    points = [entry.point for entry in suppressed]
    check_points(lm, points)
    for entry in suppressed:
        if entry.sae.d_in != lm.d_model:
            raise CheckpointError(
                f"the SAE reads activations {entry.sae.d_in} wide, but {lm.name} is {lm.d_model} wide; "
                "use one trained on it"
            )
    layers = layers or tuple(range(max(point.layer for point in points) + 1))
    check_points(lm, [HookPoint(layer) for layer in layers])
    return [projection for layer in layers for projection in projections(lm, layer)]


@contextmanager
def adapting(
    lm: "LanguageModel", projections: "Sequence[Projection]", rank: int, dropout: float
) -> Iterator["list[nn.Parameter]"]:
    """Inside the block ``lm`` has adapters, whose weights are given; after it they are merged into its own.

    Draws from torch's own random numbers: seed them first.

    Raises:
        BackendError: peft is not installed.
    """
    from transformers.pytorch_utils import Conv1D

    if error := without_peft():
        raise error
    peft = importlib.import_module("peft")
    linear = [projection.module for projection in projections if projection.module]
    experts = [projection.weight for projection in projections if not projection.module]
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=0.0 if experts else dropout,
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


def without_peft() -> BackendError | None:
    """The error to raise where peft is not installed."""
    if importlib.util.find_spec("peft") is not None:
        return None
    return BackendError("crisp and suppress need peft, which is not installed: pip install 'sae-forge[baselines]'")
