"""RMU: push the activations of forget text onto one random direction, and hold those of retain text where they are.

The formula is that of arXiv 2403.03218: ``MSE(h(x_f), u) + alpha MSE(h(x_r), h_frozen(x_r))`` at one layer, trained
through the MLP output projections of that layer and the two below it.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, get_args

from sae_forge.config.fields import Setting
from sae_forge.errors import ConfigError
from sae_forge.hookpoint import HookPoint
from sae_forge.methods.method import Settings, Strength, short
from sae_forge.methods.weights.recipe import Pace, PaceSettings, paced, retraining

if TYPE_CHECKING:
    from torch import Tensor

    from sae_forge.methods.materials import Materials
    from sae_forge.methods.weights.objectives import Loss
    from sae_forge.methods.weights.texts import TextBatch, Texts
    from sae_forge.models.loading import LanguageModel

Mean = Literal["real", "attended", "positions", "texts", "open_unlearning"]
"""``real``: all tokens of text alike. ``attended``: BOS and EOS too. ``positions``: padding too, as the reference
implementation. ``texts``: a text's mean first, then that of all, the paper's formula. ``open_unlearning``: the mean of
the texts' sums times the mean of their inverse lengths, as that library's code has it; for texts of one length the
same."""
TRAINED_LAYERS = 3
"""The layer of the loss and those right below it."""
LEAST = 12
"""Settings that RMU needs at least: an under-tuned one makes every rival look good."""


@dataclass(frozen=True, kw_only=True)
class RMUSettings(PaceSettings):
    """RMU's target, its weights, and what it averages over."""

    heading: ClassVar[str] = "Retraining"

    rmu_coefficient: Annotated[
        float | None,
        "RMU: length of the target. Unset: twice the norm of a retain activation.",
        Setting(above=0, finite=True, younger=True, tuned=lambda _: True, wanted="give a length above 0"),
    ] = None
    rmu_alpha: Annotated[
        float,
        "RMU: weight of the retain term.",
        Setting(at_least=0, finite=True, younger=True, tuned=lambda _: True, wanted="give 0 or more"),
    ] = 100.0
    rmu_mean: Annotated[
        Mean,
        "RMU averages over real tokens, attended ones, all positions (its code), texts (its paper) or as that library.",
        Setting(younger=True),
    ] = "real"


@dataclass(frozen=True, kw_only=True)
class RMU(Pace):
    """Steer the forget text's activations to ``coefficient`` times a random unit direction."""

    layer: int
    """Layer whose output the loss reads."""
    coefficient: float = 20.0
    """Length of the target; the papers use 6.5 (Zephyr 7B) to 400 (Gemma 2 2B), as norms differ between models."""
    alpha: float = 100.0
    """Weight of the retain term."""
    steps: int = 150
    lr: float = 5e-5
    batch_size: int = 4
    mean: Mean = "real"
    """What both squared distances are averaged over."""
    sink_norm: float | None = None
    """Length beyond which an activation of the given model is a sink's and counts in neither; None: all count."""

    name: ClassVar[str] = "rmu"

    def __post_init__(self) -> None:
        if not (self.layer >= 0 and self.coefficient > 0 and self.alpha >= 0):
            raise ConfigError(
                f"RMU(layer={self.layer}, coefficient={self.coefficient}, alpha={self.alpha}) cannot be trained; "
                "give a layer of 0 or more, a coefficient above 0 and alpha of 0 or more"
            )
        if self.mean not in get_args(Mean):
            raise ConfigError(f"mean={self.mean!r} is unknown; choose one of {', '.join(get_args(Mean))}")

    def changed(self, lm: "LanguageModel") -> list[str]:
        """The MLP output projections at the layer and the two below it."""
        from sae_forge.models.hooks import check_points
        from sae_forge.models.projections import written_through

        check_points(lm, [HookPoint(self.layer)])
        layers = range(max(0, self.layer - TRAINED_LAYERS + 1), self.layer + 1)
        return [name for layer in layers for name in written_through(lm, layer)]

    def direction(self, d_in: int, seed: int) -> "Tensor":
        """The target ``[d_in]``: uniform on [0, 1) in every coordinate, then brought to length ``coefficient``."""
        import torch

        from sae_forge.rng import generator

        # uniform in [0, 1), as the reference implementation draws it: no direction of the sphere, but one of an orthant
        drawn = torch.from_numpy(generator(seed, "rmu direction").random(d_in))
        return (self.coefficient * drawn / drawn.norm()).float()

    def loss(self, lm: "LanguageModel", frozen: "LanguageModel", retain: "Texts", seed: int) -> "Loss":
        """No layer above the recipe's runs."""
        from sae_forge.methods.weights.objectives import real_tokens, squared_mean, without_sinks
        from sae_forge.models.hooks import capture, capture_with_gradients

        del retain
        point, target = HookPoint(self.layer), self.direction(frozen.d_model, seed)

        def distance(x: "Tensor", aim: "Tensor", batch: "TextBatch", before: "Tensor | None") -> "Tensor":
            counted = real_tokens(frozen, batch)
            if self.mean in ("attended", "positions"):
                counted = batch.attention_mask | (self.mean == "positions")
            if before is not None:
                counted = without_sinks(counted, before, self.sink_norm)
            return squared_mean(x, aim.to(x.device), counted, self.mean)

        def of(forget_batch: "TextBatch", retain_batch: "TextBatch") -> "Tensor":
            pushed = capture_with_gradients(lm, [point], *forget_batch)[point]
            given = capture(frozen, [point], *forget_batch)[point] if self.sink_norm else None
            forget_loss = distance(pushed, target, forget_batch, given)
            if self.alpha == 0:
                return forget_loss
            # h(x_r) and h_frozen(x_r) of the same batch, [batch, seq, d_model] at the output of the layer
            held = capture_with_gradients(lm, [point], *retain_batch)[point]
            before = capture(frozen, [point], *retain_batch)[point]
            return forget_loss + self.alpha * distance(held, before, retain_batch, before)

        return of


def _from_flags(size: int, materials: "Materials") -> list[Settings]:
    del size
    config = materials.setting(RMUSettings)
    if config.rmu_coefficient is None:
        return [_aimed(2.0, config.rmu_alpha, 1.0, materials)]
    return [{"coefficient": config.rmu_coefficient, "alpha": config.rmu_alpha} | _trained(1.0, materials)]


def _aimed(times: float, alpha: float, rate: float, materials: "Materials") -> Settings:
    """RMU's target is as long as ``times`` the activation of a retain token."""
    coefficient = {"coefficient": short(times * materials.retain_norm), "relative": times, "alpha": alpha}
    return coefficient | _trained(rate, materials)


def _trained(rate: float, materials: "Materials") -> Settings:
    mean = materials.setting(RMUSettings).rmu_mean
    return paced(RMU, materials, rate=rate) | ({} if mean == "real" else {"mean": mean})


METHOD = retraining(
    RMU,
    axes=lambda *_: ({"alpha": [10.0, 100.0], "rate": [1.0, 3.0]}, Strength("times", 2.0, 16.0)),
    rough=("coefficient", "lr"),
    least=LEAST,
    from_flags=_from_flags,
    finished=lambda point, materials: _aimed(point["times"], point["alpha"], point["rate"], materials),
    build=lambda settings, materials: RMU(
        layer=materials.point.layer,
        sink_norm=materials.sink_norm,
        **{name: value for name, value in settings.items() if name != "relative"},
    ),
    settings=RMUSettings,
)
