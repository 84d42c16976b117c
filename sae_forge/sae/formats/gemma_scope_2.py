"""Gemma Scope 2: ``params.safetensors``, mostly with ``config.json``; folders say site and layer."""

import re

from sae_forge.errors import CheckpointError
from sae_forge.hookpoint import HookPoint, Site
from sae_forge.sae.formats.format import (
    TRANSCODER,
    Described,
    Format,
    Found,
    Given,
    Hints,
    Recipe,
    Said,
    Writer,
)
from sae_forge.store import files

CONFIG = "config.json"

_REPOSITORY = re.compile(r"gemma-scope-2-(?P<size>270m|1b|4b|12b|27b)-(?P<tuning>pt|it)")
_PLACE = re.compile(r"(?P<site>resid_post|mlp_out|attn_out|transcoder|clt)(?:_all)?/layer_(?P<layer>\d{1,6})_width_")
_SITES: dict[str, Site] = {"resid_post": "resid_post", "mlp_out": "mlp_out", "attn_out": "z"}
_MODULES: dict[str, Site] = {
    "output": "resid_post",
    "post_feedforward_layernorm.output": "mlp_out",
    "self_attn.o_proj.input": "z",
}
_HOOK = re.compile(r"(?:\w+\.)*layers\.(\d{1,6})\.([\w.]+)")
_NAMES = {"W_enc": "w_enc", "b_enc": "b_enc", "W_dec": "w_dec", "b_dec": "b_dec", "threshold": "threshold"}
_RECIPE = Recipe(architecture="jumprelu", names=_NAMES, takes_off_b_dec=False)


def describe(found: Found, hints: Hints) -> Described:
    """What ``config.json`` says, else the path.

    Raises:
        CheckpointError: a transcoder, or the file and its path name different places.
    """
    del hints
    path, said, model = found.folder / CONFIG, None, model_of(found.where)
    told = point_of(found.where)
    if path.exists():
        config = files.read_json(path, kind=CheckpointError, what="the settings of a Gemma Scope 2 SAE")
        if not isinstance(config, dict) or config.get("architecture") != "jump_relu":
            raise CheckpointError(f"{path} does not describe a jump_relu SAE, which is what Gemma Scope 2 has")
        if config.get("hf_hook_point_out"):
            raise CheckpointError(f"{path} describes a transcoder: it {TRANSCODER}")
        hook = str(config.get("hf_hook_point_in") or "")
        if (match := _HOOK.fullmatch(hook[:200])) and match[2] in _MODULES:
            said = HookPoint(int(match[1]), _MODULES[match[2]])
        elif hook:
            raise CheckpointError(f"{path} says that it reads {hook[:60]!r}, which is no place that can be edited here")
        if said and told and said != told:
            raise CheckpointError(f"{path} says that it reads {said}, and its folder {told}; one of them is wrong")
        model = model or re.sub("^gemma-v?3-", "google/gemma-3-", str(config.get("model_name") or "")[:200])
    return Described(recipe=_RECIPE, point=said or told, model=model)


def model_of(text: str) -> str:
    """The model of the repository that ``text`` names; empty when it names none."""
    if (match := _REPOSITORY.search(text)) is None:
        return ""
    tuning = "" if (match["size"], match["tuning"]) == ("270m", "pt") else f"-{match['tuning']}"
    return f"google/gemma-3-{match['size']}{tuning}"


def point_of(text: str) -> HookPoint | None:
    """Where an SAE of this path reads; None when it does not say.

    Raises:
        CheckpointError: a transcoder.
    """
    match = _PLACE.search(text.replace("\\", "/"))
    if match is None:
        return None
    if (site := _SITES.get(match["site"])) is None:
        raise CheckpointError(f"{text} is a transcoder: it {TRANSCODER}")
    return HookPoint(int(match["layer"]), site)


def say(given: Given) -> Said:
    """One with the settings that Gemma Scope 2 keeps beside it."""
    module = next(name for name, site in _MODULES.items() if site == given.point.site)
    config = {
        "architecture": "jump_relu",
        "model_name": re.sub("^google/gemma-3-", "gemma-v3-", given.model),
        "hf_hook_point_in": f"model.layers.{given.point.layer}.{module}",
        "width": given.d_sae,
        "type": "sae",
    }
    return Said(recipe=_RECIPE, settings={CONFIG: config})


GEMMA_SCOPE_2 = Format(
    name="Gemma Scope 2", weights="params.safetensors", perhaps=(CONFIG,),
    repository=r"/gemma-scope-2-(270m|1b|4b|12b|27b)-",
    describe=describe,
    writer=Writer(architectures=("jumprelu", "standard"), sites=tuple(_SITES.values()), say=say),
)  # fmt: skip
