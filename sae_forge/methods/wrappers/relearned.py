"""Relearning: whatever was done to the model, it is trained a little on the forget text, as someone who has it could.

What comes back in a few steps was never gone. The edits that were in force are in force while it trains too.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar

from sae_forge.config.fields import Setting
from sae_forge.methods.method import Settings, Wrapper, on_each, without_shards
from sae_forge.methods.weights.recipe import Pace, PaceSettings, every_weight
from sae_forge.progress import SILENT, Progress

if TYPE_CHECKING:
    from torch import nn

    from sae_forge.interventions.edit import Edit
    from sae_forge.methods.materials import Materials
    from sae_forge.methods.subjects import Subject
    from sae_forge.methods.weights.objectives import Loss
    from sae_forge.methods.weights.texts import Texts
    from sae_forge.models.loading import LanguageModel


@dataclass(frozen=True, kw_only=True)
class RelearnedConfig(PaceSettings):
    """How hard a method is tried by relearning."""

    relearn_steps: Annotated[
        int,
        "relearned: steps each method named beside it is trained on the forget text, as an attack.",
        Setting(at_least=1, wanted="give at least 1 step"),
    ] = 50


@dataclass(frozen=True, kw_only=True)
class Relearning(Pace):
    """``nll(forget)`` through all weights, under edits."""

    edits: tuple["Edit", ...] = field(repr=False)

    name: ClassVar[str] = "relearned"
    changed = every_weight

    @contextmanager
    def training(self, lm: "LanguageModel") -> Iterator["list[nn.Parameter]"]:
        """The model's weights, while the edits are in force."""
        from sae_forge.interventions.apply import attached
        from sae_forge.methods.weights.training import taking_gradients

        with attached(lm, self.edits), taking_gradients(lm, self.changed(lm)) as weights:
            yield weights

    def loss(self, lm: "LanguageModel", frozen: "LanguageModel", retain: "Texts", seed: int) -> "Loss":
        from sae_forge.methods.weights.objectives import nats_per_token

        del frozen, retain, seed

        # plain next-token loss: whoever attacks has the text and nothing else
        return lambda forget_batch, _: nats_per_token(lm, forget_batch)


@dataclass(frozen=True, eq=False)
class Relearned:
    """A subject whose weights were trained on the forget text afterwards."""

    inner: "Subject"
    recipe: Relearning
    forget: "Texts"
    seed: int
    changes_weights: bool = True

    @property
    def edits(self) -> tuple["Edit", ...]:
        """Those of the subject."""
        return self.inner.edits

    def weights(self, lm: "LanguageModel", progress: Progress = SILENT) -> "LanguageModel":
        """The subject's weights, trained on."""
        from sae_forge.methods.weights.training import unlearn

        before = self.inner.weights(lm, progress)
        return unlearn(before, self.recipe, self.forget, self.forget, seed=self.seed, progress=progress)


def _wrap(inner: "Subject", settings: Settings, materials: "Materials") -> "Subject":
    config = materials.setting(RelearnedConfig)
    recipe = Relearning(
        edits=inner.edits,
        steps=settings["relearn_steps"],
        lr=config.baseline_lr or Relearning.lr,
        batch_size=config.baseline_batch or Relearning.batch_size,
    )
    return Relearned(inner, recipe, materials.forget_texts, config.seed)


METHOD = Wrapper(
    name="relearned",
    title=lambda settings: f"relearned for {settings['relearn_steps']} steps",
    from_flags=lambda materials: {"relearn_steps": materials.setting(RelearnedConfig).relearn_steps},
    wrap=_wrap,
    needs=lambda materials: without_shards("relearned", "trains on the collected text", materials),
    settings=RelearnedConfig,
    over=on_each,
)
