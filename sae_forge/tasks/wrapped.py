"""A task said otherwise: text or answered examples in front, other words, the beginning of an answer given.

It asks the same items with the same ids and facts, and stands under a heading of its own, so that what a changed
question measures is never mixed with what the question itself does.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from sae_forge.errors import ConfigError
from sae_forge.tasks.task import Task


@dataclass(frozen=True, kw_only=True)
class Wording:
    """How a text that is asked is changed; as it is, by default."""

    front: str = ""
    """Stands before all that is asked; in a chat template, inside the turn."""
    prefix: str = ""
    """Stands after it: the beginning of the answer."""
    reword: Callable[[str], str] | None = None
    """The question or prompt itself in other words."""

    def said(self, text: str) -> str:
        """The question or prompt itself."""
        return text if self.reword is None else self.reword(text)

    def around(self, text: str) -> str:
        """All that is asked."""
        return f"{self.front}{text}{self.prefix}"


PLAIN = Wording()


def shots(answered: Iterable[tuple[str, str]]) -> str:
    """Questions with their answers as they stand in front of another: a wording's ``front``."""
    return "".join(f"{question} {answer}\n\n" for question, answer in answered)


def wrapped(task: Task, wording: Wording, *, name: str) -> Task:
    """The task in another wording, called ``task+name`` and under a heading of that name.

    Raises:
        ConfigError: the task does not say how its text could be changed.
    """
    made: Any = task
    if not isinstance(getattr(task, "wording", None), Wording):
        raise ConfigError(f"the task {task.name} takes no other wording; it has no field 'wording'")
    title = name if name == task.name else f"{task.name}+{name}"
    return replace(made, name=title, title=f"{task.title}, {name}", group=title, wording=wording, tuned_on=False)
