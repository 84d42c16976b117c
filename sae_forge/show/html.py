"""One HTML page about a run: the verdict, the numbers with their controls, the latents, the texts, how it was made.

It is one file that fetches nothing, readable in light and dark, by keyboard and by screen reader, on paper and, but for
the latents and the texts, without its script. ``page/`` holds its template, its look and its script. Every text is
escaped: snippets come from corpora, and a corpus may hold anything.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_forge.results.claims import caveats, headlines
from sae_forge.results.pooled import methods
from sae_forge.results.report import Report
from sae_forge.results.sheets import Sheet, notes, overview, sheets
from sae_forge.results.verdict import QUESTIONS, verdicts
from sae_forge.results.words import capital, interval, number, spaced
from sae_forge.show.explorer import Continued, Latents, data
from sae_forge.store import files
from sae_forge.store.seal import sealed

if TYPE_CHECKING:
    from jinja2 import Template

UNMEASURED = "No eval report is here, so nothing can be claimed about forgetting or side effects."
PARTS = Path(__file__).parent / "page"
FLAG = re.compile(r"(--[a-z]\w*)")


@dataclass(frozen=True, kw_only=True)
class Section:
    """What one SAE has to show; what is missing is left out of the page."""

    title: str
    """Hook point or SAE this is about."""
    train: Mapping[str, Any] | None = None
    """Metrics of ``train``."""
    report: Report | None = None
    pictures: Mapping[str, str] = field(default_factory=dict)
    """SVG images by the sentence that says what they show."""
    latents: Latents | None = None
    texts: Sequence[Continued] = ()
    selections: Sheet | None = None
    """Several selections of this SAE side by side."""
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Settings by the verb they were given to."""
    commands: Sequence[str] = ()
    """What makes all this again."""


def write_page(path: Path, model: str, sections: Sequence[Section], **more: Any) -> None:
    """Publish the page as one file."""
    files.publish_bytes(path, sealed(page(model, sections, **more).encode()))


def page(
    model: str, sections: Sequence[Section], *, facts: Sequence[str] = (), versions: Mapping[str, str] | None = None
) -> str:
    """The whole page, the same bytes for the same data.

    Args:
        facts: What stands below the title: what was to be forgotten, when it was measured.
        versions: Of what it was made with.
    """
    explored = {one.title: one.latents for one in sections if one.latents is not None}
    texts = next((one.texts for one in sections if one.texts), ())
    contents = {
        "compared": ("Side by side", len(sections) > 1),
        "verdict": ("Verdict", True),
        "methods": ("Methods", any(one.report for one in sections)),
        "pictures": ("Pictures", any(one.pictures for one in sections)),
        "latents": ("Latents", bool(explored)),
        "generations": ("What it writes", bool(texts)),
        "made": ("How it was made", True),
    }
    return _template().render(
        title=f"Unlearning report: {model}" if model else "Unlearning report",
        css=(PARTS / "page.css").read_text(),
        script=(PARTS / "page.js").read_text(),
        data=data(explored, texts),
        facts=facts,
        versions=versions or {},
        questions=QUESTIONS,
        contents=[(anchor, name) for anchor, (name, there) in contents.items() if there],
        compared=_compared(sections) if len(sections) > 1 else None,
        sections=[_told(one) for one in sections],
        explorable=bool(explored),
        written=bool(texts),
    )


def _template() -> "Template":
    import jinja2  # which the command line need not load

    folder = jinja2.FileSystemLoader(PARTS)
    environment = jinja2.Environment(loader=folder, autoescape=True, trim_blocks=True)
    environment.filters["flags"] = _unbroken
    return environment.get_template("page.html")


def _unbroken(text: str) -> str:
    """Escaped, with flags that stay on one line: a browser would end it behind their hyphens."""
    from markupsafe import Markup

    flag = Markup('<span class="flag">%s</span>')
    return Markup().join(flag % part if place % 2 else part for place, part in enumerate(FLAG.split(text)))


def _told(one: Section) -> Mapping[str, Any]:
    """A section in finished words."""
    report = one.report
    first, rest = headlines(report) if report else ([], [])
    return {
        "title": one.title,
        "verdicts": verdicts(report) if report else [],
        "caveats": caveats(report) if report else [UNMEASURED],
        "claims": [*first, *rest],
        "overview": _titled(overview(report)) if report else None,
        "sheets": list(sheets(report)) if report else [],
        "notes": list(notes(report)) if report else [],
        "pictures": list(one.pictures.items()),
        "train": _pairs({spaced(name): value for name, value in (one.train or {}).items()}, short=True),
        "selections": one.selections,
        "settings": {verb: _pairs(settings) for verb, settings in one.settings.items()},
        "commands": one.commands,
    }


def _titled(sheet: Sheet) -> Sheet:
    return replace(sheet, title=capital(sheet.title))


def _pairs(values: Mapping[str, Any], *, short: bool = False) -> Mapping[str, str]:
    """Names and values; a number of a setting stands as it was given."""
    return {
        str(name): str(value) if isinstance(value, float) and not short else number(value)
        for name, value in values.items()
    }


def _compared(sections: Sequence[Section]) -> Sheet:
    """Every SAE of the page to a row: how good it is, and the first method measured on it, with its verdict."""
    heads = (
        "SAE",
        "FVU",
        "dead",
        "loss recovered",
        "latents by",
        "method",
        "forget",
        "neighbour",
        "retain",
        *QUESTIONS,
    )
    return Sheet(
        "The SAEs of this run, each with the first method that was measured on it", heads, tuple(map(_row, sections))
    )


def _row(one: Section) -> tuple[str, ...]:
    train = one.train or {}
    quality = [
        number(train[name]) if train.get(name) is not None else "" for name in ("fvu", "dead_share", "ce_recovered")
    ]
    chosen = one.latents.selection.method if one.latents else ""
    told = verdicts(one.report) if one.report else []
    if one.report is None or not told:
        return (one.title, *quality, chosen, "", "", "", "", *("" for _ in QUESTIONS))
    first = next(each for each in methods(one.report) if each.rows[0].title == told[0].title)
    measure = one.report.leading
    roles = [interval(first.role(role, measure.name)) if measure else "" for role in ("forget", "neighbour", "retain")]
    return (one.title, *quality, chosen, first.label, *roles, *map(str, told[0].answers))
