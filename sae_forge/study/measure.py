"""All that is asked of a subject, in one order, and what it answered: the model as it is, or under an edit."""

from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from typing import Any, NamedTuple, Protocol, runtime_checkable

from sae_forge.config.evaluate import EvalConfig
from sae_forge.config.questions import Half
from sae_forge.errors import ConfigError, DataError
from sae_forge.interventions.apply import EditLog
from sae_forge.models.loading import LanguageModel
from sae_forge.models.tape import Tape
from sae_forge.progress import SILENT, Progress
from sae_forge.progress import Task as Advancing
from sae_forge.study.settings import catalogue_of
from sae_forge.tasks.choice import Choice, choices
from sae_forge.tasks.item import ROLES, Item
from sae_forge.tasks.task import Asked


class Touched(NamedTuple):
    """How much an edit touched."""

    tokens: int
    """Real tokens seen."""
    edited: int
    """Those of them that were changed."""
    norm: float
    """L2 norms of the changes, summed."""


@dataclass(frozen=True)
class Answers:
    """What one subject answered to one thing asked."""

    asked: Asked
    items: tuple[Item, ...]
    touched: Touched


Measurement = tuple[Answers, ...]
"""All answers of one subject, in the order asked."""


@runtime_checkable
class Keeper(Protocol):
    """Where the answers of one subject are kept, by their number in the order asked."""

    def find(self, asked: Sequence[Asked], first: int) -> Measurement:
        """The answers to all of these, numbered from ``first``; none where one of them is missing."""
        ...

    def keep(self, number: int, answers: Answers) -> None:
        """Write down what was answered to the thing asked of this number."""
        ...


def load_asked(
    lm: LanguageModel,
    config: EvalConfig,
    progress: Progress = SILENT,
    *,
    tuned: bool = False,
    half: Half | None = None,
    limit: int | None = None,
) -> tuple[Asked, ...]:
    """What the config names of each task, tokenised once for all the subjects that will be asked it.

    Domain by domain, those to forget first, each with its tasks in their order; then what else is read; and last all
    that has text written.

    Args:
        tuned: Only what settings are chosen by.
        half: Of the questions; unset, the config's.
        limit: Items per domain; unset, the config's.

    Raises:
        ConfigError: it names a task that there is not.
        DataError: it names nothing, a file of it is missing or malformed, or one name stands for two things.
    """
    known = catalogue_of(config)
    if not getattr(type(config), "catalogue", None):
        raise ConfigError("a plain EvalConfig says nothing of what is asked; make it of study.settings.eval_config()")
    half, limit = half or config.half, config.limit if limit is None else limit
    chosen = [one for one in choices(config.tasks, known.tasks) if one.task.tuned_on or not tuned]
    every = [
        replace(asked, rank=rank)
        for rank, one in enumerate(chosen)
        for asked in one.load(lm, config, half=half, limit=limit, progress=progress)
    ]
    if not every:
        raise DataError(
            "nothing to evaluate on: name what is asked, such as --forget_questions and --retain_questions, or "
            "--forget_eval and --retain_eval (sae-forge eval --help lists everything)"
        )
    _refuse_twice(every, chosen)
    placed = [asked for asked in every if asked.task.group is None]
    if odd := [asked for asked in placed if asked.role not in ROLES]:
        raise DataError(
            f"{odd[0].task.name} asks {odd[0].domain!r} in the role {odd[0].role!r}: give {', '.join(ROLES)}"
        )
    of_role = [(role, asked) for role in ROLES for asked in placed if asked.role == role]
    names = list(dict.fromkeys((role, asked.domain) for role, asked in of_role))
    if doubled := [name for name, times in Counter(name for _, name in names).items() if times > 1]:
        raise DataError(f"the domain {doubled[0]!r} (the file's name) has several roles; rename one of the files")
    # all that is asked of one domain stands together, as it does in the report
    order = {name: number for number, (_, name) in enumerate(names)}

    def place(asked: Asked) -> tuple[bool, bool, int]:
        grouped = asked.task.group is not None
        return asked.written, grouped, 0 if grouped else order[asked.domain]

    return tuple(sorted(every, key=place))


def _refuse_twice(every: Sequence[Asked], chosen: Sequence[Choice]) -> None:
    """Refuse what two of ``--tasks`` both ask: under one heading such items would be pooled, each counted twice.

    Raises:
        DataError: names the two.
    """
    for one, other in combinations(every, 2):
        place, there = ((asked.task.group, asked.domain, asked.role, asked.kind) for asked in (one, other))
        if one.rank == other.rank or place != there or not {*one.measured}.intersection(other.measured):
            continue
        if one.ids == other.ids or {*one.ids}.intersection(other.ids):
            first, second = (chosen[asked.rank].called for asked in (one, other))
            raise DataError(
                f"--tasks {first},{second} both ask {one.domain or one.kind}, whose items would count twice; leave one "
                "of them out, or give it other files"
            )


def measure(
    lm: LanguageModel,
    asked: Sequence[Asked],
    log: EditLog | None,
    task: Advancing,
    *,
    batch_size: int,
    tape: Tape | None = None,
    kept: Keeper | None = None,
    **facts: Any,
) -> Measurement:
    """Ask the model all of it.

    Args:
        kept: Where answers are written down as they come, and found again.
        log: What the edit under way counts; None where no activation is edited.
        tape: Spares the layers below the edit all that was asked before in the same order.
        facts: Shown beside the progress.
    """
    done = partial(task.advance, **facts)

    def answers(one: Asked, number: int) -> Answers:
        before = _touched(log)
        items = tuple(one.task.ask(lm, one, batch_size=batch_size, done=done))
        # the log counts over all that is asked under the edit, so what this added is the difference
        now = _touched(log)
        touched = Touched(now.tokens - before.tokens, now.edited - before.edited, now.norm - before.norm)
        given = Answers(one, items, touched)
        if kept is not None:
            kept.keep(number, given)
        return given

    def all_of(part: Sequence[Asked], first: int) -> Measurement:
        """What is read is found whole or asked whole, since a tape plays all that was asked."""
        if kept is not None and (earlier := kept.find(part, first)):
            task.advance(sum(one.units for one in part), **facts)
            return earlier
        return tuple(answers(one, number) for number, one in enumerate(part, first))

    # a tape holds what was read in one order, so all that is read comes before anything is written
    read, written = ([one for one in asked if one.written is writes] for writes in (False, True))
    # what is read is the same forward passes whatever the model answers, and what is written is not
    with nullcontext() if tape is None or (kept and kept.find(read, 0)) else tape.running():
        seen = all_of(read, 0)
    return (*seen, *(answer for number, one in enumerate(written, len(read)) for answer in all_of([one], number)))


def _touched(log: EditLog | None) -> Touched:
    return Touched(0, 0, 0.0) if log is None else Touched(log.tokens, log.edited, log.norms)
