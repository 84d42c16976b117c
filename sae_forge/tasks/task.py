"""What a task is: it loads its items, asks them of a model as it stands, and says what its numbers are called.

A task is a file here, and a line in ``table.py``; or an object of one's own. It imports no torch until it is used.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from sae_forge.config.questions import Half
from sae_forge.progress import Progress
from sae_forge.results.measure import Measure
from sae_forge.tasks.item import Item

if TYPE_CHECKING:
    from sae_forge.models.loading import LanguageModel


@runtime_checkable
class Named(Protocol):
    """What has an id, and a fact that it shares with its paraphrases."""

    @property
    def id(self) -> str: ...
    @property
    def fact(self) -> str: ...


Done = Callable[[int], None]
"""Called as work goes on with how many more items are finished."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What every report says of a task, asked or not: keys that those who read reports rely on."""

    kind: str = ""
    """What one of its items is; how many of these were asked is said of every domain."""
    headings: tuple[str, ...] = ()
    """Of every row, be they empty."""
    protocol: Callable[[Any], Mapping[str, Any]] = lambda config: {}  # noqa: ARG005
    """How it would have been asked under this config."""


@runtime_checkable
class Task(Protocol):
    """One kind of thing to ask.

    One may also have a ``standing``, a :class:`Standing`, and ``rehearsed``, which makes of an :class:`Asked` what a
    dry run may ask to learn how long it takes: nothing that is paid for or written down.
    """

    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str:
        """For a heading: ``Questions``."""
        ...

    @property
    def group(self) -> str | None:
        """The heading that its estimates stand under in a report's rows; None: by domain and by role."""
        ...

    @property
    def measures(self) -> tuple[Measure, ...]:
        """What its items are summed up to, the most important first."""
        ...

    @property
    def settings(self) -> type | None:
        """Its own flags."""
        ...

    @property
    def tuned_on(self) -> bool:
        """Whether a sweep asks it on the DEV half, and chooses settings by its first measure."""
        ...

    @property
    def writes(self) -> bool:
        """Whether it has text written: it comes last, and controls are asked it only where an ``Asked`` says so."""
        ...

    def load(
        self, lm: "LanguageModel", config: Any, *, half: Half, limit: int | None, progress: Progress
    ) -> tuple["Asked", ...]:
        """What the config names of it, encoded for this model; nothing, where it names nothing."""
        ...

    def ask(self, lm: "LanguageModel", asked: "Asked", *, batch_size: int, done: Done | None) -> list[Item]:
        """An item for each thing asked, of the model as it stands, edits included."""
        ...


def standing_of(task: Task) -> Standing:
    """What every report says of it; nothing, where it does not say."""
    return getattr(task, "standing", Standing())


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a task asks about one domain, of one text or for one measure, ready to be asked of many subjects."""

    task: Task = field(repr=False)
    domain: str = ""
    role: str = ""
    """forget, neighbour or retain; nothing where estimates are not told apart by role."""
    kind: str = ""
    """What one of its items is: ``question``; as the task is called, where nothing is said."""
    ids: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()
    units: int
    """Items, for the progress that is shown."""
    truncated: int = 0
    """Items that do not fit into the model and are read in part."""
    shortened: int = 0
    """Items after which the model has room for less than was to be written."""
    measures: tuple[Measure, ...] = ()
    """Those of the task's that it is for; all, where none is said."""
    counted: str = ""
    """The name under which a row says what share of the tokens read here was edited: a role, or one of its own."""
    reads: bool = False
    """Whether it only reads, though its task writes elsewhere."""
    of_controls: bool = False
    """Whether random controls are asked it too, though text is written for it."""
    protocol: Mapping[str, Any] = field(default_factory=dict)
    """How it was asked, for the report's ``protocol``."""
    content: Any = field(repr=False, default=None)
    """What ``ask`` needs."""
    rank: int = 0
    """Place of its task among all that ask."""

    @classmethod
    def of(cls, task: Task, items: Sequence[Named], **said: Any) -> "Asked":
        """These items, one unit each."""
        ids, facts = tuple(item.id for item in items), tuple(item.fact for item in items)
        return cls(task=task, ids=ids, facts=facts, units=len(items), **said)

    def answered(
        self,
        number: int,
        values: Mapping[str, float | tuple[float, ...]],
        weights: Mapping[str, float] | None = None,
        *,
        text: str | None = None,
        domain: str | None = None,
        role: str | None = None,
    ) -> Item:
        """What came of the item of this number, by its id and fact; without ids it goes by its number.

        Args:
            domain: Unset: the one asked about; else the side of several that were asked at once.
            role: Likewise.
        """
        return Item(
            task=self.task.name,
            domain=self.domain if domain is None else domain,
            role=self.role if role is None else role,
            id=self.ids[number] if self.ids else str(number),
            fact=self.facts[number] if self.facts else str(number),
            values=values,
            weights=weights or {},
            text=text,
        )

    @property
    def written(self) -> bool:
        """Whether text is written for it."""
        return self.task.writes and not self.reads

    @property
    def counted_as(self) -> str:
        """What a domain's count of its items is called: ``questions``."""
        return f"{self.kind or self.task.name}s"

    @property
    def measured(self) -> Sequence[Measure]:
        """What its items are summed up to."""
        return self.measures or self.task.measures
