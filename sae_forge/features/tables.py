"""Selections as rows of finished text: one latent by latent, or several side by side."""

from collections.abc import Mapping

from sae_forge.features.selection import Selection


def table(selection: Selection) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Heads, and a row for each latent in the selection's order, as text; frequencies in percent of tokens."""
    by = selection.settings.get("sort_by", "score")
    also = () if by in ("score", "ratio") else (by,)
    marked = bool(selection.latents and selection.latents[0].marks)
    rows = [
        (
            str(latent.index),
            f"{latent.score:.3g}",
            *(f"{getattr(latent, name):.3g}" for name in also),
            f"{latent.forget_frequency:.3%}",
            f"{latent.retain_frequency:.3%}",
            f"{latent.ratio:.3g}",
            *([f"{latent.marks['content']:.0%}", f"{latent.marks['unseen']:.0%}"] if marked else ()),
            latent.snippets[0].text if latent.snippets else "",
        )
        for latent in selection.latents
    ]
    shares = ("on content words", "on words retain lacks") if marked else ()
    return ("latent", "score", *also, "forget freq", "retain freq", "ratio", *shares, "fires most on"), rows


def comparison(selections: Mapping[str, Selection]) -> list[tuple[str, ...]]:
    """A row of :data:`COMPARED` for each selection, as text; frequencies are means over its latents."""
    first = next(iter(selections.values()))
    return [_compared(selection, first) for selection in selections.values()]


COMPARED = (
    "method", "chosen", "valid", "forget freq", "retain freq", "AUROC", "worst AUROC", "mean |r|", "shared with first",
)  # fmt: skip


def _compared(selection: Selection, first: Selection) -> tuple[str, ...]:
    count = len(selection.latents)
    columns = (
        selection.method,
        f"{count:,}",
        f"{selection.candidates:,}",
        f"{sum(latent.forget_frequency for latent in selection.latents) / count:.3%}",
        f"{sum(latent.retain_frequency for latent in selection.latents) / count:.3%}",
    )
    shared = f"{len(set(selection.indices) & set(first.indices)):,}"
    if selection.analysis is None:
        return (*columns, "", "", "", shared)
    separation = selection.analysis.separation
    correlation = "" if separation.mean_correlation is None else f"{separation.mean_correlation:.3f}"
    return (*columns, f"{separation.auroc:.3f}", f"{min(separation.auroc_by_corpus.values()):.3f}", correlation, shared)
