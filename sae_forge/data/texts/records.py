"""Records of any source, the one reader of text, questions and prompts alike: files, folders, globs, the world, ids."""

import csv
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import pyarrow as pa

from sae_forge import benchmarks
from sae_forge.data.texts import sources
from sae_forge.data.texts.formats import PLAIN, READERS, Choose, Placed, one_line, suffix_of
from sae_forge.errors import DataError, did_you_mean


@dataclass(frozen=True)
class Source:
    """One file, or one split of a dataset, not yet read."""

    name: str
    """As messages name it."""
    read: Callable[[Choose | None], Placed]
    rows: Callable[[], int | None] = lambda: None
    """How many records it has, where that is known without reading them."""


@dataclass(frozen=True)
class Opened:
    """A source, found and not yet read."""

    each: tuple[Source, ...]
    named: sources.Named
    note: str | None = None
    """What is to be said of how it was understood."""

    def records(self, chooser: Callable[[str], Choose] | None = None) -> Placed:
        """The records that :attr:`named` wants of all its files, each with its place (``a.jsonl line 3``)."""

        return sources.cut(self._everything(chooser), self.named.part, self._total)

    def fewer_than(self, number: int) -> bool:
        """Whether all that the place holds, of which :attr:`named` may want a part, is so few records."""
        known = [one.rows() for one in self.each]
        return (self._total() if None not in known else len(list(islice(self._everything(), number)))) < number

    def _everything(self, chooser: Callable[[str], Choose] | None = None) -> Placed:
        for one in self.each:
            for place, record in one.read(chooser and chooser(one.name)):
                yield f"{one.name} {place}", record

    def _total(self) -> int:
        known = [one.rows() for one in self.each]
        return sum(count for count in known if count) if None not in known else sum(1 for _ in self._everything())


def open_source(source: str, split: str) -> Opened:
    """What a source stands for: one file, each file of a folder in order of path, or one split of a dataset.

    Args:
        source: A file, a folder or a glob of them, ``world:KIND/DOMAIN``, or a ``datasets`` id; with ``@split``,
            ``:column`` and ``[first:end]`` behind it, as :func:`sources.named` has it.
        split: Split of a dataset, or of a folder whose files name several, unless the source names its own.

    Raises:
        DataError: it is not there, of no kind that is read here, or holds several splits and not this one.
    """
    from sae_forge.data.texts import hub_datasets

    known = sources.named(source)
    split, path = known.split or split, sources.local_path(known.place)
    if known.files is None:
        here = (known.place, known.config, split)
        near = "" if "/" in known.place else did_you_mean(known.place, (*benchmarks.PARTS, *benchmarks.BENCHMARKS))
        instead = f"; {known.benchmark.missing}" if known.benchmark else near
        return Opened(
            (
                Source(
                    known.place,
                    partial(hub_datasets.read_hub, *here, instead=instead),
                    partial(hub_datasets.rows, *here),
                ),
            ),
            known,
        )
    if path.is_dir() and hub_datasets.is_saved_dataset(path):
        return Opened((Source(str(path), partial(hub_datasets.read_saved_dataset, path, split)),), known)
    readable = [file for file in known.files if suffix_of(file) in READERS]
    if not readable:
        what = f"folder {path} holds nothing that is" if path.is_dir() else f"{known.place} is not"
        raise DataError(
            f"{what} read here: give files that end in {', '.join(PLAIN)}, with or without .gz, or a folder"
        )
    note = None
    if known.split or not path.is_file():
        readable, note = sources.of_split(readable, known.place, split, spelled=known.split is not None)
    return Opened(tuple(_open_file(file) for file in readable), known, note)


def brief(value: object) -> str:
    """A value of a record as messages show it."""
    return f"{json.dumps(value, default=str):.60}"


def _open_file(path: Path) -> Source:
    reader = READERS[suffix_of(path)]

    def read(choose: Choose | None) -> Placed:
        with _told(path):
            yield from reader(path, choose)

    def rows() -> int | None:
        if suffix_of(path) != ".parquet":
            return None
        import pyarrow.parquet as pq

        with _told(path):
            return pq.read_metadata(path).num_rows

    return Source(str(path), read, rows)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Say of a file that it cannot be read, whatever the library that tried has to say."""
    try:
        yield
    except (OSError, EOFError, ValueError, csv.Error, lzma.LZMAError, zlib.error, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read: {one_line(error)}") from error
