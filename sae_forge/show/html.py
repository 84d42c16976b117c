"""One HTML page about a run: what may be claimed, the numbers with their controls, the latents, the pictures.

It is one file with nothing fetched from elsewhere, readable in light and dark, by keyboard and by screen reader. Every
text is escaped: snippets come from corpora, and a corpus may hold anything.
"""

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_forge.results.claims import headlines
from sae_forge.results.report import Report
from sae_forge.results.sheets import notes, sheets
from sae_forge.results.verdict import QUESTIONS, Verdict, verdicts
from sae_forge.results.words import number, share, spaced
from sae_forge.show.style import CSS
from sae_forge.store import files
from sae_forge.store.seal import sealed

if TYPE_CHECKING:  # it loads torch
    from sae_forge.features.selection import Selection

UNMEASURED = ("No eval report is here, so nothing can be claimed about forgetting or side effects.",)
MAX_SNIPPETS = 3
"""Snippets shown for each latent; the selection file holds the rest."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """What one hook point's run has to show; what is missing is left out of the page."""

    title: str
    """Hook point or SAE this is about."""
    train: Mapping[str, Any] | None = None
    """Metrics of ``train``."""
    selection: "Selection | None" = None
    report: Report | None = None
    pictures: Mapping[str, bytes] = field(default_factory=dict)
    """PNG images by the sentence that says what they show."""
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Settings by the verb they were given to."""


def write_page(path: Path, model: str, sections: Sequence[Section]) -> None:
    """Publish the page as one file."""
    files.publish_bytes(path, sealed(page(model, sections).encode()))


def page(model: str, sections: Sequence[Section]) -> str:
    """The whole page, the same bytes for the same data."""
    title = f"Unlearning report: {model}" if model else "Unlearning report"
    body = [
        f"<h1>{escape(title)}</h1>",
        *(part for section in sections for part in _section(section, len(sections) > 1)),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n<footer>Made by sae_forge. Intervals are 95 %; seeds of a control are pooled: mean value, widest interval."
        "</footer>\n</main>\n</body>\n</html>\n"
    )


def _section(section: Section, several: bool) -> Iterable[str]:
    if several:
        yield f"<h2>{escape(section.title)}</h2>"
    if section.report and (told := verdicts(section.report)):
        yield _verdict(told)
    yield '<section class="claims" aria-label="What may be claimed">'
    first, rest = headlines(section.report) if section.report else (list(UNMEASURED), [])
    yield from map(_sentence, first)
    if rest:
        yield f"<details><summary>Method by method</summary>{''.join(map(_sentence, rest))}</details>"
    yield "</section>"
    if section.report:
        yield from (_table(sheet.title, sheet.columns, sheet.rows) for sheet in sheets(section.report))
        yield from map(_sentence, notes(section.report))
    for caption, image in section.pictures.items():
        # within the page, which must show them wherever it is sent
        data, words = base64.b64encode(image).decode(), escape(caption)
        yield (
            f'<figure><img src="data:image/png;base64,{data}" alt="{words}"><figcaption>{words}</figcaption></figure>'
        )
    if section.selection:
        yield from _selection(section.selection)
    if section.train:
        yield "<h3>The SAE</h3>"
        yield _pairs({spaced(name): number(value) for name, value in section.train.items()})
    for verb, settings in section.settings.items():
        yield f"<details><summary>Settings of {escape(verb)}</summary>{_pairs(settings)}</details>"


def _verdict(told: Sequence[Verdict]) -> str:
    """The questions one asks first, and below each mark the numbers it stands on."""
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in ("method", *QUESTIONS))
    lines = []
    for one in told:
        cells = "".join(
            f'<td><div class="mark {answer.mark.replace(" ", "-")}">{escape(str(answer))}</div>'
            f'<div class="snippet">{escape(answer.words)}</div></td>'
            for answer in one.answers
        )
        lines.append(f'<tr><th scope="row">{escape(one.title)}</th>{cells}</tr>')
    return (
        '<div class="table verdict" role="region" aria-label="The verdict" tabindex="0"><table>'
        "<caption>The verdict, as far as the intervals allow one</caption>"
        f"<thead><tr>{heads}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
        "</div>"
    )


def _sentence(text: str) -> str:
    """A claim or a note; one that is indented belongs to the one above it."""
    return f"<p{' class=under' if text.startswith(' ') else ''}>{escape(text.strip())}</p>"


def _selection(selection: "Selection") -> Iterable[str]:
    removed = ", ".join(f"{name} {count:,}" for name, count in selection.filtered.items() if count)
    yield "<h3>The latents</h3>"
    yield (
        f"<p>{len(selection.latents):,} of {selection.candidates:,} valid latents, by {escape(selection.method)}, "
        f"{selection.order}." + (f" Filters removed: {escape(removed)}." if removed else "") + "</p>"
    )
    rows = [
        (
            str(latent.index),
            number(latent.score),
            share(latent.forget_frequency, 3),
            share(latent.retain_frequency, 3),
            number(latent.ratio),
            *((share(latent.marks["content"]), share(latent.marks["unseen"])) if latent.marks else ("", "")),
            tuple(snippet.text for snippet in latent.snippets[:MAX_SNIPPETS]),
        )
        for latent in selection.latents
    ]
    heads = (
        "latent", "score", "forget frequency", "retain frequency", "ratio", "on content words", "on words retain lacks",
        "fires most on «this token»",
    )  # fmt: skip
    yield _table(f"Chosen latents, {selection.order}", heads, rows, scroll=True)


def _table(
    caption: str, heads: Sequence[str], rows: Iterable[Sequence[str | Sequence[str]]], *, scroll: bool = False
) -> str:
    """A table with row and column headers that a screen reader can announce."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    lines = []
    for row in rows:
        cells = "".join(f"<td>{_cell(cell)}</td>" for cell in row[1:])
        lines.append(f'<tr><th scope="row">{_cell(row[0])}</th>{cells}</tr>')
    region = f'role="region" aria-label="{escape(caption)}" tabindex="0"'
    return (
        f'<div class="table{" tall" if scroll else ""}" {region}><table><caption>{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _cell(cell: str | Sequence[str]) -> str:
    """A text, or snippets whose «peak» stands out."""
    if isinstance(cell, str):
        return escape(cell)
    snippets = []
    for text in cell:
        # the first pair of marks is ours, as snippets are written with one; others are the corpus's own
        before, opened, rest = text.partition("«")
        peak, closed, after = rest.partition("»")
        marked = f"{escape(before)}<mark>{escape(peak)}</mark>{escape(after)}" if opened and closed else escape(text)
        snippets.append(f'<div class="snippet">{marked}</div>')
    return "".join(snippets)


def _pairs(values: Mapping[str, Any]) -> str:
    """Names and values; a number stands as it was given."""
    plain = {str(name): str(value) if isinstance(value, float) else number(value) for name, value in values.items()}
    items = (f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in plain.items())
    return f"<dl>{''.join(items)}</dl>"
