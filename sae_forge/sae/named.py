"""The one door to SAEs for the verbs: one trained in a run, one in a file, or one that was released on the Hub.

An SAE that was made elsewhere stays where it is. The run keeps a pointer to it among its own SAEs, so that its
selections and reports are filed, found and named like those of any other.
"""

import os
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import cast

from torch import nn

from sae_forge.config.model import expanded
from sae_forge.errors import CheckpointError, ConfigError
from sae_forge.hookpoint import HookPoint, Site
from sae_forge.progress import SILENT, Progress
from sae_forge.sae import directory
from sae_forge.sae.dictionary import Dictionary
from sae_forge.sae.filed import FiledSAE, filed
from sae_forge.sae.formats import build, table
from sae_forge.sae.formats.format import Described, Found, Hints
from sae_forge.sae.formats.gemma_scope import GEMMA_SCOPE
from sae_forge.sae.formats.saelens import CFG, SAELENS, WEIGHTS, settings
from sae_forge.sae.released import Reference, fetch, in_cache, is_tuned_form_of, same_model
from sae_forge.sae.store import Provenance, file_sae, load_sae
from sae_forge.store import files, records
from sae_forge.store.cache import known_sha256
from sae_forge.store.runs import POINTER, Run
from sae_forge.store.weights import require_same


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
    """``folder`` relative to the run's ``saes``."""
    module: str = ""
    """The sub-module of a layer whose output it reads, where its files say its place so."""
    origin: Path | None = None
    """Folder of its files, if it was trained here or in another run; None: another tool made it."""


def load_dictionary(
    source: str | Path,
    run: Run,
    *,
    model: str,
    asked: HookPoint | None = None,
    site: Site | None = None,
    spelled: Collection[str] = ("layer", "site"),
    device: str = "cpu",
    allow_pickle: bool = False,
    partly: bool = False,
    keeps: bool = True,
    norms_take_mean: Callable[[], bool] = lambda: False,
    progress: Progress = SILENT,
) -> NamedSAE:
    """The SAE that ``source`` names, checked, on ``device``; one that was made elsewhere leaves a pointer in the run.

    Args:
        source: A run's SAE folder; a folder or file of any format of ``formats.table``; or ``owner/name:path`` on the
            Hub, as ``google/gemma-scope-2b-pt-res:layer_3/width_16k/average_l0_59``; ``owner/name@revision:path`` pins.
        model: Name of the model it is to be used with. Where the SAE knows its model by no more than a name, another is
            said and not refused: a model has many names, and an SAE of a base model is commonly used on the tuned one.
        asked: Where it reads, if it does not say so itself.
        site: The site that was asked for where no layer was.
        spelled: What of ``asked`` it may not contradict: ``layer``, ``site`` or both.
        allow_pickle: Read a weights file that is a pickle, in a limited process (``formats.pickled``).
        partly: Leave one whose latents fire each by itself in its file (``sae.filed``), for who asks for a few of them.
        keeps: Leave that pointer; else nothing is written.
        norms_take_mean: Whether the norms of the model take the mean over the width off; asked only for an SAE that
            was trained on activations without it.

    Raises:
        CheckpointError: missing, damaged, or of an unknown layer.
        ConfigError: it reads at another place than ``asked``.
        RemoteError: the Hub refused, does not have it, or cannot be reached.
    """
    path = expanded(source)
    wanted = _Wanted(run, model, asked, site, frozenset(spelled), allow_pickle, norms_take_mean, progress, partly)
    if (path / POINTER).is_file():
        named = _pointed(path, wanted)
    elif run.holds(path):
        named = _trained(path, wanted)
    else:
        named = _adopted(_located(path, str(source), wanted), wanted, keeps=keeps)
    cast("nn.Module | FiledSAE", named.sae).to(device)
    trained_on = named.provenance.model
    if not named.provenance.weights and trained_on not in ("", model):  # else it is the weights that say it
        practice = _practice(trained_on, model)
        progress.say(f"{named.folder.name} was trained on {trained_on} and is used on {model}, {practice}")
    return named


def read_dictionary(
    source: str | Path,
    *,
    model: str = "",
    asked: HookPoint | None = None,
    site: Site | None = None,
    allow_pickle: bool = False,
    norms_take_mean: Callable[[], bool] = lambda: False,
    progress: Progress = SILENT,
) -> NamedSAE:
    """The SAE that ``source`` names, as ``load_dictionary`` reads it, and nothing is written anywhere.

    Raises:
        CheckpointError, ConfigError, RemoteError: as ``load_dictionary``.
    """
    path, nowhere = expanded(source), Run(Path())
    wanted = _Wanted(nowhere, model, asked, site, frozenset({"layer", "site"}), allow_pickle, norms_take_mean, progress)
    if (path / POINTER).is_file():
        return _pointed(path, wanted)
    on_disk, told = _told(_located(path, str(source), wanted))
    return _described(on_disk.folder, on_disk, told, wanted.place(told, on_disk.where), wanted)


