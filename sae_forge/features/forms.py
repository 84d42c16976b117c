"""The form of texts, told apart from what they are about: quotes, dashes, case, line breaks, mark-up, script.

Where the forget text alone is written with typographic quotes, the latents that mark it best mark those, and an edit of
them forgets typography. So the forms of both sides are compared before anything is counted, and every token of the
forget corpus is marked by kind (:data:`KINDS`); what share of its firings a latent spends on each stands beside it.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor

from sae_forge.data.shards import BLOCK_ROWS, ShardReader
from sae_forge.data.texts.plain import plain_spelling

Decode = Callable[[list[int]], str]

FORM = ("no_letters", "respelled", "line_ends")
"""Kinds of tokens that are form and no content."""
KINDS = (*FORM, "unseen", "content")
"""What a token of the forget corpus may be, and may be several of: without letters or digits; spelled as no retain text
spells it, which has it in plain spelling; beside a line break, or the first of a text; in no retain text at all; a word
that is none of the commonest of the retain text."""
MOSTLY = 0.5
"""Share of its firings on form from which on a latent marks form."""
APART = 4.0
"""Times as frequent from which on a trait is one side's alone."""
LIKE = 0.07
"""Jensen-Shannon divergence, in bits, of the commonest words' frequencies below which two texts are of one kind: parts
of one novel have 0.01 to 0.03, novels among themselves and children's stories 0.03 to 0.06, novels and an encyclopedia
0.09 to 0.15."""
COMMON_WORDS = 100
SAMPLE_TOKENS = 50_000
"""Tokens of a corpus whose text is looked at."""

_WORD = re.compile(r"[^\W\d_]+")
_MARKUP = re.compile(
    r"</?\w[^<>\n]*>|\{\{|\}\}|\[\[|\]\]|\]\(|https?://|```|@[-.,]@|(?m:^ ?=+ |^#{1,6} |^\* )|\b_\w|\w_\b"
)


# ---- comparing the sides ------------------------------------------------------------------------


def _rate(characters: str) -> Callable[[str], float]:
    wanted = set(characters)
    return lambda text: sum(character in wanted for character in text)


_TRAITS: dict[str, Callable[[str], float]] = {
    "typographic quotes": _rate("‘’‚“”„«»"),
    "straight quotes": _rate("\"'"),
    "long dashes": _rate("–—―"),
    "double hyphens": lambda text: text.count("--"),
    "capitals": lambda text: sum(map(str.isupper, text)),
    "line breaks": _rate("\n"),
    "mark-up": lambda text: len(_MARKUP.findall(text)),
}
"""What is counted in a text, to be told by 1,000 letters of it."""
_LEAST = 0.5
"""Of 1,000 letters: what is rarer on both sides is no difference."""


@dataclass(frozen=True)
class Forms:
    """How the form of the forget text differs from that of every retain corpus."""

    differences: tuple[str, ...]
    """Traits that no retain corpus shares, each with its rates."""
    distances: dict[str, float]
    """How far the commonest words of each retain corpus are from those of the forget text, in bits."""

    @property
    def alike(self) -> tuple[str, ...]:
        """Retain corpora of the same kind of text."""
        return tuple(name for name, distance in self.distances.items() if distance < LIKE)

    def lines(self) -> list[str]:
        """What a reader has to know before the counts, a sentence each."""
        said = []
        if self.differences:
            said.append(
                f"the forget text differs in form from every retain text: {'; '.join(self.differences)}. What marks "
                "that is left out (--keep_form takes it); --normalize_text on collect writes both sides alike"
            )
        if not self.alike:
            near = ", ".join(f"{name} {distance:.2f}" for name, distance in self.distances.items())
            said.append(
                f"no retain text is of the forget text's kind (distance of common words: {near}; alike below {LIKE}), "
                "so style and topic are not told apart: give one of the same genre on other matters with --retain"
            )
        return said


