"""A dictionary into the files of a format: refused by name before anything is written, else whole or not at all."""

from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae_forge.errors import ConfigError
from sae_forge.hookpoint import HookPoint
from sae_forge.sae.architectures.architecture import Built
from sae_forge.sae.formats import table
from sae_forge.sae.formats.build import answers
from sae_forge.sae.formats.format import Format, Given, Recipe
from sae_forge.sae.groupmax import GroupMaxSAE
from sae_forge.sae.topk import TopKSAE
from sae_forge.store import files
from sae_forge.store.tensors import publish_tensors


def given(sae: Built, point: HookPoint, *, model: str = "", module: Callable[[], str] | None = None) -> Given:
    """A dictionary as writers are handed it; its tensors are the dictionary's own.

    Args:
        module: Names the module whose output it reads, where that is known.
    """

    def unknown() -> str:
        raise ConfigError(f"no module is known whose output {point} is; name the model with --model")

    tensors = {name: weights.detach().float().cpu() for name, weights in sae.named_parameters()}
    match sae:
        case TopKSAE():
            architecture = "topk"
        case GroupMaxSAE():
            architecture = "groupmax"
        case _:  # below 0 a threshold of ours does what one of 0 does, and a few tools fire there
            tensors["threshold"] = tensors["threshold"].clamp_min(0)
            architecture = "jumprelu" if bool(tensors["threshold"].any()) else "standard"
    return Given(
        architecture=architecture,
        tensors=tensors,
        takes_off_b_dec=isinstance(sae, TopKSAE),
        d_in=sae.d_in,
        d_sae=sae.d_sae,
        k=getattr(sae, "k", None),
        point=point,
        model=model,
        module=module or unknown,
    )


def write(out: Path, entry: Format, sae: Given) -> Path:
    """The folder of the SAE, ``out`` or one inside it; what reads ``entry`` gets acts and output as they were.

    Raises:
        ConfigError: the format cannot say its architecture, its site or its place, or something is there already.
        ResourceError: the disk is full or the folder cannot be written.
    """
    writer = entry.writer
    if writer is None:
        raise ConfigError(f"{entry.name} is read and not written; formats that are: {_named(table.WRITTEN)}")
    if sae.architecture not in writer.architectures:
        able = [one for one in table.WRITTEN if one.writer and sae.architecture in one.writer.architectures]
        raise ConfigError(
            f"{entry.name} has no {sae.architecture} SAEs, only {', '.join(writer.architectures)}; formats that have "
            f"them: {_named(able)}"
        )
    if sae.point.site not in writer.sites:
        able = [one for one in table.WRITTEN if one.writer and sae.point.site in one.writer.sites]
        raise ConfigError(
            f"{entry.name} has no name for {sae.point}, only for {', '.join(writer.sites)}; formats that have one: "
            f"{_named(able)}"
        )
    said = writer.say(sae)
    folder = out / said.inside
    if folder.exists():
        raise ConfigError(f"{folder} is there already; name another --out")
    weights = PurePosixPath(entry.weights)
    with files.publish_folder(folder) as scratch:
        _save(scratch / weights, {**_tensors(sae, said.recipe), **said.numbers})
        for name, settings in said.settings.items():
            (scratch / name).write_bytes(files.sealed_json(settings))
    return folder


def _named(entries: Any) -> str:
    return ", ".join(entry.name for entry in entries) or "none"


def _tensors(sae: Given, recipe: Recipe) -> dict[str, Tensor]:
    """Its weights under the format's names and in its conventions, so that the recipe reads the same."""
    ours = dict(sae.tensors)
    if recipe.takes_off_b_dec != sae.takes_off_b_dec:
        shift = answers(ours["W_enc"].T, ours["b_dec"].double())
        ours["b_enc"] = (ours["b_enc"].double() + (shift if recipe.takes_off_b_dec else -shift)).float()
    if "threshold" in recipe.names and "threshold" not in ours:
        ours["threshold"] = torch.zeros(sae.d_sae)
    return {
        theirs: (ours[name].T if name in recipe.turned else ours[name]).contiguous()
        for name, theirs in recipe.names.items()
    }


def _save(path: Path, tensors: dict[str, Tensor]) -> None:
    match path.suffix:
        case ".npz":
            arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in tensors.items()}
            np.savez(path, **arrays)
        case ".pt":  # a pickle, since that is what its tool reads; of plain tensors, so it runs nothing
            try:
                torch.save(tensors, path)
            except RuntimeError as error:  # its way to say that the disk is full
                raise OSError(str(error)) from error
        case _:
            publish_tensors(path, tensors)
