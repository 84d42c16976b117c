"""The pictures of a sweep: every setting that was tried, a panel a method."""

from collections.abc import Sequence

from sae_forge.results.report import Point, Report, TunedMethod
from sae_forge.results.words import capital, spaced
from sae_forge.show import canvas
from sae_forge.show.canvas import GREY, SKY, VERMILLION, Kind


def sweep_panels(report: Report, *, kind: Kind = "png") -> bytes:
    """Every setting that was tried on the dev half, a panel a method, over those of all methods in grey.

    A ring marks the chosen setting, a line joins the settings that no other of the method beats, and the dotted line is
    99% of the utility of the model as it is, which the star marks.
    """
    swept = report.sweep
    assert swept is not None
    methods = _methods(report)
    tried = [point for one in methods.values() for point in one.points]
    columns = min(4, len(methods))
    rows = -(-len(methods) // columns)  # rounded up
    with canvas.figure(2.3 * columns + 0.4, 1.9 * rows + (0.6 if rows > 1 else 1.3)) as (figure, write):
        panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
        for axes, (name, one) in zip(panels, methods.items(), strict=False):
            # rasterized: in an SVG every panel would hold every point of all
            axes.scatter(*_places(tried), s=6, color="#999999", alpha=0.5, linewidth=0, rasterized=True)
            axes.plot(*_places(one.front), color=VERMILLION, linewidth=1)
            axes.scatter(*_places(one.points), s=14, color=VERMILLION, linewidth=0)
            axes.scatter(*_places([one.chosen]), s=60, facecolor="none", edgecolor="black", linewidth=1.2, zorder=4)
            axes.scatter(*_places([swept.base]), s=60, marker="*", color=GREY, zorder=3)
            axes.axhline(swept.floors["utility_99"], color="black", linewidth=0.8, linestyle=":")
            axes.set_title(name, fontsize=9)
        for axes in panels[len(methods) :]:  # the last row may be longer than what is left
            axes.set_visible(False)
        words = next((one.words for one in report.measures if one.name == swept.measure), swept.measure)
        figure.supxlabel(f"{words} on what is forgotten (dev half)")
        figure.supylabel(f"{words} on what is kept")
        return write(kind)


def latents_and_strength(report: Report, *, kind: Kind = "png") -> bytes:
    """What each setting left of what is to be forgotten, by latents edited and by strength; a panel a method.

    The number in a circle is in percent, or the least and the most of settings that differ in something else; the ring
    marks the chosen one. Methods without both are left out.
    """
    swept = report.sweep
    assert swept is not None
    grids = _grids(report)
    columns = min(3, len(grids))
    rows = -(-len(grids) // columns)
    words = next((one.words for one in report.measures if one.name == swept.measure), swept.measure)
    with canvas.figure(3.1 * columns + 0.4, 2.3 * rows + 0.6) as (figure, write):
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, (name, (rough, points)) in zip(panels, grids.items(), strict=False):
            sizes = sorted({point.settings["num_features"] for point in points})
            alike: dict[tuple[float, int], list[float]] = {}  # those that differ in further settings share a circle
            for point in points:
                place = point.settings[rough], sizes.index(point.settings["num_features"])
                alike.setdefault(place, []).append(point.forget)
                if point == swept.methods[name].chosen:
                    axes.plot(*place, marker="o", markersize=19, color="none", markeredgecolor="black", zorder=4)
            for (x, y), left in alike.items():
                shade = 0.15 + 0.6 * min(max(min(left), 0.0), 1.0)
                axes.plot(x, y, marker="o", markersize=17, color=SKY, alpha=shade, markeredgecolor="none", linestyle="")
                ends = sorted({f"{100 * value:.0f}" for value in (min(left), max(left))}, key=int)
                axes.annotate("–".join(ends), (x, y), ha="center", va="center", fontsize=7 if len(ends) == 1 else 6)
            values = [point.settings[rough] for point in points]
            if all(value > 0 for value in values) or all(value < 0 for value in values):
                axes.set_xscale("symlog", linthresh=min(abs(value) for value in values))
                axes.set_xticks(
                    sorted({min(values), max(values)}), [f"{value:g}" for value in sorted({min(values), max(values)})]
                )
                axes.set_xticks([], minor=True)
            axes.margins(0.2, 0.3)
            axes.set_yticks(range(len(sizes)), [str(size) for size in sizes])
            axes.set_title(f"{name}: {spaced(rough)}", fontsize=9)
        for axes in panels[len(grids) :]:
            axes.set_visible(False)
        figure.supylabel("latents edited")
        figure.suptitle(f"{capital(words)} on what is forgotten, in percent (dev half)", fontsize=10)
        return write(kind)


def has_grids(report: Report) -> bool:
    """Whether a sweep tried several strengths of any method that edits a number of latents."""
    return report.sweep is not None and bool(_grids(report))


def _grids(report: Report) -> dict[str, tuple[str, Sequence[Point]]]:
    """The setting that says how rough a method was, and its points, of each method that edits a number of latents."""
    grids = {}
    for name, one in _methods(report).items():
        known = one.points[0].settings if one.points else {}
        rough = next((key for key in report.rough if isinstance(known.get(key), int | float)), None)
        if rough and "num_features" in known and len({point.settings[rough] for point in one.points}) > 1:
            grids[name] = rough, one.points
    return grids


def _methods(report: Report) -> dict[str, TunedMethod]:
    """What was swept, in the order of the report's rows: a file has them by name."""
    swept = report.sweep.methods if report.sweep else {}
    return {row.name: swept[row.name] for row in report.rows if row.name in swept} | dict(swept)


def _places(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    return [point.forget for point in points], [point.utility for point in points]
