"""RMU: push the activations of forget text onto one random direction, and hold those of retain text where they are.

The formula is that of arXiv 2403.03218: ``MSE(h(x_f), u) + alpha MSE(h(x_r), h_frozen(x_r))`` at one layer, trained
through the MLP output projections of that layer and the two below it.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sae_forge.errors import ConfigError
from sae_forge.hookpoint import HookPoint
from sae_forge.methods.method import Settings, Strength, short
from sae_forge.methods.weights.recipe import Pace, paced, retraining

if TYPE_CHECKING:
    from torch import Tensor

    from sae_forge.methods.materials import Materials
    from sae_forge.methods.weights.objectives import Loss
    from sae_forge.methods.weights.texts import TextBatch, Texts
    from sae_forge.models.loading import LanguageModel

TRAINED_LAYERS = 3
"""The layer of the loss and those right below it."""
LEAST = 12
"""Settings that RMU needs at least: an under-tuned one makes every rival look good."""


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
    include_padding: bool = False
    """Average over every position, padding, BOS and EOS too, as the reference implementation does."""

    name: ClassVar[str] = "rmu"

    def __post_init__(self) -> None:
        if not (self.layer >= 0 and self.coefficient > 0 and self.alpha >= 0):
            raise ConfigError(
                f"RMU(layer={self.layer}, coefficient={self.coefficient}, alpha={self.alpha}) cannot be trained; "
                "give a layer of 0 or more, a coefficient above 0 and alpha of 0 or more"
            )

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
        import torch

        from sae_forge.methods.weights.objectives import mean_squared, real_tokens
        from sae_forge.models.hooks import capture, capture_with_gradients

        del retain
        point, target = HookPoint(self.layer), self.direction(frozen.d_model, seed)

        def counted(batch: "TextBatch") -> "Tensor":
            return torch.ones_like(batch.attention_mask) if self.include_padding else real_tokens(frozen, batch)

        def of(forget_batch: "TextBatch", retain_batch: "TextBatch") -> "Tensor":
            pushed = capture_with_gradients(lm, [point], *forget_batch)[point]
            forget_loss = mean_squared(pushed, target.to(pushed.device), counted(forget_batch))
            if self.alpha == 0:
                return forget_loss
            # h(x_r) and h_frozen(x_r) of the same batch, [batch, seq, d_model] at the output of the layer
            held = capture_with_gradients(lm, [point], *retain_batch)[point]
            before = capture(frozen, [point], *retain_batch)[point]
            return forget_loss + self.alpha * mean_squared(held, before, counted(retain_batch))

        return of


def _aimed(times: float, alpha: float, rate: float, materials: "Materials") -> Settings:
    """RMU's target is as long as ``times`` the activation of a retain token."""
    coefficient = {"coefficient": short(times * materials.retain_norm), "relative": times, "alpha": alpha}
    return coefficient | paced(RMU, materials, rate=rate)


METHOD = retraining(
    RMU,
    axes=lambda *_: ({"alpha": [10.0, 100.0], "rate": [1.0, 3.0]}, Strength("times", 2.0, 16.0)),
    rough=("coefficient", "lr"),
    least=LEAST,
    from_flags=lambda _, materials: [_aimed(2.0, RMU.alpha, 1.0, materials)],
    finished=lambda point, materials: _aimed(point["times"], point["alpha"], point["rate"], materials),
    build=lambda settings, materials: RMU(
        layer=materials.point.layer, **{name: value for name, value in settings.items() if name != "relative"}
    ),
)
