"""SAELens: ``cfg.json`` and ``sae_weights.safetensors``, of versions 3 to 6; ours are written the same way.

Source: SAELens 6.54 (``saes/``, ``loading/pretrained_sae_loaders.py`` for what files of before 6 mean).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sae_forge.errors import CheckpointError
from sae_forge.sae.formats.checked import positive
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
from sae_forge.sae.formats.places import module_of, place_of
from sae_forge.store import files

CFG = "cfg.json"
WEIGHTS = "sae_weights.safetensors"

_FOLDED = ("none", "expected_average_only_in", "covariance_whitening", "None", None, False, True)
"""What SAELens folds when it saves, or ignores when it runs an SAE from a file; ``True`` is a name of before 6."""
_IGNORED = frozenset({"scaling_factor"})


def settings(path: Path) -> dict[str, Any]:
    """The content of a ``cfg.json``, as SAELens 6 words it.

    Raises:
        CheckpointError: missing, malformed, or no settings of an SAE.
    """
    cfg = files.read_json(path, kind=CheckpointError, what="the settings of an SAE")
    if not isinstance(cfg, dict):
        raise CheckpointError(f"{path} does not describe an SAE: it is no JSON object")
    cfg = {"hook_name": cfg["hook_point"]} | cfg if "hook_point" in cfg else cfg
    metadata = cfg.get("metadata") or {key: cfg[key] for key in _METADATA if key in cfg}
    if not isinstance(metadata, dict):
        raise CheckpointError(f'{path} has a "metadata" that is no JSON object')
    activation = cfg.get("activation_fn_str", cfg.get("activation_fn", "relu"))
    arguments = cfg.get("activation_fn_kwargs")
    k = cfg.get("k", arguments.get("k") if isinstance(arguments, dict) else None)
    if "architecture" not in cfg:
        if not {"hook_name", "metadata", "activation_fn", "activation_fn_str", "model_name"} & set(cfg):
            raise CheckpointError(f'{path} does not describe an SAE: it has no "architecture"')
        cfg = cfg | {"architecture": "standard"}
    if cfg["architecture"] == "standard" and activation == "topk":
        cfg = cfg | {"architecture": "topk"}
    elif cfg["architecture"] == "standard" and activation not in ("relu", "identity_relu", None):
        raise CheckpointError(f"{path} asks for the activation {str(activation)[:40]!r}; relu and topk can be used")
    return cfg | {"metadata": metadata} | ({} if k is None else {"k": k})


_METADATA = (
    "model_name", "hook_name", "hf_hook_name", "context_size", "dataset_path", "prepend_bos",
    "model_from_pretrained_kwargs",
)  # fmt: skip


def describe(found: Found, hints: Hints) -> Described:
    """What ``cfg.json`` says, with what a directory adds."""
    path = found.folder / CFG
    cfg = settings(path)
    metadata = cfg["metadata"]
    asked = metadata.get("model_from_pretrained_kwargs")
    centred = hints.centred or (isinstance(asked, Mapping) and asked.get("center_writing_weights") is True)
    hook = str(metadata.get("hook_name") or "")
    _refuse_what_cannot_be_folded(path, cfg, hook, hints)
    return Described(
        recipe=recipe(path, cfg, scale=hints.scale or 1.0),
        point=place_of(hook, told=str(path)),
        module=module_of(hook),
        model=str(metadata.get("model_name") or "")[:200],
        centred=centred,
    )


def recipe(path: Path, cfg: Mapping[str, Any], *, scale: float = 1.0) -> Recipe:
    """How its tensors become a dictionary.

    Raises:
        CheckpointError: of an architecture that is not known, or of impossible sizes.
    """
    from sae_forge.sae.architectures.table import ARCHITECTURES  # torch loads here, not for the command line

    kind = str(cfg["architecture"])
    if (architecture := ARCHITECTURES.get(kind)) is None:
        raise CheckpointError(f"{path} describes a {kind[:40]!r} SAE; usable are {', '.join(ARCHITECTURES)}")
    d_sae = positive(cfg, "d_sae", path)
    k = positive(cfg, "k", path) if architecture.has_k else None
    if k is not None and k > d_sae:
        raise CheckpointError(f"{path} keeps k={str(k)[:40]} latents per token of only d_sae={d_sae}")
    return Recipe(
        architecture=kind,
        names={name: name for name in ("W_enc", "W_dec", "b_dec", *architecture.tensors)},
        takes_off_b_dec=cfg.get("apply_b_dec_to_input", True) is not False,
        d_in=positive(cfg, "d_in", path),
        d_sae=d_sae,
        k=k,
        by_norm=cfg.get("rescale_acts_by_decoder_norm", False) is True,
        scale=scale,
        ignored=_IGNORED,
    )


def _refuse_what_cannot_be_folded(path: Path, cfg: Mapping[str, Any], hook: str, hints: Hints) -> None:
    kind = str(cfg["architecture"])[:40]
    if "transcoder" in kind or cfg["metadata"].get("hook_name_out"):
        raise CheckpointError(f"{path} describes a {kind}: it {TRANSCODER}")
    if cfg.get("reshape_activations", "none") not in ("none", None) or "hook_z" in hook:
        raise CheckpointError(f"{path} reads hook_z, attention's heads apart; no such place can be edited here")
    asked = cfg.get("normalize_activations", "none") if hints.normalized == "none" else hints.normalized
    if not isinstance(asked, str | bool | None) or asked not in _FOLDED:
        raise CheckpointError(
            f"{path} asks for normalize_activations={str(asked)[:40]!r}, a scale of its own for each token, which "
            "cannot be folded into the weights"
        )
    if cfg.get("finetuning_scaling_factor", False) is True:
        raise CheckpointError(f"{path} asks for a finetuning_scaling_factor, which is not read")


def worded(
    architecture: str, *, d_in: int, d_sae: int, k: int | None, takes_off_b_dec: bool, model: str, hook_name: str
) -> dict[str, Any]:
    """The ``cfg.json`` of SAELens 6 for an SAE of these facts."""
    return {
        "architecture": architecture,
        "d_in": d_in,
        "d_sae": d_sae,
        **({} if k is None else {"k": k, "rescale_acts_by_decoder_norm": False}),
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": takes_off_b_dec,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": "6.0.0",  # below 6 SAELens guesses defaults
            "sae_lens_training_version": None,
            "model_name": model,
            "hook_name": hook_name,
            "model_class_name": "AutoModelForCausalLM",
        },
    }


def say(given: Given) -> Said:
    """One as SAELens 6 saves it."""
    cfg = worded(
        given.architecture, d_in=given.d_in, d_sae=given.d_sae, k=given.k, takes_off_b_dec=given.takes_off_b_dec,
        model=given.model, hook_name=str(given.point),
    )  # fmt: skip
    return Said(recipe=recipe(Path(CFG), cfg), settings={CFG: cfg})


SAELENS = Format(
    name="SAELens", weights=WEIGHTS, beside=(CFG,), hinted=True, describe=describe,
    writer=Writer(
        architectures=("topk", "jumprelu", "standard"), sites=("resid_pre", "resid_post", "attn_out", "mlp_out"),
        say=say,
    ),
)  # fmt: skip
