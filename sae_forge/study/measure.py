"""All that is asked of a subject, in one order, and what it answered: the model as it is, or under an edit."""

from collections import Counter
from collections.abc import Container, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from typing import NamedTuple, Protocol, runtime_checkable

from sae_forge.config.evaluate import EvalConfig
from sae_forge.config.questions import Half
from sae_forge.errors import ConfigError, DataError
from sae_forge.interventions.apply import EditLog
from sae_forge.models.loading import LanguageModel
from sae_forge.models.tape import Tapes
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

    def find(self, number: int, asked: Asked) -> Answers | None:
        """What was answered to the thing asked of this number, if it was."""
        ...

    def keep(self, number: int, answers: Answers) -> None:
        """Write down what was answered to it."""
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
    tapes: Tapes | None = None,
    kept: Keeper | None = None,
    only: Container[int] | None = None,
    method: str | None = None,
) -> Measurement:
    """Ask the model all of it, or some.

    What comes of one thing asked hangs on nothing that was asked before it, so the parts of a whole may be measured
    apart.

    Args:
        kept: Where answers are written down as they come, and found again.
        log: What the edit under way counts; None where no activation is edited.
        tapes: Spare the layers below the edit what was asked before.
        only: Numbers of what is asked here; None: all.
        method: Shown beside the progress.
    """
    done, measured = task.advance if method is None else partial(task.advance, method=method), []
    for number, one in enumerate(asked):
        if only is not None and number not in only:
            continue
        if kept is not None and (earlier := kept.find(number, one)) is not None:
            done(one.units)
            measured.append(earlier)
            continue
        before = _touched(log)
        if log is not None:
            log.norms = 0.0  # of a sum over all that was asked the difference would hang on what came before
        # what is read is the same forward passes whatever the model answers, and what is written is not
        with nullcontext() if tapes is None or one.written else tapes.of(number).running():
            items = tuple(one.task.ask(lm, one, batch_size=batch_size, done=done))
        now = _touched(log)
        answers = Answers(one, items, Touched(now.tokens - before.tokens, now.edited - before.edited, now.norm))
        if kept is not None:
            kept.keep(number, answers)
        measured.append(answers)
    return tuple(measured)


def _touched(log: EditLog | None) -> Touched:
    return Touched(0, 0, 0.0) if log is None else Touched(log.tokens, log.edited, log.norms)
