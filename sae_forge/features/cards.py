"""What a person looks at of each latent: where it fires, token by token, strongly and weakly, and how strongly.

It is read off a sample of the activations, whole sequences spread evenly through each corpus, when somebody wants to
look; nothing of a selection hangs on it. No model takes part.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sae_forge.data.shards import ShardReader
from sae_forge.data.sinks import are_sinks
from sae_forge.features.selection import Selection
from sae_forge.features.snippets import CONTEXT
from sae_forge.features.stats import require_width
from sae_forge.progress import SILENT, Progress
from sae_forge.sae.dictionary import Dictionary

SAMPLE_TOKENS = 40_000
"""Tokens of a corpus that are looked at, about."""
MOST = 1000
"""Latents that have a card beside the chosen ones: those that fire most."""
STRONGEST, RETAIN_STRONGEST = 5, 3
"""Sequences shown in which a latent fires most, in text to forget and in text to keep."""
PERCENTILES = (75, 50, 25, 5)
"""Firings shown that are stronger than this share of a latent's firings in text to forget."""
BARS = 24
"""Bars of a histogram, from 0 to the strongest firing."""
FAVOURITES = 6
"""Tokens named on which a latent fires."""


@dataclass(frozen=True, eq=False)
class Sample:
    """Tokens of a few corpora, the one to forget first, and every firing on them."""

    corpora: tuple[str, ...]
    rows: tuple[int, ...]
    """Tokens looked at of each."""
    token_ids: np.ndarray
    sequences: np.ndarray
    """Number of the sequence each token is in; those of all corpora are told apart."""
    stretches: np.ndarray
    """Number of the stretch each token is in: where a token was dropped, another text begins."""
    latents: np.ndarray
    places: np.ndarray
    """On which of the tokens each firing is, rising for each latent."""
    acts: np.ndarray
    d_sae: int

    @property
    def forget_rows(self) -> int:
        """Tokens of text to forget; they are the first."""
        return self.rows[0]

    def fires(self) -> np.ndarray:
        """Firings of each latent in each corpus, ``[corpora, d_sae]``."""
        corpus = np.repeat(np.arange(len(self.rows)), self.rows)[self.places]
        counted = np.bincount(corpus * self.d_sae + self.latents, minlength=len(self.rows) * self.d_sae)
        return counted.reshape(len(self.rows), self.d_sae)


@dataclass(frozen=True)
class Snippet:
    """A piece of text around one firing."""

    percentile: int
    """100: among the strongest; else the share of its firings, in percent, that are weaker than this one."""
    corpus: int
    start: int
    length: int
    """Where it stands in the text of all cards."""
    peak: int
    """Which of its tokens it is about."""
    fired: tuple[int, ...]
    acts: tuple[float, ...]
    """On which of its tokens the latent fires, and how strongly."""


@dataclass(frozen=True)
class Card:
    """One latent."""

    latent: int
    fires: tuple[int, ...]
    """In each corpus of the sample."""
    peak: float
    mean: float
    """Of its firings, in all corpora."""
    histogram: tuple[tuple[int, ...], tuple[int, ...]]
    """Firings by strength, from 0 to its peak, in text to forget and in text to keep."""
    favourites: tuple[tuple[int, int], ...]
    """Pieces it fires on most in the text that is shown, its acts summed, with how often it does."""
    snippets: tuple[Snippet, ...]


@dataclass(frozen=True, eq=False)
class Cards:
    """Latents with all that is shown of them, and how often every latent fires."""

    corpora: tuple[str, ...]
    """The one to forget first."""
    tokens: tuple[int, ...]
    """Looked at, of each."""
    frequencies: np.ndarray
    """``[2, d_sae]``: share of tokens on which each latent fires, to forget and, the highest of all, to keep."""
    pieces: tuple[str, ...]
    text: tuple[int, ...]
    """The tokens that any snippet shows, each as a number of its piece."""
    cards: tuple[Card, ...]


