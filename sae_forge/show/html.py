"""One HTML page about a run: what may be claimed, the numbers with their controls, the latents, the pictures.

It is one file with nothing fetched from elsewhere, readable in light and dark, by keyboard and by screen reader. Every
text is escaped: snippets come from corpora, and a corpus may hold anything.
"""

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from sae_forge.results.claims import headlines
from sae_forge.results.estimates import Measurement, Record, domains, label, measurements, methods
from sae_forge.show.style import CSS
from sae_forge.store import files
from sae_forge.store.seal import sealed

UNMEASURED = ("No eval report is here, so nothing can be claimed about forgetting or side effects.",)
MAX_SNIPPETS = 3
"""Snippets shown for each latent; the selection file holds the rest."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """What one hook point's run has to show; what is missing is left out of the page."""

    title: str
    """Hook point or SAE this is about."""
    train: Record | None = None
    """Metrics of ``train``."""
    selection: Record | None = None
    """A selection as its file holds it."""
    eval: Record | None = None
    """Metrics of ``eval``."""
    plots: Mapping[str, bytes] = field(default_factory=dict)
    """PNG images by the sentence that says what they show."""
    settings: Mapping[str, Record] = field(default_factory=dict)
    """Settings by the verb they were given to."""


def write_page(path: Path, model: str, sections: Sequence[Section]) -> None:
    """Publish the page as one file."""
    files.publish_bytes(path, sealed(page(model, sections).encode()))


def page(model: str, sections: Sequence[Section]) -> str:
    """The whole page, the same bytes for the same data."""
    title = f"Unlearning report: {model}"
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
    yield '<section class="claims" aria-label="What may be claimed">'
    first, rest = headlines(section.eval) if section.eval else (list(UNMEASURED), [])
    yield from map(_sentence, first)
    if rest:
        yield f"<details><summary>Method by method</summary>{''.join(map(_sentence, rest))}</details>"
    yield "</section>"
    if section.eval:
        yield from _measured(section.eval)
    for caption, image in section.plots.items():
        yield _figure(caption, image)
    if section.selection:
        yield from _selection(section.selection)
    if section.train:
        yield "<h3>The SAE</h3>"
        yield _pairs({name.replace("_", " "): _number(value) for name, value in section.train.items()})
    for verb, settings in section.settings.items():
        yield f"<details><summary>Settings of {escape(verb)}</summary>{_pairs(settings)}</details>"


def _sentence(text: str) -> str:
    """A claim; one that is indented belongs to the one above it."""
    return f"<p{' class=under' if text.startswith(' ') else ''}>{escape(text.strip())}</p>"


def _measured(metrics: Record) -> Iterable[str]:
    shown = domains(metrics)
    heads = [f"{name} ({metrics['domains'][name]['role']}, {metrics['domains'][name]['items']})" for name in shown]
    controls = [entry for entry in measurements(metrics) if entry.name == "random"]
    for group, whose in ((methods(metrics), ""), (controls, "Random controls: ")):
        for measure, words in (("accuracy", "question accuracy"), ("logprob", "log-probability of the answer, nats")):
            rows = [(entry.label, *(_estimate(entry.domain(name, measure)) for name in shown)) for entry in group]
            if any(any(row[1:]) for row in rows):
                yield _table(_capital(whose + words), ("method", *heads), rows)
        if columns := _side_columns(group):
            rows = [(entry.label, *(show(entry) for show in columns.values())) for entry in group]
            yield _table(_capital(f"{whose}loss, generated text, and how much was edited"), ("method", *columns), rows)
    if "sweep" in metrics:
        yield _swept(metrics["sweep"])
    if "selections" in metrics:
        yield from _compared(metrics["selections"])
    for reason in metrics.get("left_out", {}).values():
        yield f"<p>Not measured: {escape(reason)}.</p>"


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]


def _swept(sweep: Record) -> str:
    """What the sweep tried and chose, a row a method."""
    heads = (
        "method", "settings tried", "chosen", "by rule", "forget", "retain", "lowest forget at 99 % of retain",
        "lowest forget at one point lost", "lowest forget at 99 % of retain and neighbours", "SAEBench score (dev)",
        "hypervolume", "best alignment",
    )  # fmt: skip
    rows = [
        (
            name,
            str(one["configurations"]),
            label("", one["chosen"]["settings"]),
            one["rule"].replace("_", " ") + (f" ({one['end']})" if one["end"] else ""),
            _number(one["chosen"]["forget"]),
            _number(one["chosen"]["utility"]),
            *(_lowest(one["best_at"], floor) for floor in ("utility_99", "utility_1pt", "neighbours_99")),
            *(_number(one[measure]) for measure in ("saebench_score", "hypervolume", "best_alignment")),
        )
        for name, one in sweep["methods"].items()
    ]
    return _table("The sweep, on the dev half: what was tried and what was chosen", heads, rows)


