"""SAEs on disk: ``cfg.json`` and ``sae_weights.safetensors``, exactly as SAELens 6 reads them.

Our own facts stand in ``cfg.json`` under "sae_forge", which SAELens ignores. ``cfg.json`` is written last and holds the
hash of the weights, so its presence makes the folder whole and a flipped bit is noticed.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from sae_forge.errors import CheckpointError
from sae_forge.hookpoint import HookPoint
from sae_forge.sae.architectures.architecture import Built
from sae_forge.sae.filed import FiledSAE, filed
from sae_forge.sae.formats import build, table
from sae_forge.sae.formats.format import Described, Hints
from sae_forge.sae.formats.saelens import CFG, SAELENS, WEIGHTS, settings, worded
from sae_forge.sae.jumprelu import JumpReLUSAE
from sae_forge.sae.topk import TopKSAE
from sae_forge.store import files, records
from sae_forge.store.cache import known_sha256
from sae_forge.store.tensors import publish_tensors

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
    sink_norm: float | None = None
    """Length beyond which an activation is a sink's, which it has not learned; None where it has, or nobody knows."""

    held_out: float | None = None
    """Share of each retain corpus's sequences, its last, that it has not seen."""

    def to_json(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return asdict(self) | {"datasets": list(self.datasets), "shards": list(self.shards)}


def save_sae(folder: Path, sae: TopKSAE | JumpReLUSAE, provenance: Provenance) -> None:
    """Write the SAE so that sae_forge and SAELens load it as it is, in fp32."""
    publish_tensors(folder / WEIGHTS, {name: weights.detach().float() for name, weights in sae.named_parameters()})
    files.publish_json(folder / CFG, _cfg(sae, provenance, files.file_sha256(folder / WEIGHTS)))


def load_sae(
    folder: Path,
    *,
    device: str | torch.device = "cpu",
    expect_model: str | None = None,
    expect_point: HookPoint | None = None,
    norms_take_mean: Callable[[], bool] | None = None,
) -> tuple[Built, Provenance]:
    """An SAE that was checked: header, hash, shapes, finite weights, and that it belongs to this model and place.

    It is for use: its weights ask for no gradient. What SAELens wrote loads too, its conventions folded into ours.

    Args:
        norms_take_mean: Whether the norms of the model take the mean over the width off (``models.described``); asked
            only for an SAE that was trained on activations without it where they do, and needed for one.

    Raises:
        CheckpointError: missing (names the command that makes one), damaged, of an architecture that cannot be used,
            of another model or hook point, or nobody says what it reads.
    """
    told, provenance, centre, _ = _checked(
        folder, expect_model=expect_model, expect_point=expect_point, norms_take_mean=norms_take_mean
    )
    sae = build.read(folder / WEIGHTS, told, allow_pickle=False, what="the weights of an SAE", centre=centre)
    return sae.to(device), provenance


def file_sae(folder: Path, *, norms_take_mean: Callable[[], bool] | None = None) -> tuple[Built | FiledSAE, Provenance]:
    """The same, left in its file where its latents fire each by itself: then they are read as they are asked for.

    A file that was hashed before is not read again for that, as long as nothing was written to it.

    Raises:
        CheckpointError: as ``load_sae``; what is wrong with weights is found when they are read.
    """
    told, provenance, centre, weights = _checked(folder, norms_take_mean=norms_take_mean, hashed=known_sha256)
    on_disk = filed(folder / WEIGHTS, told, weights=weights, centre=centre)
    return on_disk or load_sae(folder, norms_take_mean=norms_take_mean)[0], provenance


def _checked(
    folder: Path,
    *,
    expect_model: str | None = None,
    expect_point: HookPoint | None = None,
    norms_take_mean: Callable[[], bool] | None,
    hashed: Callable[[Path], str] = files.file_sha256,
) -> tuple[Described, Provenance, bool, str]:
    """What is known of it, whether its input is to be centred, and the hash of its weights."""
    path = folder / CFG
    if not path.exists():
        if (foreign := table.on_disk(folder)) is not None:
            raise CheckpointError(f"{folder} holds an SAE of {foreign.format.name}; name it with --sae")
        where = f" --model {expect_model}" if expect_model else ""
        where += f" --layer {expect_point.layer} --site {expect_point.site}" if expect_point else ""
        raise CheckpointError(f"no SAE at {folder}; make one with: sae-forge train{where}")
    cfg = settings(path)
    ours = cfg.get("sae_forge", {})
    if not isinstance(ours, dict):
        raise CheckpointError(f'{path} has a "sae_forge" entry that is no JSON object')
    told = SAELENS.describe(table.Found(SAELENS, folder, folder / WEIGHTS, str(folder)), Hints())
    provenance = _provenance(folder, cfg, ours)
    if expect_model is not None and provenance.model and provenance.model != expect_model:
        raise CheckpointError(
            f"{folder} is an SAE of another model: expected {expect_model[:80]}, found {provenance.model[:80]}"
        )
    if expect_point is not None and told.point not in (None, expect_point):
        raise CheckpointError(
            f"{folder} is an SAE of another place: expected {expect_point}, found {provenance.hook_point[:80]}"
        )
    if not (folder / WEIGHTS).exists():
        raise CheckpointError(f"{folder / WEIGHTS} is missing; it should be the weights of an SAE")
    expected_hash, weights = ours.get("weights_sha256"), hashed(folder / WEIGHTS)
    if expected_hash is not None and weights != expected_hash:
        raise CheckpointError(
            f"{folder / WEIGHTS} is damaged: its hash is not the one in {CFG}; train it again with --fresh"
        )
    centre = False
    if told.centred:
        if norms_take_mean is None:
            raise CheckpointError(
                f"{folder} asks for activations less their mean, which depends on the model: say norms_take_mean="
                "lambda: True for one of LayerNorm, as GPT-2, and False for one of RMSNorm; or name the SAE with --sae"
            )
        centre = norms_take_mean()
    return told, provenance, centre, weights


# ---- writing ------------------------------------------------------------------------------------


def _cfg(sae: TopKSAE | JumpReLUSAE, provenance: Provenance, weights_sha256: str) -> dict[str, Any]:
    cfg = worded(
        "topk" if isinstance(sae, TopKSAE) else "jumprelu",
        d_in=sae.d_in,
        d_sae=sae.d_sae,
        k=sae.k if isinstance(sae, TopKSAE) else None,
        takes_off_b_dec=isinstance(sae, TopKSAE),
        model=provenance.model,
        hook_name=provenance.hook_point,
    )
    cfg["metadata"] |= {
        "hf_hook_name": provenance.hf_hook_name,
        "prepend_bos": provenance.bos != "none",
        "context_size": provenance.ctx_len,
        "dataset_path": ", ".join(provenance.datasets),
        "exclude_special_tokens": True,
    }
    ours = {"format": FORMAT, "provenance": provenance.to_json(), "weights_sha256": weights_sha256}
    return cfg | {"sae_forge": ours}


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
