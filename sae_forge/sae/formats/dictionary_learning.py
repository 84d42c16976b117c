"""dictionary_learning's SAEs: ``ae.pt``, a pickle, and ``config.json`` beside it.

Each class there becomes the one of ours that computes the same: TopK by its k, the others by a threshold a latent,
with ``b_dec`` folded into ``b_enc`` where the class takes it off the input.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor

from sae_forge.errors import CheckpointError
from sae_forge.hookpoint import HookPoint
from sae_forge.sae.formats.checked import positive, require_finite, require_shapes
from sae_forge.sae.formats.pickled import read_pickled
from sae_forge.sae.jumprelu import JumpReLUSAE
from sae_forge.sae.topk import TopKSAE
from sae_forge.store import files

CONFIG = "config.json"
WEIGHTS = "ae.pt"

_LINEAR = {
    "encoder.weight": ("d_sae", "d_in"),
    "encoder.bias": ("d_sae",),
    "decoder.weight": ("d_in", "d_sae"),
}
_AXES: dict[str, dict[str, tuple[str, ...]]] = {
    "AutoEncoderTopK": {**_LINEAR, "b_dec": ("d_in",), "k": (), "threshold": ()},
    "BatchTopKSAE": {**_LINEAR, "b_dec": ("d_in",), "k": (), "threshold": ()},
    "AutoEncoder": {**_LINEAR, "bias": ("d_in",)},
    "JumpReluAutoEncoder": {
        "W_enc": ("d_in", "d_sae"),
        "W_dec": ("d_sae", "d_in"),
        "b_enc": ("d_sae",),
        "b_dec": ("d_in",),
        "threshold": ("d_sae",),
    },
}
_RESIDUAL = re.compile(r"resid_post_layer_(\d{1,6})")


@dataclass(frozen=True)
class Described:
    """What ``config.json`` says of its SAE."""

    kind: str
    """Name of the class there."""
    d_in: int
    d_sae: int
    point: HookPoint | None
    """Where it reads, if that is a block's output."""
    model: str
    """Empty when none is named."""


def load_dictionary_learning(path: Path, *, allow_pickle: bool) -> TopKSAE | JumpReLUSAE:
    """The SAE in ``path``, in fp32 on the CPU, its weights asking for no gradient.

    Raises:
        CheckpointError: pickles are not allowed; missing, damaged, or of a class that has no equal here.
    """
    told = describe(path)
    found = read_pickled(path, allowed=allow_pickle)
    sizes = {"d_in": told.d_in, "d_sae": told.d_sae}
    expected = {name: tuple(sizes[axis] for axis in shape) for name, shape in _AXES[told.kind].items()}
    if "k" in expected:
        found.setdefault("threshold", torch.tensor(-1.0))  # unset, as in files of before there was one
    require_shapes(path, {name: tuple(tensor.shape) for name, tensor in found.items()}, expected)
    require_finite(path, found)
    return _converted(told.kind, found, path).requires_grad_(False)


def describe(path: Path) -> Described:
    """What the ``config.json`` beside ``path`` says.

    Raises:
        CheckpointError: missing, malformed, or of a class that has no equal here.
    """
    config = path.parent / CONFIG
    value = files.read_json(config, kind=CheckpointError, what="the settings of a dictionary_learning SAE")
    trainer: Any = value.get("trainer") if isinstance(value, dict) else None
    if not isinstance(trainer, dict):
        raise CheckpointError(f'{config} is not the settings of a dictionary_learning SAE: it has no "trainer"')
    kind = trainer.get("dict_class")
    if kind not in _AXES:
        raise CheckpointError(f"{config} describes a {str(kind)[:40]}; only {', '.join(_AXES)} can be loaded")
    match = _RESIDUAL.fullmatch(str(trainer.get("submodule_name"))[:100])
    return Described(
        kind=kind,
        d_in=positive(trainer, "activation_dim", config),
        d_sae=positive(trainer, "dict_size", config),
        point=HookPoint(int(match[1]), "resid_post") if match else None,
        model=str(trainer.get("lm_name") or "")[:200],
    )


def _converted(kind: str, found: dict[str, Tensor], path: Path) -> TopKSAE | JumpReLUSAE:
    if kind == "JumpReluAutoEncoder":
        names = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
        return JumpReLUSAE(*(found[name].float() for name in names))
    W_enc = rearrange(found["encoder.weight"].float(), "d_sae d_in -> d_in d_sae")
    W_dec = rearrange(found["decoder.weight"].float(), "d_in d_sae -> d_sae d_in")
    b_enc, b_dec = found["encoder.bias"].float(), found["bias" if kind == "AutoEncoder" else "b_dec"].float()
    if kind == "AutoEncoderTopK":
        k = int(found["k"])
        if not 1 <= k <= len(b_enc):
            raise CheckpointError(f"{path} keeps k={k} latents per token of only d_sae={len(b_enc)}")
        return TopKSAE.from_weights(W_enc, b_enc, W_dec, b_dec, k)
    threshold = found["threshold"].float() if kind == "BatchTopKSAE" else torch.zeros(())
    shifted = (b_enc.double() - b_dec.double() @ W_enc.double()).float()
    return JumpReLUSAE(W_enc, shifted, W_dec, b_dec, repeat(threshold, "-> d_sae", d_sae=len(b_enc)).clone())
