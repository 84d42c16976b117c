"""What a reader of a format says: which files are its own, and how what is in them becomes a dictionary."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from sae_forge.hookpoint import HookPoint

TRANSCODER = "rebuilds other activations than it reads, so it is no SAE"
"""What is said of every kind of transcoder."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the tensors of a file become a dictionary."""

    architecture: str
    """A name in ``architectures.table``."""
    names: Mapping[str, str]
    """What the file calls each of our tensors."""
    turned: frozenset[str] = frozenset()
    """Those of ours that lie the other way round in it: ``W_enc`` as [d_sae, d_in], ``W_dec`` as [d_in, d_sae]."""
    takes_off_b_dec: bool
    """Whether the encoder reads ``x - b_dec``."""
    d_in: int | None = None
    """None: as wide as ``W_enc`` is."""
    d_sae: int | None = None
    k: int | None = None
    k_name: str | None = None
    """The tensor that is k, if the file has one."""
    by_norm: bool = False
    """Acts are multiplied by the norm of their decoder row before they compete."""
    scale: float = 1.0
    """What its input is multiplied by; acts stay in the units of that."""
    threshold: float | None = None
    """One for all latents, where it is said beside the weights; in the units of the pre-activations."""
    log_threshold: bool = False
    """Whether thresholds are kept as logarithms."""
    ignored: frozenset[str] = frozenset()
    """Tensors that training keeps in the file too, and use does not ask for."""


@dataclass(frozen=True, kw_only=True)
class Hints:
    """What a directory says of an SAE that its own files do not."""

    scale: float | None = None
    """What the release multiplies its input by."""
    centred: bool = False
    normalized: str = "none"
    """``normalize_activations``, where the directory overrides it."""


@dataclass(frozen=True, kw_only=True)
class Described:
    """What is known of an SAE before its weights are read."""

    recipe: Recipe
    point: HookPoint | None
    """Where it reads; None: its files and their names do not say."""
    module: str = ""
    """The sub-module of a layer whose output it reads, where its place is said so; empty elsewhere."""
    model: str = ""
    """Empty when none is named."""
    centred: bool = False
    """Trained on activations less their mean over the width, where the norms of the model take it off anyhow."""
    said: tuple[str, ...] = ()
    """What a user should know, a line each."""


@dataclass(frozen=True)
class Found:
    """An SAE on this disk: its weights file, and the names under which it may be known."""

    format: "Format"
    folder: Path
    """That of its settings."""
    weights: Path
    where: str
    """The reference or path that may say its layer, site and model."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """One way of keeping an SAE in files."""

    name: str
    weights: str
    """Its weights file under the SAE's folder, as a glob: ``params.npz``, ``layer*.sae.pt``."""
    beside: tuple[str, ...] = ()
    """Settings files without which it is not of this format."""
    perhaps: tuple[str, ...] = ()
    """Settings files that some have."""
    not_beside: tuple[str, ...] = ()
    """Files that tell another format of the same weights file."""
    hinted: bool = False
    """Whether a directory may say more of one than its own files do (see ``Hints``)."""
    repository: str = ""
    """What the names of Hub repositories match that hold nothing else, as a regular expression."""
    describe: Callable[[Found, Hints], Described]
    """What is known of one before its weights are read; raises CheckpointError, by name, for what cannot be used."""

    @property
    def depth(self) -> int:
        """Folders between the SAE's and its weights file."""
        return len(PurePosixPath(self.weights).parts) - 1
