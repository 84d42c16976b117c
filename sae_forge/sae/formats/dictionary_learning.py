"""dictionary_learning: ``ae.pt``, a pickle, and ``config.json``, which names a class. Source: version 0.1.0."""

import re
from typing import Any

from sae_forge.errors import CheckpointError
from sae_forge.hookpoint import HookPoint, Site
from sae_forge.sae.formats.checked import positive
from sae_forge.sae.formats.format import Described, Format, Found, Given, Hints, Recipe, Said, Writer
from sae_forge.store import files

CONFIG = "config.json"
_WEIGHTS = {"W_enc": "encoder.weight", "W_dec": "decoder.weight"}
_LINEAR = {**_WEIGHTS, "b_enc": "encoder.bias"}
_ITSELF = {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")}
_TURNED = frozenset({"W_enc", "W_dec"})
_COUNTS = frozenset({"k", "threshold", "group_sizes", "active_groups"})
_UNSET = -1.0
"""The threshold of a BatchTopK SAE trained for fewer steps than it takes to set one."""

_CLASSES: dict[str, Recipe] = {
    "AutoEncoderTopK": Recipe(
        architecture="topk", names={**_LINEAR, "b_dec": "b_dec"}, turned=_TURNED, takes_off_b_dec=True, k_name="k",
        ignored=_COUNTS,
    ),
    "BatchTopKSAE": Recipe(
        architecture="jumprelu", names={**_LINEAR, "b_dec": "b_dec", "threshold": "threshold"}, turned=_TURNED,
        takes_off_b_dec=True, threshold=_UNSET, ignored=_COUNTS,
    ),
    "MatryoshkaBatchTopKSAE": Recipe(
        architecture="jumprelu", names=_ITSELF, takes_off_b_dec=True, threshold=_UNSET, ignored=_COUNTS
    ),
    "AutoEncoder": Recipe(
        architecture="standard", names={**_LINEAR, "b_dec": "bias"}, turned=_TURNED, takes_off_b_dec=True
    ),
    "AutoEncoderNew": Recipe(
        architecture="standard", names={**_LINEAR, "b_dec": "decoder.bias"}, turned=_TURNED, takes_off_b_dec=False
    ),
    "GatedAutoEncoder": Recipe(
        architecture="gated", turned=_TURNED, takes_off_b_dec=True,
        names={**_WEIGHTS, "b_dec": "decoder_bias", "b_gate": "gate_bias", "b_mag": "mag_bias", "r_mag": "r_mag"},
    ),
    "JumpReluAutoEncoder": Recipe(architecture="jumprelu", names=_ITSELF, takes_off_b_dec=False),
}  # fmt: skip
_SITES: dict[str, tuple[Site, str]] = {
    "resid_pre": ("resid_pre", ""),
    "resid_post": ("resid_post", ""),
    "mlp_out": ("mlp_out", "mlp"),
    "attn_out": ("attn_out", "self_attn"),
    "attention_out": ("attn_out", "self_attn"),
}
"""Its word for a place: the site, and the module of a layer whose own output that is."""
_PLACE = re.compile(rf"({'|'.join(_SITES)})_layer_(\d{{1,6}})(?!\d)")


def describe(found: Found, hints: Hints) -> Described:
    """What ``config.json`` says, and the folder's name where that says no place.

    Raises:
        CheckpointError: missing, malformed, or of a class that has no equal here.
    """
    del hints
    config = found.folder / CONFIG
    value = files.read_json(config, kind=CheckpointError, what="the settings of a dictionary_learning SAE")
    trainer: Any = value.get("trainer") if isinstance(value, dict) else None
    if not isinstance(trainer, dict):
        raise CheckpointError(f'{config} is not the settings of a dictionary_learning SAE: it has no "trainer"')
    kind = trainer.get("dict_class")
    if not isinstance(kind, str) or (recipe := _CLASSES.get(kind)) is None:
        raise CheckpointError(f"{config} describes a {str(kind)[:40]}; those that can be used: {', '.join(_CLASSES)}")
    sizes = {"d_in": positive(trainer, "activation_dim", config), "d_sae": positive(trainer, "dict_size", config)}
    said = ()
    if "April" in str(trainer.get("trainer_class")):
        said = (
            "its decoder rows were trained without norm 1: acts are in the units of the file, as SAELens gives them; "
            "dictionary_learning multiplies them by the norm of the row when it loads",
        )
    place = _PLACE.search(str(trainer.get("submodule_name"))[:200]) or _PLACE.search(found.where)
    site, module = _SITES[place[1]] if place else ("resid_post", "")
    return Described(
        recipe=Recipe(**{**vars(recipe), **sizes}),
        point=HookPoint(int(place[2]), site) if place else None,
        module=module,
        model=str(trainer.get("lm_name") or "")[:200],
        said=said,
    )


def say(given: Given) -> Said:
    """One as its trainers save it; a threshold of 0 makes its JumpReLU a ReLU.

    Raises:
        ConfigError: it reads what no module gives.
    """
    from torch import int32, tensor  # torch loads here, not for the command line

    kind = "AutoEncoderTopK" if given.k is not None else "JumpReluAutoEncoder"
    word = next(word for word, (site, _) in _SITES.items() if site == given.point.site)
    if _SITES[word][1]:
        given.module()  # refused where what is added is not what the module gives
    trainer = {
        "dict_class": kind,
        "activation_dim": given.d_in,
        "dict_size": given.d_sae,
        **({} if given.k is None else {"k": given.k}),
        "layer": given.point.layer,
        "lm_name": given.model,
        "submodule_name": f"{word}_layer_{given.point.layer}",
    }
    numbers = {} if given.k is None else {"k": tensor(given.k, dtype=int32), "threshold": tensor(_UNSET)}
    return Said(recipe=_CLASSES[kind], settings={CONFIG: {"trainer": trainer}}, numbers=numbers)


DICTIONARY_LEARNING = Format(
    name="dictionary_learning", weights="ae.pt", beside=(CONFIG,), describe=describe,
    writer=Writer(
        architectures=("topk", "jumprelu", "standard"), sites=("resid_pre", "resid_post", "attn_out", "mlp_out"),
        say=say,
    ),
)  # fmt: skip
