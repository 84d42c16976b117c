"""The pictures there are: what each is called, what it shows, when there is something to show, and how it is drawn."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from sae_forge.results.measure import Measure
from sae_forge.results.pooled import headline, methods
from sae_forge.results.report import Report
from sae_forge.results.words import capital, with_unit
from sae_forge.show import plots, sweeps
from sae_forge.show.canvas import Kind

MOST_BARS = 8
"""Methods whose bars can be told apart in one picture."""
FEWEST_POINTS = 3
"""The model as it is, an edit and zero ablation: no trade-off yet."""

T = TypeVar("T")


@dataclass(frozen=True)
class Picture(Generic[T]):
    """One kind of picture of a ``T``."""

    name: str
    """Its file's, without the suffix."""
    caption: str
    when: Callable[[T], bool]
    """Whether there is something to show."""
    draw: Callable[[T, Kind], bytes]
    """An image, the same bytes for the same data."""


@dataclass(frozen=True)
class Frequencies:
    """How often every latent fires on two corpora, and which were chosen."""

    forget: np.ndarray
    retain: np.ndarray
    chosen: Sequence[int]
    thresholds: Mapping[str, Any]


Steps = Sequence[Mapping[str, Any]]
"""The lines of a training log."""

METHODS = Picture[Report](
    "methods",
    "Every method on the test half, at the setting that was chosen for it on the dev half.",
    lambda report: report.sweep is not None and report.leading is not None,
    lambda report, kind: plots.method_map(report, _leading(report), kind=kind),
)
SWEEP = Picture[Report](
    "sweep",
    "Every setting of every method on the dev half; the chosen one is ringed.",
    lambda report: report.sweep is not None,
    lambda report, kind: sweeps.sweep_panels(report, kind=kind),
)
STRENGTH = Picture[Report](
    "latents_and_strength",
    "What is left of what is to be forgotten, by how many latents are edited and how roughly; chosen settings ringed.",
    sweeps.has_grids,
    lambda report, kind: sweeps.latents_and_strength(report, kind=kind),
)
TRADE_OFF = Picture[Report](
    "trade_off",
    "Forgetting against what is kept, over the settings that were swept.",
    lambda report: report.sweep is None and report.leading is not None and len(methods(report)) > FEWEST_POINTS,
    lambda report, kind: plots.trade_off(report, _leading(report), kind=kind),
)
FREQUENCIES = Picture[Frequencies](
    "frequencies",
    "Every latent by how often it fires; the chosen ones marked.",
    lambda one: len(one.forget) > 0,
    lambda one, kind: plots.frequency_scatter(one.forget, one.retain, one.chosen, thresholds=one.thresholds, kind=kind),
)
TRAINING = Picture[Steps](
    "training",
    "Training: unexplained variance and dead latents by step.",
    lambda steps: len(steps) > 0,
    lambda steps, kind: plots.training_curve(steps, kind=kind),
)


def of_report(report: Report) -> tuple[Picture[Report], ...]:
    """The pictures a report allows, the bars of each measure first."""
    bars = (
        Picture[Report](
            measure.name,
            f"{capital(with_unit(measure.words, measure.unit))}, by domain, before and after, with 95% intervals.",
            lambda report: len(headline(report)) <= MOST_BARS,
            # measure=measure binds it now: else every picture would be of the last one
            lambda report, kind, measure=measure: plots.domain_bars(report, measure, kind=kind),
        )
        for measure in report.measures
        if measure.shown != "in the file"
    )
    whole = (
        Picture[Report](
            heading,
            f"{task.title}: what they were judged to be, as shares of all that were judged.",
            lambda report, heading=heading: heading in report.groups,
            lambda report, kind, heading=heading: plots.parts(report, heading, kind=kind),
        )
        for heading, task in report.groups.items()
        if sum(map(plots.is_part, task.measures)) > 1
    )
    return tuple(picture for picture in (*bars, *whole, METHODS, TRADE_OFF, STRENGTH, SWEEP) if picture.when(report))


def _leading(report: Report) -> Measure:
    assert report.leading is not None
    return report.leading
