"""The pictures of a run, from plain data to image bytes that are the same every time.

What a colour says, a marker or a position says too.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sae_forge.results.measure import PART, Measure
from sae_forge.results.pooled import Pooled, TradeOff, headline, trade_offs
from sae_forge.results.report import Report
from sae_forge.results.words import capital
from sae_forge.show import canvas
from sae_forge.show.canvas import BLUE, FOREST, GREEN, GREY, INDIGO, ORANGE, PURPLE, SKY, VERMILLION, WINE, Kind
from sae_forge.statistics.estimate import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_OWN = (VERMILLION, GREEN, PURPLE, ORANGE, INDIGO, WINE, FOREST)
_FORGET_BOUNDS = ("min_freq", "max_freq")
_RETAIN_BOUNDS = ("max_neutral_freq", "retain_threshold")
_PLATE = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1}


def frequency_scatter(
    forget: Sequence[float] | np.ndarray,
    retain: Sequence[float] | np.ndarray,
    chosen: Sequence[int],
    *,
    thresholds: Mapping[str, Any],
    kind: Kind = "png",
) -> bytes:
    """How often each latent fires on the two corpora, both axes logarithmic, the chosen latents marked.

    Latents that never fire on a corpus lie on the axis marked 0.

    Args:
        forget: Frequency of every latent, a share of tokens.
        thresholds: Settings of the selection; those that bound a frequency are drawn.
    """
    x, y = np.asarray(forget, dtype=float), np.asarray(retain, dtype=float)
    picked = np.zeros(len(x), dtype=bool)
    picked[list(chosen)] = True
    with canvas.figure(6.2, 5.2) as (figure, write):
        axes = figure.add_subplot()
        floor = _log_with_zero(axes, x, y)
        shown_x, shown_y = np.maximum(x, floor), np.maximum(y, floor)
        alive = (x > 0) | (y > 0)
        others = alive & ~picked
        # rasterized: in an SVG every latent would be a path of its own
        axes.scatter(
            shown_x[others], shown_y[others], s=7, color=GREY, alpha=0.45, linewidths=0, rasterized=True,
            label=f"other latents ({int(others.sum()):,}; {int((~alive).sum()):,} never fire)",
        )  # fmt: skip
        axes.scatter(
            shown_x[picked], shown_y[picked], s=26, color=VERMILLION, edgecolors="white", linewidths=0.6,
            label=f"chosen ({int(picked.sum()):,})", zorder=3,
        )  # fmt: skip
        axes.plot([floor, 1], [floor, 1], color="#999999", linewidth=0.9, linestyle=":", zorder=1)
        for name in (name for name in (*_FORGET_BOUNDS, *_RETAIN_BOUNDS) if name in thresholds):
            _draw_threshold(axes, name, thresholds[name])
        axes.set_xlabel("forget frequency (share of tokens)")
        axes.set_ylabel("retain frequency (share of tokens)")
        axes.set_title("Latents by how often they fire")
        _legend_below(figure, axes)
        return write(kind)


def domain_bars(report: Report, measure: Measure, *, kind: Kind = "png") -> bytes:
    """One measure in every domain under every method, with 95% intervals, and the line of guessing if it has one.

    Of a sweep it shows the first setting of each method. Seeds of a control are one bar: their mean, with an interval
    that spans all of theirs.
    """
    shown, bars = report.domain_names, headline(report)
    with canvas.figure(max(6.2, 1.6 + 0.24 * len(bars) * len(shown)), 4.2) as (figure, write):
        axes = figure.add_subplot()
        width = 0.82 / max(len(bars), 1)
        for number, bar in enumerate(bars):
            # bars of one domain stand side by side, their middle over its tick
            estimates = [(place, bar.domain(domain, measure.name)) for place, domain in enumerate(shown)]
            known = [(place + (number - (len(bars) - 1) / 2) * width, entry) for place, entry in estimates if entry]
            axes.bar(
                [place for place, _ in known], [entry.value for _, entry in known], width * 0.92,
                yerr=_reach([entry for _, entry in known]), color=_colour(bar, number), label=bar.label,
                error_kw={"elinewidth": 1, "capsize": 2, "ecolor": "#222222"},
            )  # fmt: skip
        if measure.chance is not None:
            axes.axhline(
                measure.chance, color="black", linewidth=1, linestyle="--", label=f"guessing ({measure.chance:g})"
            )
        axes.set_xticks(range(len(shown)), [f"{domain}\n({report.domains[domain].role})" for domain in shown])
        axes.grid(visible=False, axis="x")
        axes.set_ylabel(measure.unit or measure.words)
        axes.set_title(f"{capital(measure.words)} by domain, 95% intervals")
        _legend_below(figure, axes)
        return write(kind)


def parts(report: Report, heading: str, *, kind: Kind = "png") -> bytes:
    """What the answers under every method were judged to be, as parts of a whole; seeds of a control are one bar."""
    bars = headline(report)
    every = [one for one in report.groups[heading].measures if is_part(one)]
    shade = (BLUE, ORANGE, SKY, GREY, GREEN, PURPLE, VERMILLION)
    with canvas.figure(7.4, 1.4 + 0.34 * len(bars)) as (figure, write):
        axes = figure.add_subplot()
        left = np.zeros(len(bars))
        for number, measure in enumerate(every):
            known = [bar.group(heading, measure.name) for bar in bars]
            width = np.array([0.0 if one is None else one.value for one in known])
            axes.barh(
                range(len(bars)), width, 0.7, left=left, label=measure.words, color=shade[number % len(shade)],
                hatch="/" * (number // len(shade)) or None, edgecolor="white", linewidth=0.6,
            )  # fmt: skip
            left += width
        axes.set_yticks(range(len(bars)), [bar.label for bar in bars], fontsize=8)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlim(0, 1)
        axes.set_xlabel("share of the answers that were judged")
        axes.set_title(report.groups[heading].title)
        _legend_below(figure, axes)
        return write(kind)


def is_part(measure: Measure) -> bool:
    """Whether it is one of several that add up to one, of all answers to all prompts."""
    return measure.unit == PART and measure.shown == "always" and "/" not in measure.name


def trade_off(report: Report, measure: Measure, *, kind: Kind = "png") -> bytes:
    """Forgetting against the worst damage elsewhere, a point for each method and setting, with 95% intervals.

    Utility is the lowest value among neighbour and retain domains, with that domain's own interval: a mean would let
    one ruined domain hide among intact ones. Settings that differ only in how rough they are are joined by a line.
    """
    with canvas.figure(6.2, 4.8) as (figure, write):
        axes = figure.add_subplot()
        _guessing(axes, measure)
        for number, (words, points) in enumerate(_families(trade_offs(report, measure.name)).items()):
            _draw_family(axes, words, points, _colour(points[0].pooled, number))
        axes.set_xlabel(f"{measure.words} on what is forgotten")
        axes.set_ylabel(f"lowest {measure.words} on what is kept")
        axes.set_title("The trade-off, 95% intervals (small numbers: how rough)")
        _legend_below(figure, axes)
        return write(kind)


def method_map(report: Report, measure: Measure, *, kind: Kind = "png") -> bytes:
    """Every method at one setting: forgetting against the worst damage elsewhere, by name, over its random controls.

    Utility is that of :func:`trade_off`. Colour and marker say what was done to the model.
    """
    points = trade_offs(report, measure.name)
    with canvas.figure(7.4, 5.4) as (figure, write):
        axes = figure.add_subplot()
        _guessing(axes, measure)
        for what, (colour, marker, size) in _WHATS.items():
            alike = [point for point in points if _what(point.pooled) == what]
            x, y = [point.forget.value for point in alike], [point.utility.value for point in alike]
            if what != "random control":
                axes.errorbar(
                    x, y, xerr=_reach([point.forget for point in alike]),
                    yerr=_reach([point.utility for point in alike]),
                    fmt="none", ecolor=colour, elinewidth=0.7, alpha=0.4,
                )  # fmt: skip
            axes.plot(
                x, y, linestyle="", marker=marker, color=colour, markersize=size, markeredgecolor="white", label=what
            )
        axes.set_xlabel(f"{measure.words} on what is forgotten (test half)")
        axes.set_ylabel(f"lowest {measure.words} on what is kept")
        axes.set_title("Every method at the setting it was tuned to, 95% intervals")
        _legend_below(figure, axes)
        figure.draw_without_rendering()  # places of names are in pixels, which the layout settles only now
        own = ("edit of activations", "retrained weights")
        _name_points(axes, [point for point in points if _what(point.pooled) in own])
        return write(kind)


_WHATS = {
    "random control": (SKY, "D", 4),
    "edit of activations": (VERMILLION, "o", 7),
    "retrained weights": (BLUE, "s", 7),
    "the model as it is": (GREY, "*", 13),
}
"""Colour, marker and its size by what was done to the model."""


def _what(one: Pooled) -> str:
    kinds = {"baseline": "the model as it is", "weights": "retrained weights", "hook": "edit of activations"}
    return "random control" if one.is_control else kinds[one.rows[0].kind]


def _name_points(axes: "Axes", points: Sequence[TradeOff]) -> None:
    """Write each name beside its point, moved down until it covers no other name."""
    taken: list[tuple[float, float, float]] = []
    for point in sorted(points, key=lambda point: (-point.utility.value, point.forget.value)):
        name = point.pooled.name
        x, y = axes.transData.transform((point.forget.value, point.utility.value)) * 72 / axes.figure.dpi
        # in points, at 7.5 pt: about 4.4 a letter
        width, down = 4.4 * len(name), 3.0
        while any(abs(y - down - other) < 9 and x < right and left < x + width for left, right, other in taken):
            down += 3
        taken.append((x, x + width, y - down))
        axes.annotate(
            name, (point.forget.value, point.utility.value), xytext=(6, -down), textcoords="offset points",
            fontsize=7.5,
        )  # fmt: skip


def training_curve(steps: Sequence[Mapping[str, Any]], *, kind: Kind = "png") -> bytes:
    """FVU and the share of dead latents over training.

    Args:
        steps: Records with ``step`` and, where they were measured, ``fvu`` and ``dead_share``.
    """
    with canvas.figure(6.2, 4.6) as (figure, write):
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
        for axes, name, colour, label in (
            (upper, "fvu", BLUE, "variance unexplained"),
            (lower, "dead_share", VERMILLION, "dead latents"),
        ):
            known = [(entry["step"], entry[name]) for entry in steps if entry.get(name) is not None]
            axes.plot(*zip(*known, strict=True) if known else ([], []), color=colour, linewidth=1.4)
            axes.set_ylabel(label)
        if any(entry.get("fvu") for entry in steps):
            upper.set_yscale("log")
            upper.yaxis.set_major_formatter(lambda fvu, _: f"{fvu:g}")
        lower.set_ylim(bottom=0)
        lower.yaxis.set_major_formatter(lambda share, _: f"{share:.3g}")
        lower.set_xlabel("optimizer step")
        upper.set_title("Training of the SAE")
        figure.align_ylabels()
        return write(kind)


def _draw_family(axes: "Axes", words: str, points: Sequence[TradeOff], colour: str) -> None:
    """Points of one method, joined where only how rough it was differs, which small numbers say."""
    one, row = points[0].pooled, points[0].pooled.rows[0]
    baseline = row.kind == "baseline"
    marker = "*" if baseline else "D" if row.is_control else "s" if row.at_rest else "o" if row.kind == "hook" else "^"
    x, y = [point.forget.value for point in points], [point.utility.value for point in points]
    axes.errorbar(
        x, y, xerr=_reach([point.forget for point in points]), yerr=_reach([point.utility for point in points]),
        fmt="none", ecolor=colour, elinewidth=0.8, alpha=0.55,
    )  # fmt: skip
    axes.plot(
        x, y, color=colour, marker=marker, markersize=12 if baseline else 6.5, markeredgecolor="white",
        linestyle="" if one.is_control else "-", linewidth=1.4, label=words, zorder=5 if baseline else 3,
    )  # fmt: skip
    for point in () if one.is_control else points:
        if (strength := point.pooled.strength) is not None:
            axes.annotate(
                f"{strength:g}", (point.forget.value, point.utility.value), xytext=(4, -11),
                textcoords="offset points", fontsize=7.5, color=colour,
            )  # fmt: skip


def _families(points: Sequence[TradeOff]) -> dict[str, list[TradeOff]]:
    """Points by method and all settings but how rough it was, in that order; controls by their kind."""
    # in the order of their strength, so that the line which joins them does not run back and forth
    families: dict[str, list[TradeOff]] = {}
    for point in points:
        families.setdefault(point.pooled.family, []).append(point)
    return {
        words: sorted(alike, key=lambda point: -(point.pooled.strength or 0.0)) for words, alike in families.items()
    }


def _colour(one: Pooled, number: int) -> str:
    """Grey the model as it is, blue what lays latents to rest, sky a random control; others by their number."""
    row = one.rows[0]
    if row.kind == "baseline":
        return GREY
    return SKY if row.is_control else BLUE if row.at_rest else _OWN[(number - 1) % len(_OWN)]


def _guessing(axes: "Axes", measure: Measure) -> None:
    if measure.chance is not None:
        words = f"guessing ({measure.chance:g})"
        axes.axvline(measure.chance, color="black", linewidth=1, linestyle="--", label=words)


def _reach(estimates: Sequence[Estimate]) -> list[list[float]]:
    """Distances from the values to both ends of their intervals, as error bars want them."""
    # a bootstrap's percentiles may lie on one side of the value, and matplotlib refuses a negative length
    return [
        [max(entry.value - entry.low, 0.0) for entry in estimates],
        [max(entry.high - entry.value, 0.0) for entry in estimates],
    ]


def _log_with_zero(axes: "Axes", x: np.ndarray, y: np.ndarray) -> float:
    """Make both axes logarithmic with a tick called 0 below the smallest frequency, and say where it lies."""
    positive = np.concatenate([x[x > 0], y[y > 0]])
    least = float(positive.min()) if len(positive) else 1e-6
    first = int(np.floor(np.log10(least)))
    # half a decade below the smallest: the place of what never fires, which a logarithm has none for
    floor = 10.0 ** (first - 0.5)
    axes.set_xscale("log")
    axes.set_yscale("log")
    ticks = [floor, *(10.0**power for power in range(first, 1))]
    labels = ["0", *(f"$10^{{{power}}}$" if power else "1" for power in range(first, 1))]
    for axis, limit in ((axes.xaxis, axes.set_xlim), (axes.yaxis, axes.set_ylim)):
        axis.set_ticks(ticks, labels)
        axis.set_ticks([], minor=True)
        limit(floor * 0.8, 1.2)
    return floor


def _draw_threshold(axes: "Axes", name: str, value: float) -> None:
    if name in _FORGET_BOUNDS:
        axes.axvline(value, color=BLUE, linewidth=1, linestyle="--", zorder=2)
        axes.annotate(
            f"{name} {value:g}", (value, 1), xycoords=("data", "axes fraction"), xytext=(-3, -4),
            textcoords="offset points", rotation=90, ha="right", va="top", fontsize=7.5, color=BLUE, bbox=_PLATE,
        )  # fmt: skip
    else:
        axes.axhline(value, color=BLUE, linewidth=1, linestyle="--", zorder=2)
        axes.annotate(
            f"{name} {value:g}", (0, value), xycoords=("axes fraction", "data"), xytext=(4, 3),
            textcoords="offset points", fontsize=7.5, color=BLUE, bbox=_PLATE,
        )  # fmt: skip


def _legend_below(figure: "Figure", axes: "Axes") -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(3, max(len(labels), 1)))
