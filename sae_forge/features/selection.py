"""Which latents to edit, and everything known about them: one JSON file, strict to read."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from sae_forge.errors import ConfigError, DataError
from sae_forge.features.analysis import Analysis
from sae_forge.features.snippets import Snippet
from sae_forge.store import files

FORMAT = 2
WHAT = "a selection of latents"


@dataclass(frozen=True)
class CorpusStats:
    """How one latent behaves on one corpus."""

    fires: int
    """Tokens on which it fires."""
    mean: float
    """Mean activation over all tokens."""
    mean_square: float
    peak: float


@dataclass(frozen=True)
class SelectedLatent:
    """One latent to edit, and the statistics it was chosen by."""

    index: int
    score: float
    """What its method ranks by; INLP's score for ``inlp``, for a list that was given and for random draws."""
    ratio: float
    diff: float
    act_ratio: float
    forget_frequency: float
    retain_frequency: float
    """The highest over the retain corpora."""
    forget: CorpusStats
    retain: dict[str, CorpusStats]
    snippets: tuple[Snippet, ...]
    """Where it fires most on the forget corpus, strongest first, a sequence each."""


@dataclass(frozen=True)
class Corpus:
    """What a selection was measured on."""

    name: str
    tokens: int
    manifest: str
    """sha256 of the manifest of its shards."""
    rates_every: int
    """Of how many sequences one has its firing rate kept."""


