"""Unlearning in the weights: a recipe and two bodies of text in, a new model out, the given one left as it was."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from sae_forge.errors import ConfigError, NumericalError, ResourceError, UnsupportedModelError
from sae_forge.methods.weights.objectives import Loss
from sae_forge.methods.weights.recipe import Adapting, Recipe
from sae_forge.methods.weights.texts import Texts, iter_batches
from sae_forge.models.loading import LanguageModel
from sae_forge.progress import SILENT, Progress, Task
from sae_forge.rng import torch_seed


def unlearn(
    lm: LanguageModel, recipe: Recipe, forget: Texts, retain: Texts, *, seed: int = 0, progress: Progress = SILENT
) -> LanguageModel:
    """A model that the recipe was trained into; ``lm`` keeps every bit.

    The two share the weights that the recipe does not train, so neither may be changed in place afterwards. Dropout
    of the model itself stays off. The optimizer works on float32 copies of half-precision weights, as steps of 1e-5
    would be lost to rounding there. The same arguments give the same bits on one machine.

    Raises:
        ConfigError: the recipe does not fit the model, or no step is to be taken.
        UnsupportedModelError: the weights are quantized.
        NumericalError: a loss or gradient is not finite.
        ResourceError: the device's memory does not hold a step.
        BackendError: a package that the recipe needs is not installed.
    """
    if recipe.steps < 1 or recipe.batch_size < 1 or not recipe.lr > 0:
        raise ConfigError(
            f"steps={recipe.steps}, batch_size={recipe.batch_size}, lr={recipe.lr}: {recipe.name} needs at least one "
            "step of one sequence at a rate above 0"
        )
    if lm.quantize != "none":
        raise UnsupportedModelError(f"{lm.name} was loaded in {lm.quantize}, which takes no training; drop --quantize")
    devices = {weight.device for weight in lm.model.parameters() if weight.device.type == "cuda"}
    try:
        with (  # numbers drawn inside depend on the seed alone, and those drawn after are as if none had been
            torch.random.fork_rng(sorted(devices, key=str)),
            progress.task(f"unlearn {recipe.name}", recipe.steps, "steps") as task,
        ):
            torch.manual_seed(torch_seed(seed, "unlearn"))
            names = recipe.changed(lm)
            changed = own_copy(lm, recipe.name, names)
            with (
                recipe.training(changed)
                if isinstance(recipe, Adapting)
                else taking_gradients(changed, names) as weights
            ):
                _fit(weights, recipe.loss(changed, lm, retain, seed), recipe, forget, retain, seed, task)
            return changed
    except torch.OutOfMemoryError as error:
        raise ResourceError(
            f"{recipe.name} with batch_size={recipe.batch_size} does not fit on {lm.device}; "
            "lower batch_size, or collect with a shorter --ctx_len"
        ) from error


# ---- the model under training -------------------------------------------------------------------


def own_copy(lm: LanguageModel, name: str, trained: Sequence[str]) -> LanguageModel:
    """``lm`` again, with weights of its own where they are trained."""
    own = set(trained)
    # a memo that says these were copied already, so that deepcopy takes them as they are
    shared = {id(weight): weight for key, weight in lm.model.named_parameters() if key not in own}
    model = copy.deepcopy(lm.model, shared)
    return replace(lm, model=model, name=f"{lm.name}-{name}", revision=None, folder=None)


@contextmanager
def taking_gradients(lm: LanguageModel, names: Sequence[str]) -> Iterator[list[nn.Parameter]]:
    """The weights called ``names``, taking gradients while the block runs."""
    weights = [lm.model.get_parameter(name) for name in names]
    try:
        for weight in weights:
            weight.requires_grad_(True)
        yield weights
    finally:
        for weight in weights:
            weight.requires_grad_(False)


def _fit(
    weights: list[nn.Parameter],
    loss: Loss,
    recipe: Recipe,
    forget: Texts,
    retain: Texts,
    seed: int,
    task: Task,
) -> None:
    """Take the recipe's steps; a step is taken only where the loss and every gradient are finite."""
    optimizer = _Optimizer(weights, recipe)
    count, batch_size = recipe.steps, recipe.batch_size
    pairs = zip(
        iter_batches(forget, count=count, batch_size=batch_size, seed=seed, purpose="unlearn forget"),
        iter_batches(retain, count=count, batch_size=batch_size, seed=seed, purpose="unlearn retain"),
        strict=True,
    )
    for step, (forget_batch, retain_batch) in enumerate(pairs):
        value = loss(forget_batch, retain_batch)
        _require_finite(value, "loss", recipe, step)
        # not backward(): nothing is left in any .grad, and weights that the loss does not reach give None
        gradients = torch.autograd.grad(value, weights, allow_unused=True)
        slopes = [slope.float() for slope in gradients if slope is not None]
        _require_finite(nn.utils.get_total_norm(slopes), "gradient", recipe, step)
        optimizer.step(gradients)
        task.advance(1, loss=f"{value.item():.4g}")


def _require_finite(value: Tensor, what: str, recipe: Recipe, step: int) -> None:
    if not torch.isfinite(value):
        raise NumericalError(
            f"the {what} of {recipe.name} is not finite at step {step + 1} of {recipe.steps} (lr={recipe.lr}); "
            "lower the rate, or load the model with --dtype fp32 or bf16"
        )


class _Optimizer:
    """AdamW at a constant rate, on the weights themselves where they are float32 and on float32 copies elsewhere."""

    def __init__(self, weights: Sequence[nn.Parameter], recipe: Recipe) -> None:
        self._weights = weights
        self._masters = [
            weight if torch.finfo(weight.dtype).bits >= 32 else nn.Parameter(weight.detach().float())
            for weight in weights
        ]
        self._adamw = torch.optim.AdamW(
            self._masters, lr=recipe.lr, weight_decay=recipe.weight_decay, eps=recipe.eps, amsgrad=recipe.amsgrad
        )

    def step(self, gradients: Sequence[Tensor | None]) -> None:
        """Move every weight that has a gradient."""
        for master, slope in zip(self._masters, gradients, strict=True):
            master.grad = None if slope is None else slope.to(master.dtype)
        self._adamw.step()
        self._adamw.zero_grad()
        with torch.no_grad():
            for weight, master in zip(self._weights, self._masters, strict=True):
                if weight is not master:
                    weight.copy_(master)
