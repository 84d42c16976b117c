"""Where an SAE reads, in the words of every tool: TransformerLens' hooks, transformers' modules, release names."""

import re

from sae_forge.errors import CheckpointError
from sae_forge.hookpoint import HookPoint, Site

_HOOKS: dict[str, Site] = {
    "hook_resid_pre": "resid_pre",
    "hook_in": "resid_pre",
    "hook_resid_post": "resid_post",
    "hook_out": "resid_post",  # as the bridge of TransformerLens 3 calls a block's output
    "hook_attn_out": "attn_out",
    "attn.hook_out": "attn_out",
    "hook_mlp_out": "mlp_out",
    "mlp.hook_out": "mlp_out",
}
_MODULES: dict[str, Site] = {
    "": "resid_post", "mlp": "mlp_out", "self_attn": "attn_out", "attn": "attn_out", "attention": "attn_out",
}  # fmt: skip
_LAYER = re.compile(r"(?:^|\.)(?:blocks|layers|h)[._](\d{1,6})(?:\.(.*))?$")


def place_of(text: str, *, told: str) -> HookPoint | None:
    """The hook point a tool's name stands for; None for a name that says nothing, which is an empty one.

    Args:
        told: Who says so, for the message.

    Raises:
        CheckpointError: it names a place that is none of ours.
    """
    if not text:
        return None
    if (parts := _split(text)) is not None:
        layer, rest = parts
        if rest in _HOOKS:
            return HookPoint(layer, _HOOKS[rest])
        if rest in _MODULES and not text.startswith("blocks"):
            return HookPoint(layer, _MODULES[rest])
    raise CheckpointError(f"{told} says that it reads {text[:60]!r}, which is no place that can be edited here")


def module_of(text: str) -> str:
    """The sub-module of a layer whose output a place of ``place_of`` is, as it is called there; empty for any other.

    What it gives is not what is added to the residual stream in families that norm or multiply it first.
    """
    parts = _split(text)
    return parts[1] if parts is not None and parts[1] in _MODULES and not text.startswith("blocks") else ""


def _split(text: str) -> tuple[int, str] | None:
    """Layer, and what follows it but for a last ``output``."""
    match = _LAYER.search(text[:200])
    return None if match is None else (int(match[1]), (match[2] or "").removesuffix("output").rstrip("."))