def _lowest(best_at: Record, floor: str) -> str:
    if floor not in best_at:
        return ""
    return "none" if best_at[floor] is None else _number(best_at[floor]["forget"])


def _compared(selections: Record) -> Iterable[str]:
    """Every selection under the same edit: what its latents are like, and what editing them changed."""
    changed = ("forget_accuracy", "neighbour_accuracy", "retain_accuracy", "retain_loss")
    heads = ("selection", "latents", "AUROC", "mean correlation", *(name.replace("_", " ") for name in changed))
    rows = [
        (
            row["selection"],
            str(row["latents"]),
            *("" if row[name] is None else _number(row[name]) for name in ("auroc", "mean_correlation", *changed)),
        )
        for row in selections["rows"]
    ]
    yield _table("Every selection under the same edit: changes against the model as it is", heads, rows)
    for effect, found in selections["correlation_against"].items():
        rank = "undefined, as one of them does not vary" if found["spearman"] is None else _number(found["spearman"])
        yield (
            f"<p>Over {found['selections']} selections, the rank correlation of the latents' mean correlation with the "
            f"size of the change in {escape(effect.replace('_', ' '))} is {rank}.</p>"
        )


def _side_columns(found: Sequence[Measurement]) -> dict[str, Any]:
    """Column titles, each with what it shows of a method: losses, generation, MUSE, share of tokens edited."""
    columns: dict[str, Any] = {}
    for group, suffix in (("loss", "loss, nats"), ("generation", ""), ("muse", "(MUSE, x 100)")):
        for name in dict.fromkeys(
            name for entry in found for record in entry.entries for name in record.get(group, {})
        ):
            columns[f"{name.replace('_', '-')} {suffix}".strip()] = lambda entry, group=group, name=name: _estimate(
                entry.group(group, name)
            )
    if any("alignment" in record.get("change", {}) for entry in found for record in entry.entries):
        columns["alignment"] = lambda entry: _estimate(entry.group("change", "alignment"))
    for role in dict.fromkeys(role for entry in found for r in entry.entries for role in r.get("edited_share", {})):
        columns[f"{role} tokens edited"] = lambda entry, role=role: _share(entry.edited_share(role))
    return columns


def _selection(selection: Record) -> Iterable[str]:
    latents = selection["latents"]
    removed = ", ".join(f"{name} {count:,}" for name, count in selection["filtered"].items() if count)
    yield "<h3>The latents</h3>"
    yield (
        f"<p>{len(latents):,} of {selection['candidates']:,} valid latents, by {escape(selection['method'])}."
        + (f" Filters removed: {escape(removed)}." if removed else "")
        + "</p>"
    )
    rows = [
        (
            str(latent["index"]),
            _number(latent["score"]),
            f"{latent['forget_frequency']:.3%}",
            f"{latent['retain_frequency']:.3%}",
            _number(latent["ratio"]),
            tuple(snippet["text"] for snippet in latent["snippets"][:MAX_SNIPPETS]),
        )
        for latent in latents
    ]
    heads = ("latent", "score", "forget frequency", "retain frequency", "ratio", "fires most on «this token»")
    yield _table("Chosen latents, best first", heads, rows, scroll=True)


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
    if isinstance(cell, str):
        return escape(cell)
    return "".join(f'<div class="snippet">{_marked(text)}</div>' for text in cell)


def _marked(text: str) -> str:
    """A snippet whose «peak» stands out; more marks than the one pair are the corpus's own."""
    before, opened, rest = text.partition("«")
    peak, closed, after = rest.partition("»")
    if not (opened and closed):
        return escape(text)
    return f"{escape(before)}<mark>{escape(peak)}</mark>{escape(after)}"


def _pairs(values: Record) -> str:
    items = "".join(
        f"<div><dt>{escape(str(name))}</dt><dd>{escape(_plain(value))}</dd></div>" for name, value in values.items()
    )
    return f"<dl>{items}</dl>"


def _figure(caption: str, image: bytes) -> str:
    data = base64.b64encode(image).decode()
    words = escape(caption)
    return f'<figure><img src="data:image/png;base64,{data}" alt="{words}"><figcaption>{words}</figcaption></figure>'


def _estimate(estimate: Record | None) -> str:
    if estimate is None:
        return ""
    return f"{_number(estimate['value'])} [{_number(estimate['low'])}, {_number(estimate['high'])}]"


def _share(share: float | None) -> str:
    return "" if share is None else f"{share:.2%}"


def _number(value: Any) -> str:
    if isinstance(value, Mapping) and {"value", "low", "high"} <= set(value):
        return _estimate(value)
    return f"{value:.3g}" if isinstance(value, float) else _plain(value)


def _plain(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return "unset" if value is None else str(value)
