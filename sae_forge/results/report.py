"""An eval report as frozen types, read from its file once; whoever prints or compares it reads these, no string keys.

A report describes itself: its tasks say what their measures are called and in which unit, its rows what was done to the
model in words. So printers know no task and no method, and one of somebody else's reads like a built-in.
"""

import html
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

from sae_forge.errors import DataError
from sae_forge.results.measure import Measure
from sae_forge.results.version_1 import upgraded
from sae_forge.statistics.estimate import Estimate
from sae_forge.store import files
from sae_forge.store.records import REST, called, decode, encode
from sae_forge.store.remote import AnyPath

if TYPE_CHECKING:
    import pandas as pd

FORMAT = 2
RANDOM = "random"
"""The name of rows that are a random control of another row."""
SHIFTED, SHIFT_RATIO = "logprob", "logprob_shift_ratio"
"""The measure whose shift on what is forgotten is set against that of each other domain, and what that is called in the
change of such a domain (INLP_PROJECT's 8 and 27 times)."""
ROLES = ("forget", "neighbour", "retain")

Settings = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class TaskWords:
    """A task as a report describes it."""

    name: str
    title: str
    """For a heading: ``Questions``, ``MUSE``."""
    group: str | None
    """The heading its estimates stand under in each row; None: by domain and role."""
    measures: tuple[Measure, ...]

    def measure(self, key: str) -> Measure:
        """The measure of an entry of its group; a key that is no measure's names a place (a corpus, a role)."""
        return next((one for one in self.measures if one.name == key), self.measures[0])


@dataclass(frozen=True, kw_only=True)
class Domain:
    """What was asked of one topic."""

    role: Literal["forget", "neighbour", "retain"]
    items: int
    facts: int | None = None
    ids: Mapping[str, tuple[str, ...]] | None = None
    """By what they are: ``questions``, ``prompts``."""
    asked: Mapping[str, int] = field(metadata=REST)
    """How many of each of these."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One domain, or all domains of a role, under one row."""

    estimates: Mapping[str, Estimate] = field(metadata=REST)
    """By measure."""
    chance: Mapping[str, float] | None = None
    """Where guessing lies, by measure, if it is not where the measure says."""
    letters: Mapping[str, float] | None = None
    """Share of the answers that fell on each option."""
    edited_share: float | None = None
    """Share of the real tokens that were edited."""
    lost: int | None = None
    gained: int | None = None
    """Of a change: items that were right before and are not now, and the other way round."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """Paired differences to the baseline, by the same keys as a row's estimates."""

    domains: Mapping[str, Cell]
    roles: Mapping[str, Cell]
    groups: Mapping[str, Mapping[str, Estimate]] = field(metadata=REST)
    alignment: Estimate | None = None
    """Retention of what should stay times loss of what should go, in [0, 1] (arXiv 2503.11127)."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """The model as it is, or under one method at one setting, or under one seed of a control."""

    name: str
    kind: Literal["baseline", "hook", "weights"]
    """What is done to the model: nothing, its activations edited, or its weights trained."""
    title: str
    """Method and settings for a sentence: ``Scale -3 on 200 latents``."""
    at_rest: bool = False
    """Whether it lays latents to rest and so is a control itself."""
    settings: Settings
    seed: int | None
    domains: Mapping[str, Cell]
    roles: Mapping[str, Cell]
    groups: Mapping[str, Mapping[str, Estimate]] = field(metadata=REST)
    """By heading (``loss``, ``generation``), then by measure or by place."""
    edited_share: Mapping[str, float]
    """Share of real tokens edited, by role of the held-out text, and in what was written."""
    edit_norm: Mapping[str, float]
    """L2 norm of the edit on an edited token, by role."""
    change: Change | None = None
    """None for the baseline."""

    @property
    def is_control(self) -> bool:
        """Whether it is a random control."""
        return self.name == RANDOM

    @property
    def edits(self) -> bool:
        """Whether it is an edit that is no control of any kind."""
        return self.kind == "hook" and not self.is_control and not self.at_rest


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Values over seeds."""

    mean: float
    min: float
    max: float


@dataclass(frozen=True, kw_only=True)
class ControlSummary:
    """One kind of random control of one row, over its seeds."""

    settings: Settings
    """Those of the row, the ``kind`` of control, and whose it is: ``of``."""
    seeds: tuple[int, ...]
    domains: Mapping[str, Mapping[str, Spread]]
    roles: Mapping[str, Mapping[str, Spread]]
    groups: Mapping[str, Mapping[str, Spread]] = field(metadata=REST)
    edited_share: Mapping[str, Spread]
    edit_minus_control: Mapping[str, Mapping[str, Estimate]]
    """The paired difference of the edit to the mean over seeds, by role or heading, then by measure or place."""


KEYS_OF_ROWS = frozenset(each.name for kind in (Row, Change, ControlSummary) for each in fields(kind))
"""What no heading may be called: headings stand beside these in the file."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One setting of one method in a sweep: accuracies on what is forgotten, kept, and lies close."""

    settings: Settings
    forget: float
    utility: float
    neighbour: float | None
    alignment: float
    changes: Mapping[str, Estimate] = field(default_factory=dict)
    """By role, the accuracy less that of the model as it is, paired; none of a report older than these."""


