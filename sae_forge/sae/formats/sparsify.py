"""Sparsify's SAEs: ``cfg.json`` and ``sae.safetensors`` in a folder named after the module they read, ``layers.10``."""

import re
from pathlib import Path
from typing import Any

from einops import rearrange

from sae_forge.errors import CheckpointError
from sae_forge.hookpoint import HookPoint
from sae_forge.sae.formats.checked import positive, require_finite, require_shapes
from sae_forge.sae.topk import TopKSAE
from sae_forge.store import files
from sae_forge.store.tensors import read_header, read_tensors

CFG = "cfg.json"
WEIGHTS = "sae.safetensors"
WHAT = "the weights of a sparsify SAE"

_LAYER = re.compile(r"(?:model\.)?layers\.(\d{1,6})")
_DEFAULT_EXPANSION = 32


def load_sparsify(folder: Path) -> TopKSAE:
    """The SAE in ``folder``, in fp32 on the CPU, its weights asking for no gradient.

    Raises:
        CheckpointError: missing or damaged, a transcoder, or of another activation function than TopK.
    """
    cfg, path = _settings(folder / CFG), folder / WEIGHTS
    d_in, k = positive(cfg, "d_in", folder / CFG), positive(cfg, "k", folder / CFG)
    d_sae = cfg.get("num_latents", 0) or d_in * positive(
        {"expansion_factor": _DEFAULT_EXPANSION} | cfg, "expansion_factor", folder / CFG
    )
    expected = {
        "encoder.weight": (d_sae, d_in),
        "encoder.bias": (d_sae,),
        "W_dec": (d_sae, d_in),
        "b_dec": (d_in,),
    }
    layout, _ = read_header(path, kind=CheckpointError, what=WHAT)
    require_shapes(path, {name: entry[1] for name, entry in layout.items()}, expected)
    if k > d_sae:
        raise CheckpointError(f"{folder / CFG} keeps k={k} latents per token of only d_sae={d_sae}")
    found = {name: tensor.float() for name, tensor in read_tensors(path, kind=CheckpointError, what=WHAT).items()}
    require_finite(path, found)
    W_enc = rearrange(found["encoder.weight"], "d_sae d_in -> d_in d_sae")
    sae = TopKSAE.from_weights(W_enc, found["encoder.bias"], found["W_dec"], found["b_dec"], k)
    return sae.requires_grad_(False)


def point_of_sparsify(folder: Path) -> HookPoint | None:
    """Where an SAE in a folder of this name reads: ``layers.10`` is the output of block 10."""
    match = _LAYER.fullmatch(folder.resolve().name)
    return HookPoint(int(match[1]), "resid_post") if match else None


def _settings(path: Path) -> dict[str, Any]:
    """The settings, refused unless they describe what a TopK SAE computes."""
    cfg = files.read_json(path, kind=CheckpointError, what="the settings of a sparsify SAE")
    if not isinstance(cfg, dict):
        raise CheckpointError(f"{path} is not the settings of a sparsify SAE: it is no JSON object")
    if cfg.get("activation", "topk") != "topk":
        raise CheckpointError(
            f"{path} asks for the activation {str(cfg['activation'])[:40]!r}; only topk can be loaded"
        )
    for name in ("transcode", "skip_connection"):
        if cfg.get(name, False) is not False:
            raise CheckpointError(
                f"{path} describes a transcoder ({name}), which rebuilds other activations than it reads"
            )
    if type(cfg.get("num_latents", 0)) is not int or cfg.get("num_latents", 0) < 0:
        raise CheckpointError(f"{path} gives num_latents={str(cfg['num_latents'])[:40]}; it must be 0 or more")
    return cfg
