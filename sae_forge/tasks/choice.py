"""Which tasks are asked: by name, a part of one, or one that a TOML file describes without code.

A description takes the form of a task there is, gives it files and settings of its own, and may say it otherwise::

    name = "trivia"
    like = "questions"
    [settings]
    retain_questions = ["trivia.jsonl"]
    [wording]               # may be left out; then it stands with the domains of the task it is like
    front = "Answer as a child would.\\n"
"""

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from sae_forge.config.fields import described
from sae_forge.config.model import ModelConfig
from sae_forge.config.questions import Half
from sae_forge.errors import ConfigError, DataError, did_you_mean
from sae_forge.progress import Progress
from sae_forge.results.report import KEYS_OF_ROWS
from sae_forge.settings import parse_value
from sae_forge.tasks.task import Asked, Task
from sae_forge.tasks.wrapped import Wording, wrapped

if TYPE_CHECKING:
    from sae_forge.models.loading import LanguageModel

SUFFIX = ".toml"
NAME = r"\w[\w-]*"
KEYS = {"name", "like", "title", "settings", "wording"}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A task, and how much of it is asked."""

    task: Task
    part: str = ""
    """The domain or kind of item that is asked; all, where nothing is said."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Its own, where they are others than the command's."""

    @property
    def called(self) -> str:
        """As ``--tasks`` names it."""
        return f"{self.task.name}:{self.part}" if self.part else self.task.name

    def load(
        self, lm: "LanguageModel", config: Any, *, half: Half, limit: int | None, progress: Progress
    ) -> tuple[Asked, ...]:
        """What is asked of it.

        Raises:
            DataError: it has no such part.
        """
        own = replace(config, **self.settings) if self.settings else config
        every = self.task.load(lm, own, half=half, limit=limit, progress=progress)
        asked = tuple(one for one in every if self.part in ("", one.domain, one.kind))
        if self.part and not asked:
            parts = ", ".join(dict.fromkeys(one.domain or one.kind for one in every)) or "none: name its files"
            raise DataError(f"--tasks {self.called}: the parts of {self.task.name} are {parts}")
        return asked

    @property
    def items(self) -> tuple[str, ...]:
        """The files that its own settings name."""
        said = described(self.task.settings) if self.settings and self.task.settings else {}
        named = [value for name, value in self.settings.items() if name in said and said[name].setting.names_items]
        return tuple(source for value in named for source in value)


@runtime_checkable
class Door(Protocol):
    """A task that stands for many others, by names that it alone knows."""

    def called(self, name: str, part: str, meant: str) -> Choice:
        """The one of this name, or a part of it; ``meant`` is what to say where there is none."""
        ...

    def reads(self, config: Any) -> tuple[str, ...]:
        """Sources that decide what they answer beside those that settings name."""
        ...


def choices(names: Sequence[str], known: Sequence[Task]) -> tuple[Choice, ...]:
    """The tasks of these names; every known one, where none is named.

    Raises:
        ConfigError: a name is none of theirs, stands there twice, or a description says what it may not.
    """
    if not names:
        return tuple(Choice(task=task) for task in known)
    by_name = {task.name: task for task in known}
    chosen = []
    for name in dict.fromkeys(names):
        if name.endswith(SUFFIX):
            chosen.append(_described(Path(name), by_name))
            continue
        task, colon, part = name.partition(":")
        door = next((one for one in known if isinstance(one, Door)), None)
        if task not in by_name and door is None:
            raise ConfigError(
                f"--tasks {name}: there is no task {task!r}{did_you_mean(task, by_name)}; give {', '.join(by_name)}, "
                f"or a FILE{SUFFIX}"
            )
        if colon and not part:
            raise ConfigError(f"--tasks {name} names no part of {task}; give {task} for all of it, or {task}:PART")
        if task in by_name:
            chosen.append(Choice(task=by_name[task], part=part))
        elif door is not None:
            chosen.append(door.called(task, part, did_you_mean(task, by_name)))
    called = [one.task.name for one in chosen]
    if twice := [one.task.name for one in chosen if not one.part and called.count(one.task.name) > 1]:
        raise ConfigError(
            f"--tasks {','.join(names)} asks all of {twice[0]} and again of it; name it once, or its parts"
        )
    return tuple(chosen)


def _described(path: Path, known: Mapping[str, Task]) -> Choice:
    """The task of a description; files that it does not name are not asked."""
    where = f"--tasks {path}"
    try:
        said = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"{where} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ConfigError(f"{where} is not TOML: {str(error)[:120]}") from error
    name, like = said.get("name", path.stem), str(said.get("like", ""))
    if unknown := sorted(set(said) - KEYS):
        raise ConfigError(f"{where} sets {unknown[0]!r}; possible are {', '.join(sorted(KEYS))}")
    if like not in known or not is_dataclass(known[like]) or known[like].settings is None:
        raise ConfigError(f"{where} is like {like!r}; give like = one of {', '.join(known)}")
    headings = {one.group for one in known.values()} | {each.heading for one in known.values() for each in one.measures}
    if not isinstance(name, str) or name in headings.union(known, KEYS_OF_ROWS):
        raise ConfigError(f"{where} is called {name!r}; give it a name that no task and no part of a report has")
    if not re.fullmatch(NAME, name):
        raise ConfigError(f"{where} is called {name!r}; give a name of letters, digits, - and _")
    task: Any = replace(known[like], name=name, title=str(said.get("title", name.capitalize())))  # pyright: ignore
    if "wording" in said:
        task = wrapped(task, _wording(said["wording"], where), name=name)
    elif task.group is not None:  # what stands under a heading is not told apart by domain, so it has one of its own
        task = replace(task, group=name, measures=tuple(replace(one, heading=None) for one in task.measures))
    own = described(task.settings)
    # files that the command names for the task it is like are not its own
    empty = {key: () for key, each in own.items() if each.setting.names_items}
    given = said.get("settings", {})
    if not isinstance(given, dict):
        raise ConfigError(f"{where} has settings = {str(given)[:40]}; give them as a table, under [settings]")
    if unknown := sorted(set(given) - (set(own) - set(described(ModelConfig)))):
        raise ConfigError(f"{where} sets {unknown[0]!r}, which is no setting of {like}")
    settings = {key: parse_value(task.settings, key, value) for key, value in given.items()}
    return Choice(task=task, settings={**empty, **settings})


def _wording(said: Any, where: str) -> Wording:
    texts = {one.name for one in fields(Wording) if one.type is str or one.type == "str"}
    if not isinstance(said, dict) or set(said) - texts or not all(isinstance(text, str) for text in said.values()):
        raise ConfigError(f"{where}: wording takes texts called {', '.join(sorted(texts))}")
    return Wording(**said)