@dataclass(frozen=True, kw_only=True)
class TunedMethod:
    """One method, all its settings measured on the DEV half."""

    configurations: int
    points: tuple[Point, ...]
    front: tuple[Point, ...]
    """Those that no other dominates."""
    best_at: Mapping[str, Point | None]
    """The lowest forget accuracy above each floor, if any point is."""
    saebench_score: float | None
    """The unlearning score where SAEBench defines it: on questions that a filter left, which the base has right."""
    hypervolume: float
    best_alignment: float
    chosen: Point
    rule: str
    """Which rule chose it."""
    end: str | None
    """``gentlest`` or ``roughest`` where the chosen strength is the end of those tried."""
    unlearning_score: float | None = None
    """1 minus the lowest forget accuracy at 99 % of the base's utility, 0 where no point has that; None: not told."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What was tuned, and on what."""

    half: str
    measure: str = "accuracy"
    """What was tuned by."""
    domains: Mapping[str, Domain]
    base: Point
    floors: Mapping[str, float]
    methods: Mapping[str, TunedMethod]


@dataclass(frozen=True, kw_only=True)
class ComparedSelection:
    """One selection under the edit that all were compared by."""

    selection: str
    latents: int
    auroc: float | None
    mean_correlation: float | None
    overlap: Mapping[str, Any]
    changes: Mapping[str, Estimate | None] = field(metadata=REST)
    """Paired changes: ``forget_accuracy``, ``retain_loss`` …"""


@dataclass(frozen=True, kw_only=True)
class RankCorrelation:
    """Of the latents' mean correlation with the size of a side effect."""

    spearman: float | None
    """None where one of them does not vary."""
    selections: int


@dataclass(frozen=True, kw_only=True)
class SelectionComparison:
    """Several selections under the same edit."""

    rows: tuple[ComparedSelection, ...]
    correlation_against: Mapping[str, RankCorrelation]
    """By side effect."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What edits and retrainings did, beside what doing nothing and doing something random did."""

    format: int
    tasks: tuple[TaskWords, ...]
    """Those that measured something."""
    domains: Mapping[str, Domain]
    rows: tuple[Row, ...] = field(metadata=called("methods"))
    """The baseline first."""
    controls: tuple[ControlSummary, ...]
    protocol: Mapping[str, Any]
    """How the numbers were made, so that another run can make them again."""
    left_out: Mapping[str, str]
    """Methods that were asked for by ``all`` and could not be measured, and why."""
    rough: tuple[str, ...] = ()
    """Settings that say how rough a method was; pictures order its points by the first it has."""
    unsaid: tuple[str, ...] = ()
    """Settings that tables leave out, as they are the same in every row."""
    selections: SelectionComparison | None = None
    sweep: Sweep | None = None
    claims: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, value: Any) -> "Report":
        """The report that this JSON says; one of version 0.1 is brought up to today's form.

        Raises:
            DataError: it is no report, or one of a later version; names the key.
        """
        if isinstance(value, Mapping) and "format" not in value:
            value = upgraded(value)
        elif isinstance(value, Mapping) and value["format"] != FORMAT:
            raise DataError(f"it has format {value['format']!r}; this version reads {FORMAT} and those of 0.1")
        try:
            report = decode(cls, value)
        except ValueError as flaw:
            raise DataError(str(flaw)) from None
        if not report.rows or report.rows[0].kind != "baseline":
            raise DataError("methods: the first is not the baseline")
        return report

    def to_json(self) -> dict[str, Any]:
        """The JSON of ``eval.json`` and of ``--json``."""
        return encode(self)

    def to_pandas(self) -> "pd.DataFrame":
        """Every estimate, a line each: see ``results.frame``."""
        from sae_forge.results.frame import frame  # pandas takes longer to load than all else that reads a report

        return frame(self)

    def _repr_html_(self) -> str:
        """What a notebook shows: a row a method, then what the numbers bear out."""
        from sae_forge.results.sheets import overview  # which prints reports, and so imports this

        claims = "".join(f"<li>{html.escape(claim)}</li>" for claim in self.claims)
        return overview(self)._repr_html_() + f"<ul>{claims}</ul>"

    @property
    def base(self) -> Row:
        """The model as it is."""
        return self.rows[0]

    @property
    def domain_names(self) -> list[str]:
        """What is forgotten, then its neighbours, then what is kept."""
        # sorting is stable: within a role they stay as the report has them
        return sorted(self.domains, key=lambda name: ROLES.index(self.domains[name].role))

    @property
    def measures(self) -> tuple[Measure, ...]:
        """What was measured by domain and role, each once."""
        # of two tasks with a measure of one name the first says how it is called
        named = {one.name: one for task in self.tasks[::-1] if task.group is None for one in task.measures[::-1]}
        return tuple(named.values())[::-1]

    @property
    def leading(self) -> Measure | None:
        """What trade-offs are drawn in: what a sweep tuned by, else the first measure by domain that matters."""
        wanted = [one for one in self.measures if one.shown == "always"]
        return next((one for one in wanted if self.sweep is None or one.name == self.sweep.measure), None)

    @property
    def groups(self) -> dict[str, TaskWords]:
        """The tasks that stand under a heading of their own, by that heading."""
        return {task.group: task for task in self.tasks if task.group is not None}


def load_report(path: AnyPath) -> Report:
    """The report of an ``eval.json``.

    Raises:
        DataError: it is missing, damaged, or no report; names the file.
    """
    value = files.read_json(path, kind=DataError, what="an eval report")
    try:
        return Report.from_json(value)
    except DataError as error:
        raise DataError(f"{path} is not an eval report: {error}") from error