def sample(
    readers: Mapping[str, ShardReader],
    sae: Dictionary,
    *,
    sink_norm: float | None = None,
    tokens: int = SAMPLE_TOKENS,
    progress: Progress = SILENT,
) -> Sample:
    """Every firing on about so many tokens of each corpus, but for those on sinks.

    Args:
        readers: By the name of the corpus, the one to forget first.

    Raises:
        ShardError: the activations are not as wide as the SAE reads.
    """
    kept: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    fired: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    rows, first, sequences = [], 0, 0
    for name, reader in readers.items():
        require_width(reader, sae, name)
        every, begin, last = max(1, math.ceil(reader.rows / tokens)), first, 0
        with progress.task(f"look at {name}", math.ceil(reader.rows / every), "tokens") as task:
            for number in range(reader.block_count):
                if not (reader.read_origins(number)["seq_ids"] % every == 0).any():
                    continue  # its activations are not read
                block = reader.read_block(number)
                mine = block.seq_ids % every == 0
                acts = block.acts[mine]
                with torch.no_grad():
                    code = sae.encode(acts.to(sae.W_dec.device, sae.W_dec.dtype))
                values, indices = code.values.float().cpu(), code.indices.cpu()
                values[are_sinks(acts, sink_norm)] = 0
                row, column = (values > 0).nonzero(as_tuple=True)
                fired.append((indices[row, column].numpy(), row.numpy() + first, values[row, column].numpy()))
                seq_ids = block.seq_ids[mine].numpy()
                kept.append((block.token_ids[mine].numpy(), seq_ids + sequences, block.positions[mine].numpy()))
                first, last = first + len(acts), int(seq_ids[-1])
                task.advance(len(acts))
        rows.append(first - begin)
        sequences += last + 1
    token_ids, sequence, positions = (np.concatenate(column) for column in zip(*kept, strict=True))
    latents, places, strengths = (np.concatenate(column) for column in zip(*fired, strict=True))
    joined = (np.diff(sequence) == 0) & (np.diff(positions) == 1)
    order = np.argsort(latents, kind="stable")  # which keeps the places of a latent rising
    return Sample(
        tuple(readers), tuple(rows), token_ids, sequence, np.concatenate(([0], np.cumsum(~joined))),
        latents[order], places[order], strengths[order], sae.d_sae,
    )  # fmt: skip


def cards(
    sample: Sample,
    chosen: Sequence[int],
    decode: Callable[[list[int]], str],
    *,
    show_forget: bool,
    most: int = MOST,
) -> Cards:
    """A card for each chosen latent and for those that fire most.

    Args:
        show_forget: Whether text to forget may be shown; without it only its numbers are.
    """
    fires = sample.fires()
    total = fires.sum(axis=0)
    busiest = np.argsort(-total, kind="stable")[:most]
    latents = list(dict.fromkeys([*chosen, *busiest[total[busiest] > 0].tolist()]))
    starts, ends = (np.searchsorted(sample.latents, latents, side) for side in ("left", "right"))
    drawn: dict[int, _Drawn] = {}
    for latent, start, end in zip(latents, starts, ends, strict=True):
        places, acts = sample.places[start:end], sample.acts[start:end]
        drawn[latent] = places, acts, _windows(sample, places, acts, show_forget)
    used = np.zeros(len(sample.token_ids), dtype=bool)
    for _, _, windows in drawn.values():
        for _, _, left, right in windows:
            used[left : right + 1] = True
    moved = np.cumsum(used) - 1
    shown_ids = sample.token_ids[used]
    favourites = {latent: _favourites(sample, places, acts, show_forget) for latent, (places, acts, _) in drawn.items()}
    known = np.unique([*shown_ids.tolist(), *(token for named in favourites.values() for token, _ in named)])
    number = {int(token): place for place, token in enumerate(known)}
    share = fires / np.maximum(sample.rows, 1)[:, None]
    return Cards(
        corpora=sample.corpora,
        tokens=sample.rows,
        frequencies=np.stack([share[0], share[1:].max(axis=0) if len(share) > 1 else np.zeros(sample.d_sae)]),
        pieces=tuple(_piece(int(token), decode) for token in known),
        text=tuple(number[token] for token in shown_ids.tolist()),
        cards=tuple(
            Card(
                latent=latent,
                fires=tuple(fires[:, latent].tolist()),
                peak=_rounded(acts.max(initial=0.0)),
                mean=_rounded(acts.mean()) if len(acts) else 0.0,
                histogram=_histogram(sample, places, acts),
                favourites=tuple((number[token], count) for token, count in favourites[latent]),
                snippets=tuple(_snippet(sample, window, places, acts, moved) for window in windows),
            )
            for latent, (places, acts, windows) in drawn.items()
        ),
    )


