"""An SAE as the verbs are handed it: what it computes, where it belongs, and where its results lie."""

from dataclasses import dataclass, field
from pathlib import Path

from sae_forge.hookpoint import HookPoint
from sae_forge.sae.dictionary import Dictionary
from sae_forge.sae.store import Provenance


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
