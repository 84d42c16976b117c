"""The one door to SAEs for the verbs: one trained in a run, one in a file, or one that was released on the Hub.

An SAE that was made elsewhere stays where it is. The run keeps a pointer to it among its own SAEs, so that its
selections and reports are filed, found and named like those of any other.
"""

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import cast

from torch import nn

from sae_forge.errors import CheckpointError, ConfigError
from sae_forge.hookpoint import HookPoint
from sae_forge.progress import SILENT, Progress
from sae_forge.sae.dictionary import Dictionary
from sae_forge.sae.formats import dictionary_learning, sparsify
from sae_forge.sae.formats.gemma_scope import PARAMS, load_gemma_scope
from sae_forge.sae.released import Reference, fetch, model_of, point_of
from sae_forge.sae.store import WEIGHTS, Provenance, load_sae
from sae_forge.store import files, records
from sae_forge.store.runs import POINTER, Run
from sae_forge.store.weights import require_same

_FOREIGN = (PARAMS, sparsify.WEIGHTS, dictionary_learning.WEIGHTS)
"""Weights files by which the format of a folder is known."""


@dataclass(frozen=True, eq=False)
class NamedSAE:
    """An SAE of a run: one that was trained there, or one that was made elsewhere and is only pointed to."""

    folder: Path
    """Its place among the run's SAEs; selections and reports are filed under the same two last names."""
    sae: Dictionary = field(repr=False)
    provenance: Provenance
    point: HookPoint
    """Where it reads and writes."""
    weights: str
    """sha256 of its weights file: what selections know it by."""
    name: str
    """``folder`` relative to the run's ``saes``, or the folder's own name outside a run."""


def load_dictionary(
    source: str | Path,
    run: Run,
    *,
    model: str,
    asked: HookPoint | None = None,
    device: str = "cpu",
    allow_pickle: bool = False,
    progress: Progress = SILENT,
) -> NamedSAE:
    """The SAE that ``source`` names, checked, on ``device``.

    Args:
        source: A run's SAE folder; a folder or file with Gemma Scope's ``params.npz``; a folder of sparsify's or
            dictionary_learning's; or ``owner/name:path`` on the Hub, as
            ``google/gemma-scope-2b-pt-res:layer_3/width_16k/average_l0_59``; ``owner/name@revision:path`` pins.
        model: Name of the model it is to be used with. A trained SAE of another is refused; of a released one it is
            said, because an SAE of a base model is commonly used on the tuned one.
        asked: Where it should read; only a released SAE that reads elsewhere is refused.
        allow_pickle: Read a weights file that is a pickle, in a limited process (``formats.pickled``).

    Raises:
        CheckpointError: missing, damaged, of another model, or of an unknown layer.
        ConfigError: it reads at another place than ``asked``.
        RemoteError: the Hub refused, does not have it, or cannot be reached.
    """
    path = Path(source).expanduser()
    if (path / POINTER).is_file():
        named = _pointed(path, allow_pickle)
    elif (origin := _elsewhere(path, str(source), progress)) is not None:
        named = _adopted(origin, run, asked, allow_pickle)
    else:
        named = _trained(path, run, model, asked)
    cast("nn.Module", named.sae).to(device)
    trained_on = named.provenance.model
    if trained_on not in ("", model):
        practice = "as published papers do" if model == f"{trained_on}-it" else "so expect more error than on its own"
        progress.say(f"{named.folder.name} was trained on {trained_on} and is used on {model}, {practice}")
    return named


# ---- trained here -------------------------------------------------------------------------------


def _trained(folder: Path, run: Run, model: str, asked: HookPoint | None) -> NamedSAE:
    if not folder.is_dir():
        raise CheckpointError(
            f"no SAE at {folder}; give the folder of one, a {PARAMS}, or owner/name:path on the Hub, or make one with: "
            f"sae-forge train --model {model}"
        )
    sae, provenance = load_sae(folder, expect_model=model)
    if provenance.hook_point.startswith("blocks."):
        point = _parsed(folder, provenance.hook_point)
    elif asked is None:
        raise CheckpointError(f"{folder} does not say which layer it reads; name it with --layer")
    else:  # a file of another tool
        point = asked
    name = folder.relative_to(run.folder / "saes").as_posix() if run.holds(folder) else folder.name
    return NamedSAE(folder, sae, provenance, point, files.file_sha256(folder / WEIGHTS), name)


def _parsed(folder: Path, text: str) -> HookPoint:
    try:
        return HookPoint.parse(text)
    except ConfigError as error:
        raise CheckpointError(f"{folder} says that it reads {text[:60]!r}, which is no place in a model") from error


# ---- made elsewhere -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Origin:
    """A weights file on this machine, and where it comes from."""

    params: Path
    """``params.npz``, ``sae.safetensors`` or ``ae.pt``."""
    name: str
    """One readable folder name for it."""
    described: str
    """The reference or path that says its layer and model."""
    pinned: str | None = None
    """The Hub reference with its commit; None for a local file."""


