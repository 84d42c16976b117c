"""SAEs on disk: ``cfg.json`` and ``sae_weights.safetensors``, exactly as SAELens 6 reads them.

Our own facts stand in ``cfg.json`` under "sae_forge", which SAELens ignores. ``cfg.json`` is written last and holds the
hash of the weights, so its presence makes the folder whole and a flipped bit is noticed.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_forge.errors import CheckpointError, ConfigError
from sae_forge.hookpoint import HookPoint
from sae_forge.sae.topk import TopKSAE
from sae_forge.store import files, records
from sae_forge.store.tensors import publish_tensors, read_header, read_tensors

CFG = "cfg.json"
WEIGHTS = "sae_weights.safetensors"
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What an SAE was trained on, so that it is not used elsewhere by mistake. An empty text means unknown."""

    model: str
    """Name of the language model as it was given."""
    hook_point: str
    """Where in it, as ``blocks.15.hook_resid_post``."""
    hf_hook_name: str | None = None
    """The transformers module at that place, as ``model.layers.15``."""
    ctx_len: int = 0
    """Tokens a packed sequence held."""
    bos: str = ""
    """BOS policy: row, document or none."""
    datasets: tuple[str, ...] = ()
    """Corpora, by name."""
    tokenizer: str = ""
    """sha256 of the tokenizer."""
    weights: str = ""
    """sha256 or revision of the model's weights."""
    shards: tuple[str, ...] = ()
    """sha256 of each shard manifest."""

    def to_json(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return asdict(self) | {"datasets": list(self.datasets), "shards": list(self.shards)}


def save_sae(folder: Path, sae: TopKSAE, provenance: Provenance) -> None:
    """Write the SAE so that sae_forge and SAELens load it as it is, in fp32."""
    names = ("W_enc", "W_dec", "b_enc", "b_dec")
    publish_tensors(folder / WEIGHTS, {name: getattr(sae, name).detach().float() for name in names})
    files.publish_json(folder / CFG, _cfg(sae, provenance, files.file_sha256(folder / WEIGHTS)))


def load_sae(
    folder: Path,
    *,
    device: str | torch.device = "cpu",
    expect_model: str | None = None,
    expect_point: HookPoint | None = None,
) -> tuple[TopKSAE, Provenance]:
    """An SAE that was checked: header, hash, shapes, finite weights, and that it belongs to this model and place.

    It is for use: its weights ask for no gradient. TopK SAEs that SAELens wrote load too, their conventions folded
    into ours.

    Raises:
        CheckpointError: missing (names the command that makes one), damaged, not a TopK SAE, or of another
            model or hook point.
    """
    cfg = _read_cfg(folder, expect_model, expect_point)
    ours = cfg.get("sae_forge", {})
    if not isinstance(ours, dict):
        raise CheckpointError(f'{folder / CFG} has a "sae_forge" entry that is no JSON object')
    provenance = _provenance(folder, cfg, ours)
    _check_provenance(folder, provenance, expect_model, expect_point)
    weights = _read_weights(folder, cfg, ours.get("weights_sha256"))
    _fold_conventions(folder, cfg, weights)
    sae = TopKSAE.from_weights(weights["W_enc"], weights["b_enc"], weights["W_dec"], weights["b_dec"], cfg["k"])
    return sae.to(device).requires_grad_(False), provenance


# ---- writing ------------------------------------------------------------------------------------


def _cfg(sae: TopKSAE, provenance: Provenance, weights_sha256: str) -> dict[str, Any]:
    return {
        "architecture": "topk",
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "k": sae.k,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "rescale_acts_by_decoder_norm": False,
        "metadata": {
            "sae_lens_version": "6.0.0",  # below 6 SAELens guesses defaults
            "sae_lens_training_version": None,
            "model_name": provenance.model,
            "hook_name": provenance.hook_point,
            "hf_hook_name": provenance.hf_hook_name,
            "model_class_name": "AutoModelForCausalLM",
            "prepend_bos": provenance.bos != "none",
            "context_size": provenance.ctx_len,
            "dataset_path": ", ".join(provenance.datasets),
            "exclude_special_tokens": True,
        },
        "sae_forge": {"format": FORMAT, "provenance": provenance.to_json(), "weights_sha256": weights_sha256},
    }


# ---- reading ------------------------------------------------------------------------------------


def _read_cfg(folder: Path, model: str | None, point: HookPoint | None) -> dict[str, Any]:
    """The settings, refused unless they describe a TopK SAE."""
    path = folder / CFG
    if not path.exists():
        where = f" --model {model}" if model else ""
        where += f" --layer {point.layer} --site {point.site}" if point else ""
        raise CheckpointError(f"no SAE at {folder}; make one with: sae-forge train{where}")
    cfg = files.read_json(path, kind=CheckpointError, what="the settings of an SAE")
    if not isinstance(cfg, dict) or "architecture" not in cfg:
        raise CheckpointError(f'{path} does not describe an SAE: it has no "architecture"')
    if cfg["architecture"] != "topk":
        raise CheckpointError(f"{path} describes a {str(cfg['architecture'])[:40]!r} SAE; only topk SAEs can be loaded")
    for name in ("d_in", "d_sae", "k"):
        if type(cfg.get(name)) is not int or cfg[name] < 1:
            raise CheckpointError(f"{path} gives {name}={str(cfg.get(name))[:40]}; it must be a whole number above 0")
    if cfg["k"] > cfg["d_sae"]:
        raise CheckpointError(f"{path} keeps k={str(cfg['k'])[:40]} latents per token of only d_sae={cfg['d_sae']}")
    return cfg


def _read_weights(folder: Path, cfg: dict[str, Any], expected_hash: object) -> dict[str, Tensor]:
    """The four tensors in fp32, refused unless shape, hash and values are right."""
    path, what = folder / WEIGHTS, "the weights of a TopK SAE"
    d_in, d_sae = cfg["d_in"], cfg["d_sae"]
    shapes = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_enc": (d_sae,), "b_dec": (d_in,)}
    layout, _ = read_header(path, kind=CheckpointError, what=what)
    if set(layout) != set(shapes):
        raise CheckpointError(
            f"{path} is not {what}: expected {sorted(shapes)}, found {sorted(name[:20] for name in layout)[:8]}"
        )
    for name, shape in shapes.items():
        if layout[name][1] != shape:
            expected, found = (str(list(sizes))[:60] for sizes in (shape, layout[name][1]))
            raise CheckpointError(f"{path}: expected {name} of shape {expected}, found {found}")
    if expected_hash is not None and files.file_sha256(path) != expected_hash:
        raise CheckpointError(f"{path} is damaged: its hash is not the one in {CFG}; train it again with --fresh")
    tensors = {name: tensor.float() for name, tensor in read_tensors(path, kind=CheckpointError, what=what).items()}
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{path} is damaged: {name} holds numbers that are not finite")
    return tensors


def _fold_conventions(folder: Path, cfg: dict[str, Any], weights: dict[str, Tensor]) -> None:
    """Turn what SAELens can say in its settings into weights that need no such settings; exact in each case."""
    for name in ("normalize_activations", "reshape_activations"):
        # SAELens itself ignores "expected_average_only_in" when it runs an SAE.
        if cfg.get(name, "none") not in ("none", "expected_average_only_in"):
            raise CheckpointError(
                f"{folder / CFG} asks for {name}={cfg[name]!r}, which sae_forge cannot fold; use none"
            )
    if cfg.get("rescale_acts_by_decoder_norm", False):
        norms = weights["W_dec"].norm(dim=1)
        weights["W_enc"], weights["b_enc"] = weights["W_enc"] * norms, weights["b_enc"] * norms
        weights["W_dec"] = weights["W_dec"] / norms.unsqueeze(1)
    if not cfg.get("apply_b_dec_to_input", True):
        weights["b_enc"] = weights["b_enc"] + weights["b_dec"] @ weights["W_enc"]


def _provenance(folder: Path, cfg: dict[str, Any], ours: dict[str, Any]) -> Provenance:
    try:
        if "provenance" in ours:
            return records.decode(Provenance, ours["provenance"])
        metadata = cfg.get("metadata") or {}
        return Provenance(
            model=str(metadata.get("model_name") or ""),
            hook_point=str(metadata.get("hook_name") or ""),
            hf_hook_name=metadata.get("hf_hook_name"),
            ctx_len=int(metadata.get("context_size") or 0),
            datasets=(str(metadata["dataset_path"]),) if metadata.get("dataset_path") else (),
        )
    except (TypeError, ValueError, AttributeError) as error:
        told = "says where its SAE comes from in a way that cannot be read"
        raise CheckpointError(f"{folder / CFG} {told}: {error}") from error


def _check_provenance(folder: Path, provenance: Provenance, model: str | None, point: HookPoint | None) -> None:
    """Refuse an SAE of another model or place; what a foreign file leaves unsaid is not held against it."""
    if model is not None and provenance.model and provenance.model != model:
        raise CheckpointError(
            f"{folder} is an SAE of another model: expected {model[:80]}, found {provenance.model[:80]}"
        )
    if point is None or not provenance.hook_point:
        return
    try:
        same = HookPoint.parse(provenance.hook_point) == point
    except ConfigError:  # SAELens names transformers modules as they are
        same = provenance.hook_point == f"model.layers.{point.layer}" and point.site == "resid_post"
    if not same:
        raise CheckpointError(
            f"{folder} is an SAE of another place: expected {point}, found {provenance.hook_point[:80]}"
        )
