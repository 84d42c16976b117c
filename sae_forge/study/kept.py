"""The answers measured so far, on disk as they come, so that an eval that was stopped goes on with what it has.

They lie beside the report to be, in a folder whose name is a hash of all that decides it, and go once it is written.
Several processes may fill it, each with what falls to it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import sae_forge
from sae_forge.errors import DataError
from sae_forge.store import files
from sae_forge.study.measure import Answers, Touched
from sae_forge.study.plan import Plan
from sae_forge.tasks.item import Item
from sae_forge.tasks.task import Asked

FOLDER = "measured"
ITEMS = 2_000
"""Answers a file holds at most, so that none is larger than JSON may be here."""


@dataclass(frozen=True)
class Kept:
    """What one subject of a report has answered already."""

    folder: Path | None
    """None: nothing is kept."""

    @classmethod
    def of(cls, folder: Path | None, number: int, plan: Plan) -> "Kept":
        """Of a row of the report in this folder; versions and settings that differ do not share answers."""
        what = [sae_forge.__version__, plan.name, plan.settings, plan.seed]
        return cls.named(folder, f"{number:04d}-{files.short_hash(what)}")

    @classmethod
    def named(cls, folder: Path | None, name: str) -> "Kept":
        """Of a subject that goes by this name."""
        return cls(None if folder is None else folder / FOLDER / name)

    def has(self, number: int, asked: Asked) -> bool:
        """Whether the thing asked of this number was answered."""
        return self.folder is not None and self._path(number, asked).exists()

    def has_all(self, asked: Sequence[Asked]) -> bool:
        """Whether all of these were, numbered as they come."""
        return all(self.has(number, one) for number, one in enumerate(asked))

    def find(self, number: int, asked: Asked) -> Answers | None:
        """What was answered to the thing asked of this number.

        Raises:
            DataError: a file of it is damaged.
        """
        if self.folder is None or not self.has(number, asked):
            return None
        items, files_of_it = [], self._paths(number, asked)
        while True:
            read, touched, continued = _read(next(files_of_it))
            items += read
            if not continued:
                return Answers(asked, tuple(items), touched)

    def keep(self, number: int, answers: Answers) -> None:
        """Write down what was answered to the thing asked of this number."""
        if self.folder is None:
            return
        # values as pairs: they have an order, and JSON here is sorted by its keys
        items = [
            vars(item) | {"values": list(item.values.items()), "weights": list(item.weights.items())}
            for item in answers.items
        ]
        parts = [items[start : start + ITEMS] for start in range(0, len(items), ITEMS)] or [[]]
        records = [
            {"touched": list(answers.touched), "items": part, "continued": place + 1 < len(parts)}
            for place, part in enumerate(parts)
        ]
        written = list(zip(self._paths(number, answers.asked), records, strict=False))
        for path, record in reversed(written):  # the first last: where that is, all are
            files.publish_once(path, record)

    def _path(self, number: int, asked: Asked) -> Path:
        return next(self._paths(number, asked))

    def _paths(self, number: int, asked: Asked) -> Iterator[Path]:
        """Where its files go, one after the other."""
        assert self.folder is not None
        name = f"{number:04d}-{files.short_hash([asked.task.name, asked.domain, asked.role])}"
        yield self.folder / f"{name}.json"
        place = 1
        while True:
            yield self.folder / f"{name}-{place}.json"
            place += 1


def discard(folder: Path) -> None:
    """The report in this folder is whole, or to be made anew: what it was made of goes."""
    files.discard_folder(folder / FOLDER)


def _read(path: Path) -> tuple[list[Item], Touched, bool]:
    """What :meth:`Kept.keep` has written; whole numbers stay whole, and lists are tuples again."""
    record = files.read_json(path, kind=DataError, what="answers of an eval")
    try:
        tokens, edited, norm = record["touched"]
        items = []
        for written in record["items"]:
            values = {name: tuple(value) if isinstance(value, list) else value for name, value in written["values"]}
            items.append(Item(**written | {"values": values, "weights": dict(written["weights"])}))
        return items, Touched(tokens, edited, norm), bool(record.get("continued", False))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        hint = "delete it and run the same command again"
        raise DataError(f"{path} is not answers of an eval: {error!r:.80}; {hint}") from error