@dataclass(frozen=True)
class Selection:
    """Latents to edit, best first."""

    sae: str
    """Folder of the SAE relative to the run's ``saes``: ``blocks.15.hook_resid_post/k32-d32768-s0``."""
    weights: str
    """sha256 of the SAE's weights file: latents of another SAE mean nothing here."""
    d_sae: int
    method: str
    """One of ``config.SelectionMethod``, or ``given`` for a list of latents."""
    settings: dict[str, Any]
    forget_corpus: Corpus
    retain_corpora: dict[str, Corpus]
    requested: int
    candidates: int
    """Latents that passed every filter."""
    filtered: dict[str, int]
    """Latents that each filter removed; with the candidates they sum to ``d_sae``. Empty for a given list."""
    latents: tuple[SelectedLatent, ...]
    retain_rates: dict[str, tuple[float, ...]] = field(repr=False)
    """For each retain corpus, share of each sequence's real tokens on which any chosen latent fires."""
    dead: tuple[int, ...] = field(default=(), repr=False)
    """Latents that fire on no token of these corpora, by rising index: no control may draw one of them."""
    refusal_latent: int | None = None
    """The latent that stands for refusing, where one was asked for."""
    analysis: Analysis | None = None
    """None for a selection that was not made from shards."""
    format: int = FORMAT

    @property
    def indices(self) -> tuple[int, ...]:
        """The latents, best first."""
        return tuple(latent.index for latent in self.latents)

    @property
    def alive(self) -> tuple[int, ...]:
        """Latents that fire somewhere in these corpora, by rising index."""
        dead = set(self.dead)
        return tuple(latent for latent in range(self.d_sae) if latent not in dead)

    def without_snippets(self) -> "Selection":
        """The same selection holding no corpus text."""
        return dataclasses.replace(
            self, latents=tuple(dataclasses.replace(latent, snippets=()) for latent in self.latents)
        )

    def to_json(self) -> dict[str, Any]:
        """JSON-ready, as :meth:`load` reads it."""
        return dataclasses.asdict(self)

    def metrics(self) -> dict[str, Any]:
        """The part of the command line's JSON that is about this selection."""
        record = self.to_json()
        told = ("method", "requested", "candidates", "filtered", "latents", "refusal_latent", "analysis")
        return {name: record[name] for name in told} | {"alive": self.d_sae - len(self.dead)}

    def summary(self) -> str:
        """One sentence for a person."""
        removed = ", ".join(f"{name} {count:,}" for name, count in self.filtered.items() if count)
        told = f"{len(self.latents)} of {self.candidates:,} valid latents among {self.d_sae:,}, by {self.method}"
        told += f" (removed: {removed})" if removed else ""
        if self.refusal_latent is not None:
            told += f"; refusal latent {self.refusal_latent}"
        if self.analysis is not None:
            found = self.analysis.separation
            worst = min(found.auroc_by_corpus, key=found.auroc_by_corpus.__getitem__)
            told += f"; AUROC {found.auroc:.3f}, lowest {found.auroc_by_corpus[worst]:.3f} against {worst}"
        return told

    def save(self, path: Path) -> None:
        """Write the file whole or not at all.

        Raises:
            ConfigError: it would be larger than any reader here accepts.
        """
        record = self.to_json()
        if (size := len(files.canonical(record))) * 1.5 > files.MAX_JSON_BYTES:
            raise ConfigError(
                f"{WHAT} with {len(self.latents)} latents takes {size / 1e6:.0f} MB; lower --num_features or --snippets"
            )
        files.publish_json(path, record)

    @classmethod
    def load(cls, path: Path, *, weights: str | None = None) -> "Selection":
        """Read a selection back.

        Args:
            weights: sha256 of the weights of the SAE it is to be used with; None skips that check.

        Raises:
            DataError: missing, malformed, foreign, of a newer format, or made for another SAE.
        """
        record = files.read_json(path, kind=DataError, what=WHAT)
        if not isinstance(record, dict) or "latents" not in record:
            raise DataError(f"{path} is not {WHAT}; make one with: sae-forge features")
        if record.get("format") != FORMAT:
            found = str(record.get("format"))[:20]
            raise DataError(f"{path} has format {found}, not {FORMAT}; make it again with: sae-forge features")
        try:
            files.canonical(record)  # settings may hold 1e999, which parses to what JSON cannot say
            selection = _decode(cls, record, "it")
        except (ValueError, OverflowError) as error:
            raise DataError(f"{path} is not {WHAT}: {error}") from None
        if flaw := selection.flaw():
            raise DataError(f"{path} is not {WHAT}: {flaw}")
        if weights is not None and weights != selection.weights:
            raise DataError(
                f"{path} was made for the SAE {selection.sae} with other weights; make one with: sae-forge features"
            )
        return selection

    def flaw(self) -> str | None:
        """What makes these numbers impossible, if anything does."""
        indices = self.indices
        if not indices:
            return "it names no latents"
        if len(set(indices)) < len(indices):
            return "it names a latent twice"
        if outside := [index for index in indices if not 0 <= index < self.d_sae]:
            return f"latent {outside[0]} is outside an SAE of {self.d_sae}"
        if any(not 0 <= rate <= 1 for rates in self.retain_rates.values() for rate in rates):
            return "a firing rate is outside [0, 1]"
        if any(not 0 <= index < self.d_sae for index in (*self.dead, self.refusal_latent or 0)):
            return f"a dead latent or the refusal latent is outside an SAE of {self.d_sae}"
        if len(set(self.dead)) < len(self.dead) or not set(self.dead).isdisjoint(
            latent.index for latent in self.latents if latent.forget.fires
        ):
            return "it lists as dead a latent twice, or one that fires"
        return None if self.analysis is None else self.analysis.flaw()


def _decode(kind: Any, value: Any, where: str) -> Any:
    """``value`` as the type ``kind`` says, down to the leaves; ValueError names the first place that is not."""
    if kind is Any:
        return value
    if get_origin(kind) is UnionType:
        return None if value is None else _decode(next(k for k in get_args(kind) if k is not NoneType), value, where)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        if not isinstance(value, dict) or set(value) != set(hints):
            odd = sorted(set(value) ^ set(hints))[0] if isinstance(value, dict) else "everything"
            raise ValueError(f"{where} has other fields than {kind.__name__}: {odd!r}")
        return kind(**{name: _decode(hint, value[name], name) for name, hint in hints.items()})
    if get_origin(kind) is tuple and isinstance(value, list):
        return tuple(_decode(get_args(kind)[0], item, where) for item in value)
    if get_origin(kind) is dict and isinstance(value, dict):
        return {name: _decode(get_args(kind)[1], item, where) for name, item in value.items()}
    if kind is float and type(value) in (int, float) and abs(value) < float("inf"):
        return float(value)
    if type(value) is kind and kind is not float:
        return value
    raise ValueError(f"{where} holds {str(value)[:40]!r}, which is no {getattr(kind, '__name__', kind)}")