def _practice(trained_on: str, model: str) -> str:
    """What is known of an SAE on this model by names alone."""
    if same_model(trained_on, model):
        return "which by its name is the same model"
    return "as published papers do" if is_tuned_form_of(model, trained_on) else "so expect more error than on its own"


@dataclass(frozen=True)
class _Wanted:
    """What was asked for beside the SAE itself."""

    run: Run
    model: str
    asked: HookPoint | None
    site: Site | None
    spelled: frozenset[str]
    allow_pickle: bool
    norms_take_mean: Callable[[], bool]
    progress: Progress
    partly: bool = False

    def sha256(self, weights: Path) -> str:
        """Of a file that is about to be read whole, or of which a few latents will do."""
        return known_sha256(weights) if self.partly else files.file_sha256(weights)

    def place(self, told: Described, shown: str) -> HookPoint:
        """Where an SAE reads: as it says itself, which what was asked for may not contradict.

        Raises:
            ConfigError: it does.
            CheckpointError: neither says it.
        """
        if (stated := told.point) is None:
            if self.asked is None:
                raise CheckpointError(f"{shown} does not say which layer it reads; name it with --layer")
            return self.asked
        asked = self.asked or HookPoint(stated.layer, self.site or stated.site)
        named = {*self.spelled, *(["site"] if self.site else [])}
        if told.site_assumed and "site" in named:
            stated = replace(stated, site=asked.site)
        differs = {"layer": stated.layer != asked.layer, "site": stated.site != asked.site}
        if any(differs[name] for name in named if name in differs):  # a config spells other settings too
            site = f" --site {stated.site}" if differs["site"] else ""
            raise ConfigError(f"--sae {shown} reads {stated}, not {asked}; give --layer {stated.layer}{site}")
        return stated


# ---- trained here -------------------------------------------------------------------------------


def _is_ours(folder: Path) -> bool:
    """Whether it is the folder of an SAE that was trained here, or in another run."""
    return (folder / CFG).is_file() and (folder / WEIGHTS).is_file() and "sae_forge" in settings(folder / CFG)


def _trained(folder: Path, wanted: _Wanted) -> NamedSAE:
    _, told = _told(_Origin(Found(SAELENS, folder, folder / WEIGHTS, str(folder)), folder.name))
    point = wanted.place(told, str(folder))
    sae, provenance = (file_sae if wanted.partly else load_sae)(folder, norms_take_mean=wanted.norms_take_mean)
    name = folder.resolve().relative_to((wanted.run.folder / "saes").resolve()).as_posix()
    return NamedSAE(folder, sae, provenance, point, wanted.sha256(folder / WEIGHTS), name, origin=folder)


def _parsed(folder: Path, text: str) -> HookPoint:
    try:
        return HookPoint.parse(text)
    except ConfigError as error:
        raise CheckpointError(f"{folder} says that it reads {text[:60]!r}, which is no place in a model") from error


# ---- made elsewhere -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Origin:
    """An SAE's files on this machine, and where they come from."""

    found: Found
    name: str
    """One readable folder name for it."""
    hints: Hints = field(default_factory=Hints)
    pinned: Reference | None = None
    """The Hub reference with its commit; None for a local file."""


@dataclass(frozen=True, kw_only=True)
class _Pointer:
    """What the run keeps of it."""

    source: str
    """Pinned reference, or path from the pointer's folder to the weights file."""
    weights: str
    hook_point: str
    model: str
    on_hub: bool = False
    format: str = GEMMA_SCOPE.name
    """Those of version 0.2 do not say it: they are of Gemma Scope, or their file's name says it."""
    file: str = ""
    """On the Hub: the weights file in the repository."""
    scale: float | None = None
    centred: bool = False
    normalized: str = "none"

    @property
    def hints(self) -> Hints:
        """What a directory said of it."""
        return Hints(scale=self.scale, centred=self.centred, normalized=self.normalized)


