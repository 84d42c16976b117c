"""A page with as many latents as the largest SAEs have, made of nothing but a report that is there and numbers."""

from pathlib import Path

import numpy as np

from sae_forge.features.cards import BARS, Card, Cards, Snippet
from sae_forge.features.selection import Corpus, CorpusStats, SelectedLatent, Selection
from sae_forge.results.report import load_report
from sae_forge.results.sheets import Sheet
from sae_forge.show import gallery
from sae_forge.show.canvas import inline
from sae_forge.show.explorer import Continued, Latents, Voted, Written
from sae_forge.show.html import Section, page

D_SAE, CARDED, CHOSEN = 65_536, 1_200, 200
REPORT = Path(__file__).parents[1] / "results" / "report-0.1.json"
SHOWN, WORDS, TOKENS = 14, 3_000, 60_000


def made_up() -> str:
    """The page: a verdict, tables, pictures, 65,536 latents, and texts side by side."""
    report, edited = load_report(REPORT), Written(" ends here.", ((1, 5, "7"),))
    return page(
        "made-up",
        [
            Section(
                title="blocks.20.hook_resid_post k64",
                train={"fvu": 0.2, "dead_share": 0.01, "ce_recovered": 0.98},
                report=report,
                pictures={one.caption: inline(one.draw(report, "svg")) for one in gallery.of_report(report)},
                latents=_latents(np.random.default_rng(0)),
                texts=[
                    Continued(f"Prompt {number}", {"baseline": Written(" goes on."), "scale": edited})
                    for number in range(8)
                ],
                selections=Sheet("Selections", ("file", "chosen"), (("a", "20"), ("b", "1,200"), ("c", "900"))),
                commands=["sae-forge eval --model made-up"],
            )
        ],
        facts=["forget: made up"],
        versions={"sae_forge": "0"},
    )  # fmt: skip


def _latents(rng: np.random.Generator) -> Latents:
    frequencies = 10 ** rng.uniform(-5, -1, (2, D_SAE))
    frequencies[:, : D_SAE // 20] = 0  # dead ones
    alive = rng.permutation(np.arange(D_SAE // 20, D_SAE))[:CARDED]
    cards = tuple(_card(int(latent), place, rng) for place, latent in enumerate(alive))
    pieces = tuple(f" word{number}" for number in range(WORDS))
    text = tuple(rng.integers(0, WORDS - 1, TOKENS).tolist())  # the last word is in no text
    names = ("saga", "wiki")
    stats = CorpusStats(100, 0.1, 0.2, 9.0)
    known = [(card.latent, *frequencies[:, card.latent].tolist()) for card in cards[:CHOSEN]]
    chosen = tuple(
        SelectedLatent(latent, 1.0 - place / CHOSEN, 5.0, 0.1, 2.0, forget, retain, stats, {"wiki": stats}, ())
        for place, (latent, forget, retain) in enumerate(known)
    )
    corpus = Corpus("saga", 40_000, "ab", 1)
    selection = Selection(
        "s", "w", D_SAE, "inlp", {}, corpus, {"wiki": corpus}, CHOSEN, 900, {"min_freq": 9}, chosen, {}
    )
    votes = {card.latent: Voted(("up", " over"), ("down",)) for card in cards}
    found = Cards(names, (40_000, 40_000), frequencies, pieces, text, cards)
    return Latents(selection=selection, cards=found, contexts=True, votes=votes)


def _card(latent: int, place: int, rng: np.random.Generator) -> Card:
    snippets = []
    for number in range(SHOWN):
        start, length = int(rng.integers(0, TOKENS - 40)), 33
        fired = tuple(sorted({16, *rng.integers(0, length, 4).tolist()}))
        acts = tuple(round(float(act), 2) for act in rng.uniform(0.1, 9, len(fired)))
        percentile = 100 if number < 5 else (75, 50, 25, 5)[number - 5] if number < 9 else 100
        snippets.append(Snippet(percentile, int(number >= 9), start, length, 16, fired, acts))
    counts = tuple(tuple(rng.integers(0, 50, BARS).tolist()) for _ in range(2))
    own = WORDS - 1 if place == CARDED - 1 else int(rng.integers(0, WORDS - 1))
    return Card(latent, (300, 90), round(float(rng.uniform(5, 10)), 2), 3.0, counts, ((own, 12),), tuple(snippets))