def remembered(selection: Selection, *, show_forget: bool) -> Cards:
    """What a selection itself remembers of its latents, for when the activations are gone: of all others nothing."""
    pieces: list[str] = []
    made = []
    for latent in selection.latents:
        snippets = []
        for one in latent.snippets if show_forget else ():
            # the first pair of marks is ours; others are the corpus's own
            before, _, rest = one.text.partition("«")
            peak, _, after = rest.partition("»")
            snippets.append(Snippet(100, 0, len(pieces), 3, 1, (1,), (_rounded(one.act),)))
            pieces += (before, peak, after)
        corpora = (latent.forget, *latent.retain.values())
        fires = tuple(stats.fires for stats in corpora)
        tokens = (selection.forget_corpus.tokens, *(one.tokens for one in selection.retain_corpora.values()))
        summed = sum(stats.mean * count for stats, count in zip(corpora, tokens, strict=True))
        peak_act = max(stats.peak for stats in corpora)
        mean = _rounded(summed / max(sum(fires), 1))
        made.append(Card(latent.index, fires, _rounded(peak_act), mean, ((), ()), (), tuple(snippets)))
    names = (selection.forget_corpus.name, *selection.retain_corpora)
    unknown = np.full((2, selection.d_sae), np.nan)
    return Cards(names, (0,) * len(names), unknown, tuple(pieces), tuple(range(len(pieces))), tuple(made))


_Window = tuple[int, int, int, int]
"""Percentile, the place it is about, and the first and the last place shown."""
_Drawn = tuple[np.ndarray, np.ndarray, list[_Window]]
"""Of one latent the places it fires on, how strongly, and what is shown of it."""


def _windows(sample: Sample, places: np.ndarray, acts: np.ndarray, show_forget: bool) -> list[_Window]:
    """The firings to show of one latent: in text to forget its strongest and some weaker, then in text to keep."""
    order = np.argsort(-acts, kind="stable")
    ranked = places[order]
    forget, retain = ranked[ranked < sample.forget_rows], ranked[ranked >= sample.forget_rows]
    windows = []
    if show_forget:
        windows = [(100, place) for place in _apart(sample, forget, STRONGEST)]
        if len(forget) > STRONGEST + len(PERCENTILES):
            windows += [(share, int(forget[int((1 - share / 100) * len(forget))])) for share in PERCENTILES]
    windows += [(100, place) for place in _apart(sample, retain, RETAIN_STRONGEST)]
    return [(share, place, *_around(sample, place)) for share, place in windows]


def _apart(sample: Sample, ranked: np.ndarray, count: int) -> list[int]:
    """The first of these places that lie in sequences of their own."""
    firsts: dict[int, int] = {}
    for place in ranked.tolist():
        if len(firsts) == count:
            break
        firsts.setdefault(int(sample.sequences[place]), place)
    return list(firsts.values())


def _around(sample: Sample, place: int) -> tuple[int, int]:
    """The first and the last place within ``CONTEXT`` tokens that belong to the same stretch of text."""
    low, high = max(0, place - CONTEXT), min(len(sample.stretches), place + CONTEXT + 1)
    same = np.flatnonzero(sample.stretches[low:high] == sample.stretches[place])
    return low + int(same[0]), low + int(same[-1])


def _snippet(sample: Sample, window: _Window, places: np.ndarray, acts: np.ndarray, moved: np.ndarray) -> Snippet:
    share, place, left, right = window
    low, high = np.searchsorted(places, [left, right + 1])
    return Snippet(
        percentile=share,
        corpus=int(np.searchsorted(np.cumsum(sample.rows), place, side="right")),
        start=int(moved[left]),
        length=right - left + 1,
        peak=place - left,
        fired=tuple((places[low:high] - left).tolist()),
        acts=tuple(map(_rounded, acts[low:high])),
    )


def _histogram(sample: Sample, places: np.ndarray, acts: np.ndarray) -> tuple[tuple[int, ...], tuple[int, ...]]:
    forget = places < sample.forget_rows
    top = float(acts.max(initial=0.0)) or 1.0
    one, other = (np.histogram(acts[side], BARS, (0.0, top))[0].tolist() for side in (forget, ~forget))
    return tuple(one), tuple(other)


def _favourites(sample: Sample, places: np.ndarray, acts: np.ndarray, show_forget: bool) -> list[tuple[int, int]]:
    """Tokens on which it fires most in all, its acts summed, with how often it does."""
    shown = slice(0 if show_forget else int(np.searchsorted(places, sample.forget_rows)), None)
    kinds, inverse = np.unique(sample.token_ids[places[shown]], return_inverse=True)
    best = np.argsort(-np.bincount(inverse, weights=acts[shown]), kind="stable")[:FAVOURITES]
    return list(zip(kinds[best].tolist(), np.bincount(inverse)[best].tolist(), strict=True))


def _piece(token: int, decode: Callable[[list[int]], str]) -> str:
    """The text of a token within a text: decoded alone, many tokenizers leave out the blank it begins with."""
    once, twice = decode([token]), decode([token, token])
    return twice[len(once) :] if twice.startswith(once) and len(twice) > len(once) else once


def _rounded(act: float | np.floating) -> float:
    """Three digits, which is what is shown."""
    return float(f"{act:.3g}")
