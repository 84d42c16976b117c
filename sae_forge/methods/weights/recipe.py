"""A recipe of retraining: which weights are trained, on what loss, for how long; and the method it makes.

A file of this folder declares a recipe as a frozen dataclass. Recipes load torch inside their functions alone, since
the command line reads the flags of every method.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Protocol, runtime_checkable

from sae_forge.config.fields import Setting
from sae_forge.config.model import ModelConfig
from sae_forge.errors import ForgeError
from sae_forge.methods.method import Axes, Method, Settings, short, without_shards

if TYPE_CHECKING:
    from torch import nn

    from sae_forge.methods.materials import Materials
    from sae_forge.methods.subjects import Subject
    from sae_forge.methods.weights.objectives import Loss
    from sae_forge.methods.weights.texts import Texts
    from sae_forge.models.loading import LanguageModel


@dataclass(frozen=True, kw_only=True)
class PaceSettings(ModelConfig):
    """How long and how fast whatever is retrained is trained."""

    heading: ClassVar[str] = "Retraining"

    baseline_steps: Annotated[
        int | None,
        "Retrained baselines: optimizer steps. Unset: the paper's.",
        Setting(at_least=1, wanted="give at least 1 step"),
    ] = None
    baseline_lr: Annotated[
        float | None,
        "Retrained baselines: learning rate, which a sweep goes around. Unset: the paper's.",
        Setting(above=0, finite=True, wanted="give a rate above 0"),
    ] = None
    baseline_batch: Annotated[
        int | None,
        "Retrained baselines: sequences a step takes of each side. Unset: the paper's.",
        Setting(at_least=1, wanted="give at least 1 sequence"),
    ] = None
    baseline_weight_decay: Annotated[
        float | None,
        "Retrained baselines: AdamW's weight decay. Unset: 0.01, as torch.",
        Setting(at_least=0, finite=True, younger=True, wanted="give 0 or more"),
    ] = None
    baseline_eps: Annotated[
        float | None,
        "Retrained baselines: AdamW's eps. Unset: 1e-8, as torch; AdamW of transformers 4 has 1e-6.",
        Setting(above=0, finite=True, younger=True, wanted="give a value above 0"),
    ] = None
    eos_targets: Annotated[
        bool,
        "Retrained baselines: EOS between texts is a token to predict too, as in training on question and answer.",
        Setting(younger=True),
    ] = False


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How long and how fast a recipe trains, by AdamW at a constant rate; the defaults are its paper's."""

    steps: int = 400
    lr: float = 1e-5
    batch_size: int = 8
    """Sequences a step takes of each side."""
    weight_decay: float = 0.01
    eps: float = 1e-8
    """Added to AdamW's denominator."""
    amsgrad: bool = False


@runtime_checkable
class Recipe(Protocol):
    """What ``training.unlearn`` asks of a recipe beside the fields of :class:`Pace`."""

    name: ClassVar[str]

    @property
    def steps(self) -> int: ...
    @property
    def lr(self) -> float: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def eps(self) -> float: ...
    @property
    def amsgrad(self) -> bool: ...

    def changed(self, lm: "LanguageModel") -> list[str]:
        """Names of the weights that come out different; all others are shared with the given model.

        Raises:
            ConfigError: the recipe does not fit the model.
        """
        ...

    def loss(self, lm: "LanguageModel", frozen: "LanguageModel", retain: "Texts", seed: int) -> "Loss":
        """The loss of a forget and a retain batch as a function of ``lm``'s weights.

        Args:
            frozen: The given model, for a recipe that needs a reference.
            retain: What the retain batches are drawn from.
        """
        ...


def every_weight(recipe: Pace, lm: "LanguageModel") -> list[str]:
    """``changed`` of a recipe that trains all there is."""
    del recipe
    return [name for name, _ in lm.model.named_parameters()]


@runtime_checkable
class Adapting(Protocol):
    """A recipe that trains weights of its own making instead of the model's, such as adapters."""

    def training(self, lm: "LanguageModel") -> "AbstractContextManager[list[nn.Parameter]]":
        """The weights that take gradients inside the block; after it ``lm`` has its own alone, changed by them."""
        ...


def retraining(
    recipe: type[Any],
    *,
    axes: Callable[[int, "Materials"], Axes],
    rough: tuple[str, ...] = ("lr",),
    least: int = 1,
    from_flags: Callable[[int, "Materials"], list[Settings]] | None = None,
    finished: Callable[[Settings, "Materials"], Settings] | None = None,
    needs: Callable[["Materials"], ForgeError | None] = lambda materials: None,  # noqa: ARG005
    build: Callable[[Settings, "Materials"], Recipe] | None = None,
    settings: type[PaceSettings] = PaceSettings,
) -> Method:
    """A method that trains by a recipe, a subclass of :class:`Pace` with a ``name``.

    Its settings are the recipe's arguments; a sweep's ``rate`` and ``passes`` are times its rate and its steps.

    Args:
        rough: The settings that say how rough it is.
        build: The recipe at these settings, where more than they goes into it.
        settings: The config class of its flags, where it has more than those of pace.
    """
    name = recipe.name

    def paced_by_flags(size: int, materials: "Materials") -> list[Settings]:
        del size
        return [paced(recipe, materials)]

    def paced_by_point(point: Settings, materials: "Materials") -> Settings:
        own = {key: value for key, value in point.items() if key not in ("rate", "passes")}
        return own | paced(recipe, materials, rate=point.get("rate", 1.0), passes=point.get("passes", 1.0))

    def possible(materials: "Materials") -> ForgeError | None:
        return needs(materials) or without_shards(name, "trains on the collected text", materials)

    def built(settings: Settings, materials: "Materials") -> "Subject":
        from sae_forge.methods.subjects import Retrained

        made = recipe(**settings) if build is None else build(settings, materials)
        return Retrained(made, materials.forget_texts, materials.retain_texts, materials.config.seed)

    return Method(
        name=name,
        kind="weights",
        rough=rough,
        unsaid=("steps", "batch_size"),
        from_flags=from_flags or paced_by_flags,
        axes=axes,
        finished=finished or paced_by_point,
        least=least,
        needs=possible,
        build=built,
        settings=settings,
    )


def paced(recipe: type[Pace], materials: "Materials", *, rate: float = 1.0, passes: float = 1.0) -> Settings:
    """How long and how fast a recipe trains: ``rate`` and ``passes`` times what was asked for, or its own defaults.

    What else the flags name of the optimizer and of the targets stands there only where they name it.
    """
    # `or`: unset is None, and bounds refuse 0
    config = materials.setting(PaceSettings)
    named = {"weight_decay": config.baseline_weight_decay, "eps": config.baseline_eps}
    if hasattr(recipe, "eos"):  # of its losses next tokens are a part
        named["eos"] = config.eos_targets or None
    return {
        "lr": short(rate * (config.baseline_lr or recipe.lr)),
        "steps": max(1, round(passes * (config.baseline_steps or recipe.steps))),
        "batch_size": config.baseline_batch or recipe.batch_size,
        **{name: value for name, value in named.items() if value is not None},
    }
