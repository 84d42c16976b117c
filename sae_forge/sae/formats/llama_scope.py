"""Llama Scope: ``hyperparams.json`` and ``checkpoints/final.safetensors``; of R1-Distill ``config.json`` and one file.

Inputs are multiplied by sqrt(d_in) over the mean norm of the activations it was trained on; acts stay in those units.
Source: arXiv 2410.20526; SAELens' loaders ``llama_scope`` and ``llama_scope_r1_distill``.
"""

import math
from collections.abc import Mapping
from typing import Any

from sae_forge.errors import CheckpointError
from sae_forge.sae.formats.checked import positive
from sae_forge.sae.formats.format import TRANSCODER, Described, Format, Found, Hints, Recipe
from sae_forge.sae.formats.places import place_of
from sae_forge.store import files

HYPERPARAMS = "hyperparams.json"
CONFIG = "config.json"
_NAMES = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight", "b_dec": "decoder.bias"}
_TURNED = frozenset({"W_enc", "W_dec"})
_MODEL = "meta-llama/Llama-3.1-8B"


def describe(found: Found, hints: Hints) -> Described:
    """What ``hyperparams.json`` says.

    Raises:
        CheckpointError: a transcoder, no JumpReLU, or without the norm its weights stand on.
    """
    del hints
    path, told = _settings(found, HYPERPARAMS)
    d_in, norm = positive(told, "d_model", path), _norm(told)
    if norm is None:
        raise CheckpointError(f"{path} gives no dataset_average_activation_norm, on which its weights stand")
    scale = math.sqrt(d_in) / norm
    threshold = told.get("jump_relu_threshold")
    if not isinstance(threshold, int | float) or isinstance(threshold, bool):
        raise CheckpointError(f"{path} gives jump_relu_threshold={str(threshold)[:40]}; it must be a number")
    return Described(
        recipe=Recipe(
            architecture="jumprelu", names=_NAMES, turned=_TURNED, takes_off_b_dec=False, d_in=d_in,
            d_sae=positive(told, "d_sae", path), scale=scale, threshold=threshold * scale,
        ),
        point=place_of(str(told.get("hook_point_in") or ""), told=str(path)),
        model=_MODEL,
    )  # fmt: skip


def describe_r1(found: Found, hints: Hints) -> Described:
    """What ``config.json`` says of an SAE of Llama Scope R1-Distill.

    Raises:
        CheckpointError: as above; the norm is in SAELens' directory, so it is asked for by name.
    """
    path, told = _settings(found, CONFIG)
    d_in, norm = positive(told, "d_model", path), _norm(told)
    scale = hints.scale or (math.sqrt(d_in) / norm if norm else None)
    if scale is None:
        raise CheckpointError(
            f"{path} gives no dataset_average_activation_norm, on which its weights stand; SAELens' directory has it: "
            "name the SAE by its release there, as llama_scope_r1_distill:l15r_800m_slimpajama"
        )
    return Described(
        recipe=Recipe(
            architecture="jumprelu", names=_NAMES | {"threshold": "log_jumprelu_threshold"}, turned=_TURNED,
            takes_off_b_dec=False, d_in=d_in, d_sae=d_in * positive(told, "expansion_factor", path), scale=scale,
            log_threshold=True,
        ),
        point=place_of(str(told.get("hook_point_in") or ""), told=str(path)),
        model="deepseek-ai/DeepSeek-R1-Distill-Llama-8B" if "r1-distill" in found.where.lower() else "",
    )  # fmt: skip


def _settings(found: Found, name: str) -> tuple[Any, Mapping[str, Any]]:
    path = found.folder / name
    told = files.read_json(path, kind=CheckpointError, what="the settings of a Llama Scope SAE")
    if not isinstance(told, dict) or "hook_point_in" not in told:
        raise CheckpointError(f'{path} does not describe a Llama Scope SAE: it has no "hook_point_in"')
    if told.get("hook_point_out", told["hook_point_in"]) != told["hook_point_in"]:
        raise CheckpointError(f"{path} describes a transcoder: it {TRANSCODER}")
    return path, told


def _norm(told: Mapping[str, Any]) -> float | None:
    norms = told.get("dataset_average_activation_norm")
    norm = norms.get("in") if isinstance(norms, dict) else None
    return norm if isinstance(norm, int | float) and 0 < norm < math.inf else None


LLAMA_SCOPE = Format(
    name="Llama Scope", weights="checkpoints/final.safetensors", beside=(HYPERPARAMS,), describe=describe
)
LLAMA_SCOPE_R1 = Format(
    name="Llama Scope R1-Distill", weights="sae_weights.safetensors", beside=(CONFIG,), not_beside=("cfg.json",),
    hinted=True, describe=describe_r1,
)  # fmt: skip