def compared(forget: str, retain: Mapping[str, str], *, lengths: Mapping[str, float] | None = None) -> Forms:
    """The forms of a text beside those of several.

    Args:
        lengths: Tokens a document has on average, by the name of each text; the forget text's under "".
    """
    mine, theirs = _traits(forget), [_traits(text) for text in retain.values()]
    differences = []
    for name in dict.fromkeys(name for traits in (mine, *theirs) for name in traits):
        rate, rates = mine.get(name, 0.0), [traits.get(name, 0.0) for traits in theirs]
        if all(_apart(rate, other) >= APART for other in rates):
            differences.append(f"{name} {rate:.3g} in 1,000 letters, elsewhere {_range(rates)}")
    if lengths and all(_apart(lengths[""], lengths[name], 0) >= 2 * APART for name in retain):
        several = ", ".join(f"{lengths[name]:,.0f}" for name in retain)
        differences.append(f"documents of {lengths['']:,.0f} tokens, elsewhere {several}")
    distances = {name: _distance(forget, text, [*retain.values()]) for name, text in retain.items()}
    return Forms(tuple(differences), distances)


def _traits(text: str) -> dict[str, float]:
    """Occurrences of every trait in 1,000 letters; scripts other than Latin are traits too."""
    letters = Counter(filter(str.isalpha, text))
    count = max(1, letters.total())
    traits = {name: 1000 * number(text) / count for name, number in _TRAITS.items()}
    scripts: Counter[str] = Counter()
    for letter, times in letters.items():
        scripts[unicodedata.name(letter, "unknown").split()[0].capitalize()] += times
    return traits | {f"{name} letters": 1000 * times / count for name, times in scripts.items()}


def _apart(one: float, other: float, least: float = _LEAST) -> float:
    """How many times as large one rate is as the other."""
    one, other = one + least, other + least
    return max(one, other) / min(one, other) if min(one, other) > 0 else 1.0


def _range(rates: Sequence[float]) -> str:
    return " to ".join(dict.fromkeys(f"{rate:.3g}" for rate in (min(rates), max(rates))))


def _words(text: str) -> list[str]:
    return _WORD.findall(plain_spelling(text).casefold())


def common_words(texts: Iterable[str]) -> tuple[str, ...]:
    """The commonest words over all texts, each text counting alike."""
    shares: Counter[str] = Counter()
    for text in texts:
        words = _words(text)
        for word, count in Counter(words).items():
            shares[word] += count / len(words)  # pyright: ignore[reportArgumentType]
    return tuple(word for word, _ in shares.most_common(COMMON_WORDS))


def _distance(one: str, other: str, retain: Sequence[str]) -> float:
    """Jensen-Shannon divergence in bits of how often either uses the words that are common in retain text."""
    vocabulary = common_words(retain)
    p, q = (_profile(text, vocabulary) for text in (one, other))
    middle = (p + q) / 2
    divergences = [np.where(part > 0, part * np.log2(np.maximum(part, 1e-12) / middle), 0.0).sum() for part in (p, q)]
    return float(sum(divergences) / 2)


def _profile(text: str, vocabulary: Sequence[str]) -> np.ndarray:
    words = _words(text)
    counts = Counter(words)
    shares = np.array([counts[word] for word in vocabulary], dtype=float) / max(1, len(words))
    return np.append(shares, 1 - shares.sum()) + 1e-9


# ---- marking tokens -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Marks:
    """Of every row of a corpus, which of :data:`KINDS` its token is."""

    bits: UInt8[Tensor, "places"]
    """By ``block * BLOCK_ROWS + row``; bit i stands for kind i."""

    def of(self, places: Int[Tensor, "n"]) -> Bool[Tensor, "kinds n"]:
        """The kinds of some rows."""
        marks = self.bits[places]
        return torch.stack([marks >> number & 1 for number in range(len(KINDS))]).bool()