def _located(path: Path, source: str, wanted: _Wanted) -> _Origin:
    """The files that are meant, fetched if they are on the Hub.

    Raises:
        CheckpointError: there are none.
    """
    layer = wanted.asked.layer if wanted.asked else None
    if (on_disk := table.on_disk(path, layer)) is not None:
        return _local(on_disk, wanted)
    entry = None if path.exists() else directory.named(source)
    reference = None if path.exists() else entry.reference if entry else Reference.parse(source)
    if reference is None:
        raise CheckpointError(
            f"no SAE at {path}; give the folder of one, its weights file, owner/name:path on the Hub, or release:id of "
            f"SAELens' directory (sae-forge saes lists them), or make one with: sae-forge train --model {wanted.model}"
        )
    wanted.progress.say(f"SAE: {reference}")
    on_disk, commit = fetch(reference)
    hints = entry.hints if entry else directory.hints_for(reference) if on_disk.format.hinted else Hints()
    return _Origin(on_disk, reference.name, hints, pinned=reference.at(commit) if commit else reference)


def _local(found: Found, wanted: _Wanted) -> _Origin:
    """Named by its path from the release's folder or ``layer_N`` on, else its own folder; files that differ by hash."""
    parts = Path(found.where).parts
    marked = [place for place, part in enumerate(parts) if part.startswith(("gemma-scope-", "layer_"))]
    readable = "--".join(parts[marked[0] :] if marked else parts[-1:])
    return _Origin(found, f"{readable}-{wanted.sha256(found.weights)[:8]}")


def _told(origin: _Origin) -> tuple[Found, Described]:
    return origin.found, origin.found.format.describe(origin.found, origin.hints)


def _adopted(origin: _Origin, wanted: _Wanted, *, keeps: bool) -> NamedSAE:
    """An SAE made elsewhere, and the pointer to it in the run, if that ``keeps`` one."""
    on_disk, told = _told(origin)
    point = wanted.place(told, on_disk.where)
    folder = wanted.run.folder / "saes" / str(point) / origin.name
    named = _described(folder, on_disk, told, point, wanted)
    if (folder / POINTER).exists():
        _require_weights(named, _pointer(folder).weights)
        if keeps:
            wanted.run.note(folder)
        return named
    if not keeps:
        return named
    pinned = origin.pinned
    pointer = _Pointer(
        source=str(pinned) if pinned else os.path.relpath(_unlinked(on_disk.weights), folder.resolve()),
        on_hub=pinned is not None,
        weights=named.weights,
        hook_point=str(point),
        model=named.provenance.model,
        format=on_disk.format.name,
        file=in_cache(on_disk.weights)[1] if pinned else "",
        **asdict(origin.hints),
    )
    files.publish_json(folder / POINTER, asdict(pointer))
    wanted.run.note(folder)
    return named


def _unlinked(weights: Path) -> Path:
    """Its full path; where it is a link, as in the Hub's cache, with the name that says its format."""
    return weights.parent.resolve() / weights.name


def _pointed(folder: Path, wanted: _Wanted) -> NamedSAE:
    """The SAE that a run's pointer leads to, refused when it is no longer the same."""
    pointer = _pointer(folder)
    reference = Reference.parse(pointer.source) if pointer.on_hub else None
    if reference is not None:
        on_disk, _ = fetch(replace(reference, format=pointer.format, file=pointer.file))
    else:
        weights = folder.resolve() / pointer.source
        if not weights.is_file():
            raise CheckpointError(f"{folder / POINTER} points to {pointer.source}, which is gone; name it with --sae")
        on_disk = table.on_disk(weights)
        assert on_disk is not None
    told = on_disk.format.describe(on_disk, pointer.hints)
    told = replace(told, model=pointer.model, point=_parsed(folder, pointer.hook_point), site_assumed=False)
    named = _described(folder, on_disk, told, wanted.place(told, str(folder)), wanted)
    _require_weights(named, pointer.weights)
    return named


def _described(folder: Path, found: Found, told: Described, point: HookPoint, wanted: _Wanted) -> NamedSAE:
    centre = told.centred and wanted.norms_take_mean()
    for line in (
        *told.said,
        *(["it wants activations less their mean, which its encoder now takes off"] if centre else []),
    ):
        wanted.progress.say(f"{folder.name}: {line}")
    origin, sha256 = found.weights.parent if _is_ours(found.weights.parent) else None, wanted.sha256(found.weights)
    if origin is not None:
        sae, provenance = (file_sae if wanted.partly else load_sae)(origin, norms_take_mean=wanted.norms_take_mean)
    else:
        what = f"the weights of {found.format.name}"
        sae = filed(found.weights, told, weights=sha256, centre=centre) if wanted.partly else None
        if sae is None:
            sae = build.read(found.weights, told, allow_pickle=wanted.allow_pickle, what=what, centre=centre)
        provenance = Provenance(model=told.model, hook_point=str(point))
    return NamedSAE(folder, sae, provenance, point, sha256, f"{point}/{folder.name}", told.module, origin)


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