@dataclass(frozen=True, kw_only=True)
class _Pointer:
    """What the run keeps of it."""

    source: str
    """Pinned reference, or path from the pointer's folder."""
    weights: str
    hook_point: str
    model: str
    on_hub: bool = False


def _elsewhere(path: Path, source: str, progress: Progress) -> _Origin | None:
    """The weights file that is meant, fetched if it is on the Hub; None when something else is."""
    if path.is_file() and (path.suffix == ".npz" or path.name in _FOREIGN):
        return _local(path)
    if path.exists():
        return next((_local(path / name) for name in _FOREIGN if (path / name).is_file()), None)
    if (reference := Reference.parse(source)) is None:
        return None
    progress.say(f"SAE: {reference}")
    params, commit = fetch(reference)
    pinned = reference.at(commit) if commit else reference
    return _Origin(params, reference.name, str(reference), str(pinned))


def _local(params: Path) -> _Origin:
    """Named by its path from the release's folder or ``layer_N`` on, else its own folder; files that differ by hash."""
    full = params.parent.resolve() / params.name  # a link, as in the Hub's cache, keeps the name that says its format
    parts = (full.parent if params.name in _FOREIGN else full.with_suffix("")).parts
    marked = [place for place, part in enumerate(parts) if part.startswith(("gemma-scope-", "layer_"))]
    readable = "--".join(parts[marked[0] :] if marked else parts[-1:])
    return _Origin(full, f"{readable}-{files.file_sha256(full)[:8]}", str(full))


def _stated(origin: _Origin) -> tuple[HookPoint | None, str]:
    """Where an SAE made elsewhere reads, and its model, as far as its folder says so."""
    if origin.params.name == dictionary_learning.WEIGHTS:
        told = dictionary_learning.describe(origin.params)
        return told.point, told.model
    if origin.params.name == sparsify.WEIGHTS:
        return sparsify.point_of_sparsify(origin.params.parent), ""
    return point_of(origin.described), model_of(origin.described)


def _adopted(origin: _Origin, run: Run, asked: HookPoint | None, allow_pickle: bool) -> NamedSAE:
    """An SAE made elsewhere, and the pointer to it in the run."""
    stated, model = _stated(origin)
    point = stated or asked
    if point is None:
        raise CheckpointError(f"{origin.described} does not say which layer it reads; name it with --layer")
    if asked not in (None, point):
        raise ConfigError(f"--sae {origin.described} reads {point}, not {asked}; give --layer {point.layer}")
    folder = run.folder / "saes" / str(point) / origin.name
    named = _described(folder, origin.params, point, model, allow_pickle)
    if (folder / POINTER).exists():
        _require_weights(named, _pointer(folder).weights)
        run.note(folder)
        return named
    pointer = _Pointer(
        source=origin.pinned or os.path.relpath(origin.params, folder.resolve()),
        on_hub=origin.pinned is not None,
        weights=named.weights,
        hook_point=str(point),
        model=named.provenance.model,
    )
    files.publish_json(folder / POINTER, asdict(pointer))
    run.note(folder)
    return named


def _pointed(folder: Path, allow_pickle: bool) -> NamedSAE:
    """The SAE that a run's pointer leads to, refused when it is no longer the same."""
    pointer = _pointer(folder)
    reference = Reference.parse(pointer.source) if pointer.on_hub else None
    params = fetch(reference)[0] if reference else folder.resolve() / pointer.source
    if not params.is_file():
        raise CheckpointError(f"{folder / POINTER} points to {pointer.source}, which is gone; name it with --sae")
    named = _described(folder, params, _parsed(folder, pointer.hook_point), pointer.model, allow_pickle)
    _require_weights(named, pointer.weights)
    return named


def _described(folder: Path, params: Path, point: HookPoint, model: str, allow_pickle: bool) -> NamedSAE:
    sae, provenance = _read(params, allow_pickle), Provenance(model=model, hook_point=str(point))
    return NamedSAE(folder, sae, provenance, point, files.file_sha256(params), f"{point}/{folder.name}")


def _read(params: Path, allow_pickle: bool) -> Dictionary:
    """An SAE by the name of its weights file."""
    if params.name == dictionary_learning.WEIGHTS:
        return dictionary_learning.load_dictionary_learning(params, allow_pickle=allow_pickle)
    if params.name == sparsify.WEIGHTS:
        return sparsify.load_sparsify(params.parent)
    return load_gemma_scope(params)


def _pointer(folder: Path) -> _Pointer:
    hint = "delete it and name the SAE with --sae"
    return records.read(_Pointer, folder / POINTER, error=CheckpointError, what="a pointer to an SAE", hint=hint)


def _require_weights(named: NamedSAE, expected: str) -> None:
    require_same(
        expected,
        named.weights,
        f"this run first used {named.folder.name}",
        "it now",
        kind=CheckpointError,
        advice="pin it as owner/name@revision:path, or choose another --run_dir",
    )