@dataclass(frozen=True)
class _Origins:
    """The tokens of a corpus in its order, five bytes each."""

    sizes: tuple[int, ...]
    """Rows of each block."""
    token_ids: np.ndarray
    opens: np.ndarray
    """Rows whose token is the first of a sequence or, after one that was dropped, of a document."""

    @classmethod
    def read(cls, reader: ShardReader) -> "_Origins":
        token_ids, opens, last = [], [], (-1, -1)
        for number in range(reader.block_count):
            origins = reader.read_origins(number)
            seq_ids, positions = (origins[name].numpy().astype(np.int64) for name in ("seq_ids", "positions"))
            token_ids.append(origins["token_ids"].numpy())
            before = [np.concatenate(([was], now[:-1])) for was, now in zip(last, (seq_ids, positions), strict=True)]
            opens.append((seq_ids != before[0]) | (positions != before[1] + 1))
            last = int(seq_ids[-1]), int(positions[-1])
        return cls(tuple(map(len, opens)), np.concatenate(token_ids), np.concatenate(opens))

    def text(self, decode: Decode) -> str:
        """The text of the first tokens; documents stand apart."""
        ids, opens = self.token_ids[:SAMPLE_TOKENS], np.flatnonzero(self.opens[:SAMPLE_TOKENS])
        return " ".join(decode(part.tolist()) for part in np.split(ids, opens[1:]))

    @property
    def document_tokens(self) -> float:
        """Tokens from one opening to the next, on average."""
        return len(self.token_ids) / self.opens.sum()


def looked_at(forget: ShardReader, retain: Mapping[str, ShardReader], decode: Decode) -> tuple[Forms, Marks]:
    """How the forms of the corpora compare, and the marks of every forget token."""
    mine, theirs = _Origins.read(forget), {name: _Origins.read(reader) for name, reader in retain.items()}
    texts = {name: origins.text(decode) for name, origins in theirs.items()}
    lengths = {"": mine.document_tokens} | {name: origins.document_tokens for name, origins in theirs.items()}
    forms = compared(mine.text(decode), texts, lengths=lengths)
    seen = np.unique(np.concatenate([origins.token_ids for origins in theirs.values()]))
    return forms, Marks(torch.from_numpy(_bits(mine, seen, common_words(texts.values()), decode)))


def _bits(origins: _Origins, seen: np.ndarray, common: Sequence[str], decode: Decode) -> np.ndarray:
    """The kinds of every token, from what its id is and what stands beside it."""
    vocabulary, which = np.unique(origins.token_ids, return_inverse=True)
    pieces = [decode([token]) for token in vocabulary.tolist()]
    for number in (number for number, piece in enumerate(pieces) if "\ufffd" in piece):
        pieces[number] = _in_its_place(origins.token_ids, int(np.flatnonzero(which == number)[0]), decode)
    held, usual = {_spelling(decode([token])) for token in seen.tolist()}, set(common)
    bare = np.array([not any(map(str.isalnum, piece)) for piece in pieces])
    unseen = ~np.isin(vocabulary, seen)
    respelled = unseen & np.array([_spelling(piece) in held for piece in pieces])
    breaks = np.array(["\n" in piece for piece in pieces])[which]
    words = np.array([len(word := piece.strip().casefold()) > 1 and word not in usual for piece in pieces])
    before, after = (np.concatenate(parts) for parts in (([False], breaks[:-1]), (breaks[1:], [False])))
    kinds = {
        "no_letters": bare[which],
        "respelled": respelled[which],
        "line_ends": breaks | before | after | origins.opens,
        "unseen": unseen[which],
        "content": (words & ~bare)[which],
    }
    packed = sum(kinds[name].astype(np.uint8) << number for number, name in enumerate(KINDS))
    bits = np.zeros((len(origins.sizes), BLOCK_ROWS), np.uint8)
    bits[np.arange(BLOCK_ROWS) < np.array(origins.sizes)[:, None]] = packed
    return bits.ravel()


def _spelling(piece: str) -> str:
    """A token as it might be spelled elsewhere: plain, and words in capitals without them."""
    word = plain_spelling(piece).strip(" _*#=\n\r\t")
    return word.casefold() if len(word) > 1 and word.isupper() else word


def _in_its_place(token_ids: np.ndarray, place: int, decode: Decode) -> str:
    """The character that a token is part of, where several make up one."""
    first = max(0, place - 3)
    before = decode(token_ids[first:place].tolist()).rstrip("\ufffd")
    whole = decode(token_ids[first : place + 4].tolist())
    return whole[len(before) : len(before) + 1] if whole.startswith(before) else "\ufffd"
