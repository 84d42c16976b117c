"""sparsify: ``cfg.json`` and ``sae.safetensors`` in a folder named after the module they read, ``layers.10.mlp``."""

from dataclasses import replace

from sae_forge.errors import CheckpointError
from sae_forge.sae.formats.checked import positive
from sae_forge.sae.formats.format import Described, Format, Found, Given, Hints, Recipe, Said, Writer
from sae_forge.sae.formats.places import module_of, place_of
from sae_forge.store import files

CFG = "cfg.json"
_NAMES = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "W_dec", "b_dec": "b_dec"}
_RECIPE = Recipe(architecture="topk", names=_NAMES, turned=frozenset({"W_enc"}), takes_off_b_dec=True)
_DEFAULT_EXPANSION = 32
_ACTIVATIONS = ("topk", "groupmax")


def describe(found: Found, hints: Hints) -> Described:
    """What ``cfg.json`` says, and the folder's name of the place.

    Raises:
        CheckpointError: a transcoder, another activation function, or a place that is none of ours.
    """
    del hints
    path = found.folder / CFG
    cfg = files.read_json(path, kind=CheckpointError, what="the settings of a sparsify SAE")
    if not isinstance(cfg, dict):
        raise CheckpointError(f"{path} is not the settings of a sparsify SAE: it is no JSON object")
    activation = cfg.get("activation", "topk")
    if activation not in _ACTIVATIONS:
        raise CheckpointError(
            f"{path} asks for the activation {str(activation)[:40]!r}; usable are {', '.join(_ACTIVATIONS)}"
        )
    for name in ("transcode", "skip_connection"):
        if cfg.get(name, False) is not False:
            raise CheckpointError(
                f"{path} describes a transcoder ({name}), which rebuilds other activations than it reads"
            )
    if type(cfg.get("num_latents", 0)) is not int or cfg.get("num_latents", 0) < 0:
        raise CheckpointError(f"{path} gives num_latents={str(cfg['num_latents'])[:40]}; it must be 0 or more")
    d_in, k = positive(cfg, "d_in", path), positive(cfg, "k", path)
    factor = positive({"expansion_factor": _DEFAULT_EXPANSION} | cfg, "expansion_factor", path)
    d_sae = cfg.get("num_latents", 0) or d_in * factor
    if k > d_sae:
        raise CheckpointError(f"{path} keeps k={k} latents per token of only d_sae={d_sae}")
    module = found.where.replace("\\", "/").rstrip("/").rpartition("/")[2].rpartition(":")[2]
    named = module if "layers" in module or module.startswith("h.") else ""
    if module == "embed_tokens":
        raise CheckpointError(f"{found.folder} reads the embeddings, which is no place that can be edited here")
    return Described(
        recipe=replace(_RECIPE, architecture=activation, d_in=d_in, d_sae=d_sae, k=k),
        point=place_of(named, told=f"the name of {found.folder}"),
        module=module_of(named),
    )


def say(given: Given) -> Said:
    """One in a folder named after the module it reads.

    Raises:
        ConfigError: it reads what no module gives.
    """
    cfg = {
        "activation": given.architecture,
        "d_in": given.d_in,
        "expansion_factor": max(1, given.d_sae // given.d_in),
        "normalize_decoder": False,
        "num_latents": given.d_sae,
        "k": given.k,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
    }
    return Said(recipe=replace(_RECIPE, architecture=given.architecture), settings={CFG: cfg}, inside=given.module())


SPARSIFY = Format(
    name="sparsify", weights="sae.safetensors", beside=(CFG,), describe=describe,
    writer=Writer(architectures=_ACTIVATIONS, sites=("resid_post", "attn_out", "mlp_out"), say=say),
)  # fmt: skip
