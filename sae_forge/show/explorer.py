"""What the script of a page is handed of the latents and the written texts: JSON that its ``page.js`` reads."""

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from sae_forge.results.words import number, share, spaced

if TYPE_CHECKING:  # they load torch
    from sae_forge.features.cards import Cards
    from sae_forge.features.selection import SelectedLatent, Selection

DECADES, STEPS, UNKNOWN = 8, 65533, 65535
"""A frequency is told as 16 bits of its logarithm, over so many decades: to 0.03 %."""


@dataclass(frozen=True)
class Voted:
    """The tokens whose logits a latent's direction raises most, and those it lowers most."""

    promoted: tuple[str, ...]
    suppressed: tuple[str, ...]


@dataclass(frozen=True)
class Written:
    """What a model wrote under one method."""

    text: str
    edited: tuple[tuple[int, int, str], ...] = ()
    """Where in the text a token begins and ends that was edited, and the latents that fired on it."""


@dataclass(frozen=True)
class Continued:
    """One prompt, and its continuations by what was done to the model."""

    prompt: str
    under: Mapping[str, Written]


@dataclass(frozen=True, kw_only=True)
class Latents:
    """The latents of one SAE as they are explored."""

    selection: "Selection"
    cards: "Cards"
    contexts: bool
    """Whether text to forget is in the page."""
    votes: Mapping[int, Voted] = field(default_factory=dict)


def data(latents: Mapping[str, Latents], texts: Sequence[Continued]) -> str:
    """The JSON, which cannot end the element it stands in.

    Args:
        latents: By the name of the SAE.
    """
    told = {
        "saes": [_latents(name, one) for name, one in latents.items()],
        "texts": [
            {"prompt": one.prompt, "under": {name: _written(written) for name, written in one.under.items()}}
            for one in texts
        ],
    }
    text = json.dumps(told, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # what could end the element, open a comment in it, or end a line in old scripts
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def _written(one: Written) -> Mapping[str, Any]:
    # to a script a letter beyond the first 65,536, such as an emoji, is two
    letters = np.cumsum([0, *(1 + (letter > "\uffff") for letter in one.text)]).tolist()
    return {"text": one.text, "edited": [(letters[start], letters[end], said) for start, end, said in one.edited]}


def _latents(name: str, one: Latents) -> Mapping[str, Any]:
    cards, chosen = one.cards, {latent.index: latent for latent in one.selection.latents}
    frequencies = cards.frequencies.copy()
    for index, latent in chosen.items():  # these are known of every token, not of a sample
        frequencies[:, index] = latent.forget_frequency, latent.retain_frequency
    return {
        "name": name,
        "about": _about(one),
        "contexts": one.contexts,
        "corpora": cards.corpora,
        "tokens": cards.tokens,
        "forget": _coded(frequencies[0]),
        "retain": _coded(frequencies[1]),
        "chosen": list(chosen),
        "pieces": cards.pieces,
        "text": cards.text,
        "cards": [
            {
                **{key: value for key, value in vars(card).items() if key not in ("snippets", "favourites")},
                "favourites": [(cards.pieces[piece], count) for piece, count in card.favourites],
                # without names: there are ten thousand of them
                "snippets": [tuple(vars(snippet).values()) for snippet in card.snippets],
                **(vars(one.votes[card.latent]) if card.latent in one.votes else {}),
                **(_statistics(chosen[card.latent]) if card.latent in chosen else {"score": None, "content": None}),
            }
            for card in cards.cards
        ],
    }


def _statistics(latent: "SelectedLatent") -> Mapping[str, Any]:
    told = {spaced(name): number(getattr(latent, name)) for name in ("score", "ratio", "diff", "act_ratio")}
    shares = {f"firings on {spaced(kind)}": share(value, 1) for kind, value in latent.marks.items()}
    score = latent.score if math.isfinite(latent.score) else None  # JSON has no infinity
    return {"score": score, "content": latent.marks.get("content"), "stats": told | shares}


def _about(one: Latents) -> str:
    selection, cards = one.selection, one.cards
    removed = ", ".join(f"{spaced(name)} {count:,}" for name, count in selection.filtered.items() if count)
    told = f"{len(selection.latents):,} of {selection.candidates:,} valid latents are chosen, by {selection.method}, "
    told += spaced(selection.order) + (f"; filters removed: {removed}. " if removed else ". ")
    if not any(cards.tokens):
        return told + "The activations they were chosen from are gone, so only the chosen ones are shown."
    whole = {selection.forget_corpus.name: selection.forget_corpus.tokens}
    whole |= {name: corpus.tokens for name, corpus in selection.retain_corpora.items()}
    seen = [
        f"{'all' if count == whole.get(name) else f'{count:,} of'} {whole.get(name, count):,} tokens of {name}"
        for name, count in zip(cards.corpora, cards.tokens, strict=True)
    ]
    return f"{told}Cards and points are of {', '.join(seen)}; the frequencies of chosen latents are of all tokens."


def _coded(frequencies: np.ndarray) -> str:
    """16 bits a latent, little end first: 0 never, 65535 unknown, between them the logarithm."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.clip(1 + np.log10(frequencies) / DECADES, 0, 1)
    codes = np.where(frequencies > 0, 1 + np.round(STEPS * logs), 0)
    codes[np.isnan(frequencies)] = UNKNOWN
    return base64.b64encode(codes.astype("<u2").tobytes()).decode()
