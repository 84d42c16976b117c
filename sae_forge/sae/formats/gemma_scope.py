"""Gemma Scope: ``params.npz``, five arrays; the name of the release says model, site and layer. Source: 2408.05147."""

import re

from sae_forge.errors import CheckpointError, ConfigError
from sae_forge.hookpoint import HookPoint, Site
from sae_forge.sae.formats.format import Described, Format, Found, Given, Hints, Recipe, Said, Writer

PARAMS = "params.npz"

_RELEASE = re.compile(r"gemma-scope-(?P<size>2b|9b|27b)-(?P<tuning>pt|it)-(?P<site>\w+)")
_LAYER = re.compile(r"layer_(\d{1,6})(?!\d)")
_SITES: dict[str, Site] = {"res": "resid_post", "mlp": "mlp_out", "att": "z"}
_NAMES = {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")}
_RECIPE = Recipe(architecture="jumprelu", names=_NAMES, takes_off_b_dec=False)


def describe(found: Found, hints: Hints) -> Described:
    """What its path says; the file says nothing."""
    del hints
    return Described(
        recipe=_RECIPE,
        point=point_of(found.where),
        model=model_of(found.where),
        site_assumed=_release(found.where) is None,
    )


def _release(text: str) -> re.Match[str] | None:
    """The release that a path names, the last of several: what is copied into another's folder is still itself."""
    return next(reversed(list(_RELEASE.finditer(text))), None)


def model_of(text: str) -> str:
    """The model that a release, named somewhere in ``text``, was trained on; empty when none is named."""
    match = _release(text)
    return f"google/gemma-2-{match['size']}{'-it' if match['tuning'] == 'it' else ''}" if match else ""


def point_of(text: str) -> HookPoint | None:
    """Where an SAE of this path reads: ``layer_3`` of ``-res`` is the output of block 3. None when no layer is named.

    Where no release is named, nothing says the site, and it is taken for that of most.

    Raises:
        CheckpointError: it reads the embeddings, or is a transcoder.
    """
    release, layers = _release(text), _LAYER.findall(text)
    site = _SITES.get(release["site"]) if release else "resid_post"
    if release and site is None:
        raise CheckpointError(f"{text} is of {release[0]}; of Gemma Scope -{', -'.join(_SITES)} can be used")
    if release and not layers and "embedding/" in text:
        raise CheckpointError(f"{text} reads the embeddings, which is no place that can be edited here; name a layer_N")
    return HookPoint(int(layers[-1]), site or "resid_post") if layers else None


def say(given: Given) -> Said:
    """One as Gemma Scope lays it out: its folders say the layer, and, for Gemma 2, model and site.

    Raises:
        ConfigError: no release could say its site, since its model is another.
    """
    layer, size = f"layer_{given.point.layer}", re.fullmatch(r"(?:google/)?gemma-2-(2b|9b|27b)(-it)?", given.model)
    if size is not None:
        site = next(name for name, each in _SITES.items() if each == given.point.site)
        return Said(recipe=_RECIPE, inside=f"gemma-scope-{size[1]}-{'it' if size[2] else 'pt'}-{site}/{layer}")
    if given.point.site != "resid_post":
        raise ConfigError(
            f"Gemma Scope says {given.point.site} by the name of a release, and those are of Gemma 2; the model is "
            f"{given.model or 'not known (--model names it)'}"
        )
    return Said(recipe=_RECIPE, inside=layer)


GEMMA_SCOPE = Format(
    name="Gemma Scope", weights=PARAMS, repository=r"/gemma-scope-(2b|9b|27b)-", describe=describe,
    writer=Writer(architectures=("jumprelu", "standard"), sites=tuple(_SITES.values()), say=say),
)  # fmt: skip
