"""SAELens' directory of released SAEs, where the package is installed: names for Hub files, and which can be used.

Its YAML is parsed as data; neither sae_lens nor torch is imported for it. Source: SAELens 6 (``pretrained_saes.yaml``).
"""

import importlib.util
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from sae_forge.errors import CheckpointError
from sae_forge.hookpoint import HookPoint, Site
from sae_forge.sae.formats import gemma_scope, gemma_scope_2, table
from sae_forge.sae.formats.format import TRANSCODER, Hints
from sae_forge.sae.formats.places import place_of
from sae_forge.sae.released import Reference

YAML = "pretrained_saes.yaml"
_FORMATS = {
    "sae_lens": "SAELens", "gemma_2": "Gemma Scope", "gemma_3": "Gemma Scope 2", "llama_scope": "Llama Scope",
    "llama_scope_r1_distill": "Llama Scope R1-Distill", "dictionary_learning_1": "dictionary_learning",
    "qwen_scope": "Qwen Scope", "goodfire": "Goodfire", "deepseek_r1": "DeepSeek-R1 of qresearch",
    "sparsify": "sparsify",
}  # fmt: skip
"""Our reader of what each loader of SAELens reads."""
_REASONS = {
    "connor_rob_hook_z": "reads hook_z, attention's heads apart",
    "temporal": "a temporal SAE: its acts hang on the tokens before",
}
_SHORT = re.compile(r"gemma-scope-2-(270m|1b|4b|12b|27b)-(pt|it)(?:-(?P<site>res|mlp|att)(?P<all>-all)?)?")
_SHORT_SITES = {"res": "resid_post", "mlp": "mlp_out", "att": "attn_out"}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One SAE of the directory."""

    release: str
    id: str
    model: str
    reference: Reference
    hints: Hints
    point: HookPoint | None
    """Where it reads; None where only its own files say."""
    reason: str = ""
    """Why it cannot be used; empty: it can."""
    needs_pickle: bool = False

    @property
    def name(self) -> str:
        """As ``--sae`` takes it."""
        return f"{self.release}:{self.id}"


def named(text: str) -> Entry | None:
    """The SAE that ``release:id`` stands for, or Gemma Scope 2's short form; None when the text is something else.

    ``gemma-scope-2-1b-pt:resid_post/layer_13_width_16k_l0_small`` and
    ``gemma-scope-2-1b-pt-res:layer_13_width_16k_l0_small`` need no directory.

    Raises:
        CheckpointError: the release has no such SAE (names some), it cannot be used, or SAELens is not installed.
    """
    release, colon, identity = text.partition(":")
    if not colon or not identity or "/" in release:
        return None
    facts = _releases().get(release)
    if facts is not None:
        if (entry := next((each for each in _entries(release, facts) if each.id == identity), None)) is None:
            known = ", ".join(str(each["id"]) for each in facts["saes"][:3])
            raise CheckpointError(f"--sae {text}: {release} has no SAE of that id; it has {known} …")
    elif (match := _SHORT.fullmatch(release)) is not None:
        folder = f"{_SHORT_SITES[match['site']]}_all"[: None if match["all"] else -4] + "/" if match["site"] else ""
        repository = f"google/gemma-scope-2-{match[1]}-{match[2]}"
        entry = _entry(release, identity, "", repository, f"{folder}{identity}", "gemma_3", {})
    elif _path() is None and re.fullmatch(r"[\w.-]+", release):
        raise CheckpointError(
            f"no SAE at {text}; if {release} is a release of SAELens' directory, install that: "
            "pip install sae-forge[saelens]"
        )
    else:
        return None
    if entry.reason:
        raise CheckpointError(f"--sae {text} cannot be used: {entry.reason}")
    return entry


def hints_for(reference: Reference) -> Hints:
    """What the directory says of an SAE that was named by its place on the Hub."""
    for release, facts in _releases().items():
        if facts["repo_id"] == reference.repo:
            for entry in _entries(release, facts):
                if entry.reference.path == reference.path:
                    return entry.hints
    return Hints()


def entries() -> Iterator[Entry]:
    """Every SAE of the directory; none where SAELens is not installed."""
    for release, facts in _releases().items():
        yield from _entries(release, facts)


def is_installed() -> bool:
    """Whether there is a directory."""
    return _path() is not None


def _entries(release: str, found: Mapping[str, Any]) -> Iterator[Entry]:
    overrides = found.get("config_overrides") or {}
    for sae in found["saes"]:
        told = {**overrides, "norm_scaling_factor": sae.get("norm_scaling_factor")}
        loader = found.get("conversion_func") or "sae_lens"
        yield _entry(release, str(sae["id"]), found["model"], found["repo_id"], str(sae["path"]), loader, told)


def _entry(
    release: str, identity: str, model: str, repo: str, path: str, loader: str, told: Mapping[str, Any]
) -> Entry:
    centred = (told.get("model_from_pretrained_kwargs") or {}).get("center_writing_weights") is True
    known = _FORMATS.get(loader, "")
    scale = told.get("norm_scaling_factor") if loader != "llama_scope" else None
    hints = Hints(scale=scale, centred=centred, normalized=told.get("normalize_activations") or "none")
    reference = Reference(repo, path, format=known if known in ("Qwen Scope", "Goodfire") else "")
    point, reason = None, _REASONS.get(loader, "")
    if "transcoder" in loader or "clt" in loader:
        reason = f"a transcoder: it {TRANSCODER}"
    elif hints.normalized != "none":
        reason = f"asks for {hints.normalized}, a scale of its own for each token"
    try:
        point = _place(loader, identity, f"{repo}:{path}")
    except CheckpointError as error:
        reason = reason or str(error)
    weights = table.BY_NAME[known].weights if known else ""
    return Entry(
        release=release, id=identity, model=model, reference=reference, hints=hints, point=point, reason=reason,
        needs_pickle=weights.endswith((".pt", ".pt*")),
    )  # fmt: skip


_HOOK = re.compile(r"blocks\.\d+\.[a-z_.]*hook_[a-z]+_[a-z]+")
_LLAMA = re.compile(r"-L(\d+)([RMA])-")
_LLAMA_SITES: dict[str, Site] = {"R": "resid_post", "M": "mlp_out", "A": "attn_out"}
_LAYER = re.compile(r"(?:resid_post_layer_|layer|/L|-l)(\d+)(?:R$|\.sae\.pt$|\.pth?$|/)")


def _place(loader: str, identity: str, where: str) -> HookPoint | None:
    """Where an SAE reads, by the names it has; None where only its own files say."""
    match loader:
        case "gemma_2":
            return gemma_scope.point_of(where)
        case "gemma_3":
            return gemma_scope_2.point_of(where)
        case "llama_scope" if layer_and_site := _LLAMA.search(where):
            return HookPoint(int(layer_and_site[1]), _LLAMA_SITES[layer_and_site[2]])
        case "sae_lens" | "dictionary_learning_1" if hook := _HOOK.match(identity):
            return place_of(hook[0], told=where)
    layer = _LAYER.search(where)
    return HookPoint(int(layer[1])) if layer else None


@cache
def _path() -> Path | None:
    spec = importlib.util.find_spec("sae_lens")
    path = Path(spec.origin).parent / YAML if spec is not None and spec.origin else None
    return path if path is not None and path.is_file() else None


@cache
def _releases() -> Mapping[str, Mapping[str, Any]]:
    """The directory by release; empty where there is none."""
    if (path := _path()) is None:
        return {}
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    releases = yaml.load(path.read_bytes(), Loader=loader)  # noqa: S506 (a safe loader)
    if not isinstance(releases, dict):
        raise CheckpointError(f"{path} is not a directory of SAEs")
    return {name: each for name, each in releases.items() if {"repo_id", "model", "saes"} <= set(each)}
