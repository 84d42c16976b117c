"""What a field of a config says of itself: its help, another spelling, what it decides, what it may be, its heading.

All of it stands in the field's ``Annotated``, so that flags, help pages, range checks, the identities of artefacts and
what ranks must agree on are read from one place::

    theta: Annotated[float, "What an act must exceed to fire.", Setting(at_least=0, finite=True)] = 0.0
"""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from inspect import get_annotations
from math import isfinite
from types import MappingProxyType
from typing import Any, Literal, get_args, get_type_hints

Artefact = Literal["shards", "sae", "selection", "attribution", "report"]
"""``attribution`` is a selection that is made by asking a model questions, and hangs on more than the others."""


@dataclass(frozen=True)
class Alias:
    """A second spelling of a flag, for ``Annotated``."""

    name: str


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a setting decides and which values it may take, for ``Annotated``; None is always allowed.

    Bounds hold for a number, or for each of a tuple of numbers, of which there must then be one.
    """

    decides: tuple[Artefact, ...] | None = None
    """Artefacts that are others under another value of it. Unset: those its class decides."""
    names_items: bool = False
    """Whether it names files of what is asked or read, whose content counts and not only their names."""
    local: bool = False
    """Whether it says where things are on a machine, so that ranks of one job may differ in it."""
    heading: str | None = None
    """What it stands under in ``--help``. Unset: the heading of its class."""
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    finite: bool = False
    distinct: bool = False
    """Whether each value of several must be another."""
    most: int | None = None
    """How many values there may be."""
    younger: bool = False
    """Whether it decides a report only where it is not at its default: so those made before there was the setting are
    found again."""
    tuned: Callable[[Any], bool] = lambda config: False  # noqa: ARG005
    """Whether a sweep under this config tries values of its own in its place, so that to name one means nothing."""
    wanted: str = ""
    """What would be right, for the message. Unset: the bounds."""

    def allows(self, value: Any) -> bool:
        """Whether a value is within the bounds."""
        if value is None:
            return True
        parts = value if isinstance(value, tuple) else (value,)
        bounds = (self.at_least, self.above, self.at_most, self.below)
        bounded = self.finite or any(bound is not None for bound in bounds)
        if (bounded or self.distinct) and not parts:
            return False
        if (self.most is not None and len(parts) > self.most) or (self.distinct and len(set(parts)) < len(parts)):
            return False
        return not bounded or all(map(self._within, parts))

    def _within(self, number: float) -> bool:
        return (
            (self.at_least is None or number >= self.at_least)
            and (self.above is None or number > self.above)
            and (self.at_most is None or number <= self.at_most)
            and (self.below is None or number < self.below)
            and (not self.finite or isfinite(number))
        )

    def advice(self) -> str:
        """What would be right: the field's own words, else its bounds."""
        bounds = {"at least": self.at_least, "above": self.above, "at most": self.at_most, "below": self.below}
        said = [f"{words} {bound:g}" for words, bound in bounds.items() if bound is not None]
        said += [words for words, asked in (("finite", self.finite), ("each once", self.distinct)) if asked]
        said += [f"{self.most} values or fewer"] if self.most is not None else []
        return self.wanted or f"give a value {', '.join(said)}"


@dataclass(frozen=True, kw_only=True)
class Described:
    """All that one field of a config says of itself."""

    name: str
    kind: Any
    """Its type, without notes."""
    help: str
    default: Any
    heading: str
    decides: tuple[Artefact, ...]
    setting: Setting
    aliases: tuple[str, ...] = ()


@cache
def described(config: type) -> Mapping[str, Described]:
    """The settings of a config class by name, in the order of its fields; a field without help text is none.

    What a setting leaves unsaid is taken from the class that declares it: its ``heading`` and its ``decides``.
    """
    hints = get_type_hints(config, include_extras=True)  # extras are the notes of an Annotated
    settings = {}
    for field in fields(config):
        kind, *notes = get_args(hints[field.name]) if hasattr(hints[field.name], "__metadata__") else (None,)
        if not notes:
            continue
        # a dataclass lists inherited fields as its own; the class that wrote the annotation speaks for it
        owner: Any = next(each for each in config.__mro__ if field.name in get_annotations(each))
        setting = next((note for note in notes if isinstance(note, Setting)), Setting())
        settings[field.name] = Described(
            name=field.name,
            kind=kind,
            help=next(note for note in notes if isinstance(note, str)),
            default=None if field.default is MISSING else field.default,
            heading=setting.heading or owner.heading,
            decides=owner.decides if setting.decides is None else setting.decides,
            setting=setting,
            aliases=tuple(note.name for note in notes if isinstance(note, Alias)),
        )
    return MappingProxyType(settings)
