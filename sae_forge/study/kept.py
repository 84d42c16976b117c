"""The answers measured so far, on disk as they come, so that an eval that was stopped goes on with what it has.

They lie beside the report to be, in a folder whose name is a hash of all that decides it, and go once it is written.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import sae_forge
from sae_forge.errors import DataError
from sae_forge.store import files
from sae_forge.study.measure import Answers, Measurement, Touched
from sae_forge.study.plan import Plan
from sae_forge.tasks.item import Item
from sae_forge.tasks.task import Asked

FOLDER = "measured"
MOST_ITEMS = 50_000
"""Answers to more items than this are not kept: no JSON file here may hold so many."""


@dataclass(frozen=True)
class Kept:
    """What one subject of a report has answered already."""

    folder: Path | None
    """None: nothing is kept."""

    @classmethod
    def of(cls, folder: Path | None, number: int, plan: Plan) -> "Kept":
        """Of a row of the report in this folder; versions and settings that differ do not share answers."""
        what = [sae_forge.__version__, plan.name, plan.settings, plan.seed]
        return cls(None if folder is None else folder / FOLDER / f"{number:04d}-{files.short_hash(what)}")

    def find(self, asked: Sequence[Asked], first: int = 0) -> Measurement:
        """The answers to all of these, numbered from ``first``; none where one of them is missing.

        Raises:
            DataError: a file of them is damaged.
        """
        answers = []
        for number, one in enumerate(asked, first):
            path = None if self.folder is None else self._path(number, one)
            if path is None or not path.exists():
                return ()
            answers.append(_read(path, one))
        return tuple(answers)

    def keep(self, number: int, answers: Answers) -> None:
        """Write down what was answered to the thing asked of this number."""
        if self.folder is None or len(answers.items) > MOST_ITEMS:
            return
        # values as pairs: they have an order, and JSON here is sorted by its keys
        items = [
            vars(item) | {"values": list(item.values.items()), "weights": list(item.weights.items())}
            for item in answers.items
        ]
        record = {"touched": list(answers.touched), "items": items}
        files.publish_json(self._path(number, answers.asked), record)

    def _path(self, number: int, asked: Asked) -> Path:
        assert self.folder is not None
        return self.folder / f"{number:04d}-{files.short_hash([asked.task.name, asked.domain, asked.role])}.json"


def discard(folder: Path) -> None:
    """The report in this folder is whole: what it was made of goes."""
    files.discard_folder(folder / FOLDER)


def _read(path: Path, asked: Asked) -> Answers:
    """What :meth:`Kept.keep` has written; whole numbers stay whole, and lists are tuples again."""
    record = files.read_json(path, kind=DataError, what="answers of an eval")
    try:
        tokens, edited, norm = record["touched"]
        items = []
        for written in record["items"]:
            values = {name: tuple(value) if isinstance(value, list) else value for name, value in written["values"]}
            items.append(Item(**written | {"values": values, "weights": dict(written["weights"])}))
    except (KeyError, TypeError, ValueError) as error:
        hint = "delete it and run the same command again"
        raise DataError(f"{path} is not answers of an eval: {error!r:.80}; {hint}") from error
    return Answers(asked, tuple(items), Touched(tokens, edited, norm))
