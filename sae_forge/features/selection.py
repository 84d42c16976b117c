"""Which latents to edit, and everything known about them: one JSON file, strict to read."""

import dataclasses
import html
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_forge.errors import ConfigError, DataError
from sae_forge.features.analysis import Analysis
from sae_forge.features.forms import Forms
from sae_forge.features.snippets import Snippet
from sae_forge.store import files, records
from sae_forge.store.weights import require_same

if TYPE_CHECKING:
    import pandas as pd

FORMAT = 2
YOUNGER = frozenset({"sink_norm", "forms"})
"""What selections of before have not."""
WHAT = "a selection of latents"
_MAKE_ONE = "make one with: sae-forge features"


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
    marks: dict[str, float] = field(default_factory=dict)
    """Share of its forget firings on each kind of token (``forms.KINDS``); empty where none was marked."""


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
    """Latents to edit, in the order that a smaller number of them is taken in: see ``order``."""

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
    sink_norm: float | None = None
    """Length beyond which an activation is a sink's, left out of all that is counted here; None: none is left out."""
    forms: Forms | None = None
    """How the forms of the corpora compare; None where their text was not read."""
    format: int = FORMAT

    @property
    def indices(self) -> tuple[int, ...]:
        """The latents in their order."""
        return tuple(latent.index for latent in self.latents)

    @property
    def alive(self) -> tuple[int, ...]:
        """Latents that fire somewhere in these corpora, by rising index."""
        dead = set(self.dead)
        return tuple(latent for latent in range(self.d_sae) if latent not in dead)

    @property
    def order(self) -> str:
        """How its latents are ordered, in words that their numbers bear out; a given list has its own."""
        for name in dict.fromkeys((self.settings.get("sort_by", "score"), "score")):
            if all(one >= other for one, other in pairwise(getattr(latent, name) for latent in self.latents)):
                return f"highest {name} first"
        return "in the order they were chosen"

    def to_pandas(self) -> "pd.DataFrame":
        """A line for each latent, in their order, without snippets: what is known of it on every corpus.

        Columns of a corpus are called ``forget.fires``, ``retain.<corpus>.peak`` …
        """
        import pandas as pd  # takes longer to load than a selection

        told = [dataclasses.asdict(dataclasses.replace(latent, snippets=())) for latent in self.latents]
        return pd.json_normalize(told).drop(columns="snippets").set_index("index")

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return f"<p>{html.escape(self.summary())}</p>" + self.to_pandas().to_html()

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
            separation = self.analysis.separation
            worst = min(separation.auroc_by_corpus, key=separation.auroc_by_corpus.__getitem__)
            told += f"; AUROC {separation.auroc:.3f}, lowest {separation.auroc_by_corpus[worst]:.3f} against {worst}"
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
            raise DataError(f"{path} is not {WHAT}; {_MAKE_ONE}")
        if record.get("format") != FORMAT:
            written = str(record.get("format"))[:20]
            raise DataError(f"{path} has format {written}, not {FORMAT}; make it again with: sae-forge features")
        try:
            selection = records.decode(cls, record)
        except ValueError as error:
            raise DataError(f"{path} is not {WHAT}: {error}") from None
        if flaw := _lacking(record) or selection.flaw():
            raise DataError(f"{path} is not {WHAT}: {flaw}")
        made = f"{path} was made for the SAE {selection.sae}"
        require_same(selection.weights, weights or "", made, "this one", kind=DataError, advice=_MAKE_ONE)
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


def _lacking(record: dict[str, Any]) -> str | None:
    """A field that was left out: none may be, also where one made by hand need not name it."""
    known = (field.name for field in dataclasses.fields(Selection) if field.name not in YOUNGER)
    return next((f"{name}: it is missing" for name in known if name not in record), None)
