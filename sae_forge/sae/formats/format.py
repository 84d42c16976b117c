"""What a format says of itself: which files are its own, how they become a dictionary, and how one is written in it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from sae_forge.hookpoint import HookPoint, Site

if TYPE_CHECKING:  # the command line names formats, and loads no torch for it
    from torch import Tensor

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
    site_assumed: bool = False
    """Whether only its layer is said: the site is then the usual one, and another that is asked for takes its place."""
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
class Given:
    """A dictionary that is to be written, and what is known of it."""

    architecture: str
    """What it computes, whatever it was trained as: ``topk``, ``jumprelu``, ``standard`` or ``groupmax``."""
    tensors: "Mapping[str, Tensor]"
    """Under our names, in our orientation, fp32, on the CPU."""
    takes_off_b_dec: bool
    """Whether its encoder reads ``x - b_dec``."""
    d_in: int
    d_sae: int
    k: int | None
    point: HookPoint
    model: str
    """Empty when nobody names one."""
    module: Callable[[], str]
    """The module whose output it reads, from the base model on (``layers.3.mlp``); raises ConfigError where none is."""


@dataclass(frozen=True, kw_only=True)
class Said:
    """An SAE in the words of a format; nothing is on disk yet."""

    recipe: Recipe
    """As the format's reader will find it."""
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Its JSON files by name."""
    inside: str = ""
    """Folder it lies in under the one that was asked for, where it is a folder's name that says the place."""
    numbers: "Mapping[str, Tensor]" = field(default_factory=dict)
    """Tensors of one number that are kept beside its weights."""


@dataclass(frozen=True, kw_only=True)
class Writer:
    """What a format can say, and how."""

    architectures: tuple[str, ...]
    sites: tuple[Site, ...]
    say: Callable[[Given], Said]
    """Raises ConfigError, by name, for what it cannot say."""


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
    writer: Writer | None = None
    """None: it is read and not written."""

    @property
    def depth(self) -> int:
        """Folders between the SAE's and its weights file."""
        return len(PurePosixPath(self.weights).parts) - 1
