"""What one string names: files, a folder, a glob or an id; and of it a split, a column, a stretch of its records.

What exists on disk wins over every other reading, so a name may hold commas, colons and brackets.
"""

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any

import xxhash

from sae_forge import benchmarks, builtin
from sae_forge.data.texts.formats import READERS, suffix_of
from sae_forge.errors import DataError

_SAMPLE_BYTES = 16 * 2**20
FEW = 10
"""Records below which a percentage of text cuts a text in two, so that one book too can be read in part."""
_PART = re.compile(r"(.+)\[(\d{0,12}|\d{1,12}%):(\d{0,12}|\d{1,12}%)\]")
_SPACE = re.compile(r"\s")
_ID = re.compile(
    r"(?P<place>[\w-][\w.-]*(?:/[\w-][\w.-]*)?)(?::(?P<config>[\w.+-]+))?(?:@(?P<split>[\w.+-]+))?(?::(?P<column>.+))?",
    re.ASCII,
)
EVERY = "all"
"""The split that stands for all of them together."""
SPLITS = {
    "train": "train|training",
    "validation": "validation|valid|val|dev",
    "test": "test|testing|eval|evaluation|held[-_ ]?out|hold[-_ ]?out",
}
"""Splits, and the words in the name of a file or folder that stand for each."""
_SPLIT_WORDS = {name: re.compile(f"(?<![a-z])(?:{words})(?![a-z])") for name, words in SPLITS.items()}
_SHARDED = re.compile(r"(.+?)-\d{5}-of-\d{5}.*")


@dataclass(frozen=True)
class Part:
    """A stretch of records: bounds are numbers of records, or percentages of them."""

    start: str
    end: str

    @property
    def needs_total(self) -> bool:
        """Whether it takes the number of all records to know which are meant."""
        return "%" in self.start + self.end

    def of(self, total: int) -> tuple[int, int | None]:
        """The first record and the one before which it ends; None: with the last."""

        def place(bound: str) -> int:
            return round(total * int(bound[:-1]) / 100) if bound.endswith("%") else int(bound)

        return place(self.start or "0"), place(self.end) if self.end else None

    def texts(self, every: Sequence[Any]) -> list[Any]:
        """The stretch of a few documents, each as long as any other; a text with a bound in it is cut after a word."""

        def place(bound: str) -> float:
            return len(every) * int(bound[:-1]) / 100 if bound.endswith("%") else int(bound)

        start, end = place(self.start or "0"), place(self.end) if self.end else len(every)
        kept = []
        for number, document in enumerate(every):
            first, last = (min(max(bound - number, 0), 1) for bound in (start, end))
            if isinstance(document, str):
                kept.append(document[_word_end(document, first) : _word_end(document, last)])
            elif round(first) < round(last):  # a conversation is taken whole
                kept.append(document)
        return [document for document in kept if document]

    def split(self) -> "tuple[Part, Part] | None":
        """Its first tenth and the rest; None where its bounds leave no tenth to count."""
        kind = "%" if self.needs_total else ""
        if not self.end or any(bound and bound.endswith("%") != bool(kind) for bound in (self.start, self.end)):
            return None
        start, end = (int(bound.rstrip("%") or 0) for bound in (self.start, self.end))
        middle = f"{start + max(1, (end - start) // 10)}{kind}"
        return (Part(self.start, middle), Part(middle, self.end)) if end - start > 1 else None

    def __str__(self) -> str:
        return f"[{self.start}:{self.end}]"


def _word_end(text: str, share: float) -> int:
    """Where a text is cut so that about this share of it is before."""
    behind = _SPACE.search(text, max(0, round(share * len(text)) - 1)) if 0 < share < 1 else None
    return behind.end() if behind else round(share) * len(text)


@dataclass(frozen=True)
class Named:
    """A source, taken apart."""

    place: str
    """A path, a glob, ``world:KIND/DOMAIN``, or the id of a dataset."""
    config: str | None = None
    split: str | None = None
    column: str | None = None
    part: Part | None = None
    benchmark: benchmarks.Part | None = None
    """What it is of a benchmark, where it was named as one and no file of its name is here."""

    @cached_property
    def files(self) -> list[Path] | None:
        """The files it stands for, in order, whatever their split; None where it is an id."""
        if not _is_there(self.place):
            return None
        path = local_path(self.place)
        if path.is_dir():
            return visible_files(path)
        return [path] if path.exists() else _matches(self.place)

    @property
    def said(self) -> str:
        """What stands behind the place: ``@split:column[:10]``, with what of it was given."""
        split = f"@{self.split}" if self.split else ""
        return split + (f":{self.column}" if self.column else "") + (str(self.part) if self.part else "")


def named(source: str) -> Named:
    """What a source says, taken apart: ``PLACE@SPLIT:COLUMN[FIRST:END]``, all but the place left out at will.

    Of an id the configuration comes first: ``ID:CONFIG@SPLIT:COLUMN``. A benchmark's name is a file of that name, else
    its place on the Hub.

    Raises:
        DataError: there is nothing of this name, and it is no id; or its world or part is unknown.
    """
    if _is_there(source):
        return Named(source)
    part, whole = None, source
    if behind := _PART.fullmatch(source):
        whole, part = behind[1], Part(behind[2], behind[3])
        if _is_there(whole):
            return Named(whole, part=part)
    colons = [place.start() for place in re.finditer(":", whole)]
    for end in [*colons[whole.startswith(builtin.SCHEME) :], len(whole)]:
        place, column = whole[:end], whole[end + 1 :] or None
        if _is_there(place):
            return Named(place, column=column, part=part)
        folder, at, split = place.rpartition("@")
        if at and _is_there(folder):
            return Named(folder, split=split, column=column, part=part)
    if (known := benchmarks.part_of(whole)) is not None:
        column = None if whole.startswith(tuple(benchmarks.FAMILIES)) else whole.partition(":")[2] or None
        if file := next((f"{known.name}{end}" for end in READERS if Path(f"{known.name}{end}").is_file()), None):
            return Named(file, column=column, part=part)
        there = _ID.fullmatch(known.source)
        assert there is not None
        return Named(there["place"], there["config"], there["split"], column, part, known)
    if builtin.is_builtin(whole):
        builtin.locate(whole.split(":", 2)[0] + ":" + whole.split(":", 2)[1])  # says which there are
    if "://" in whole:
        raise DataError(f"{whole} is a URL, and text is read from disk: download it and give the file")
    kind, _, rest = whole.partition(":")
    if rest and _is_there(rest):
        raise DataError(f"{whole} does not exist; give {rest} alone: how it is read follows from its name, not {kind}:")
    if (id_ := _ID.fullmatch(whole)) is None or _looks_local(id_["place"]):
        raise DataError(f"{source} does not exist; give a file, a folder, a glob, a datasets id or world:KIND/DOMAIN")
    return Named(id_["place"], id_["config"], id_["split"], id_["column"], part)


def local_path(source: str) -> Path:
    """Where a source would lie on this machine, whether or not it does."""
    return builtin.locate(source) if builtin.is_builtin(source) else Path(source)


def visible_files(folder: Path) -> list[Path]:
    """Every file below, in order of path, but for hidden ones."""
    below = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in below if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def _is_there(place: str) -> bool:
    if builtin.is_builtin(place):
        return builtin.is_there(place)
    try:
        return bool(place) and (Path(place).exists() or bool(_matches(place)))
    except (OSError, ValueError):  # too long a name, or a null character
        return False


def _matches(pattern: str) -> list[Path]:
    """The files a glob stands for, in order of path."""
    if not any(mark in pattern for mark in "*?["):
        return []
    path = Path(pattern)
    try:
        return sorted(file for file in Path(path.anchor).glob(str(path.relative_to(path.anchor))) if file.is_file())
    except (OSError, ValueError, NotImplementedError, IndexError):
        return []


def _looks_local(place: str) -> bool:
    return suffix_of(PurePath(place)) in READERS


def first_tenth_apart(source: str) -> tuple[str, str]:
    """Two sources: about the first tenth of this one, and the rest.

    Raises:
        DataError: it is a part of something already, and that part cannot be halved.
    """
    known = named(source)
    parts = (Part("", "10%"), Part("10%", "")) if known.part is None else known.part.split()
    if parts is None:
        raise DataError(
            f"{source} is a stretch of which no tenth can be told; name held-out text with --forget_eval "
            "and --retain_eval, or give text without [:]"
        )
    whole = source if known.part is None else source.removesuffix(str(known.part))
    return f"{whole}{parts[0]}", f"{whole}{parts[1]}"


# ---- splits -------------------------------------------------------------------------------------


def split_of(path: PurePath) -> str | None:
    """The split that a path names, else None: ``train.jsonl``, ``dev/x.csv``, ``retain1-00000-of-00002.parquet``."""
    sharded = _SHARDED.fullmatch(path.name)
    for part in (path.name.removesuffix(suffix_of(path)), *reversed(path.parts[:-1])):
        for name, words in _SPLIT_WORDS.items():
            if words.search(part.lower()):
                return name
        if sharded:
            return sharded[1]
    return None


def canonical(split: str) -> str:
    """A split as the others are called: ``dev`` is ``validation``."""
    return next((name for name, words in _SPLIT_WORDS.items() if words.fullmatch(split.lower())), split)


def of_split(files: Sequence[Path], place: str, split: str, *, spelled: bool = False) -> tuple[list[Path], str | None]:
    """The files of one split, and a sentence on what was left out, if anything was.

    Files that name no split go with the one that is asked for where no other is there, and are left out else. A glob
    that matches one split alone means it.

    Args:
        spelled: The source itself names the split, so nothing else will do.

    Raises:
        DataError: other splits are there and this one is not, or it is spelled out and no file names any.
    """
    root = Path(place) if Path(place).is_dir() else Path(place).parent
    splits = {
        file: split_of(file.relative_to(root) if file.is_relative_to(root) else PurePath(file.name)) for file in files
    }
    there = sorted({name for name in splits.values() if name is not None})
    wanted = canonical(split)
    if split == EVERY or there == [wanted]:
        return list(files), None
    if not spelled and (not there or (len(there) == 1 and not Path(place).is_dir())):
        return list(files), None
    if not there:
        raise DataError(f"{place}@{split}: no file there names a split; give {place} alone, or a file that is {split}")
    if wanted not in there:
        example = next(file.name for file, name in splits.items() if name == there[0])
        raise DataError(
            f"{place} holds {' and '.join(there)} text by the names of its files (as {example}), and no {split}; "
            f"say which is meant: {place}@{there[0]}, {place}@{EVERY} for all of it, or --split"
        )
    chosen = [file for file, name in splits.items() if name == wanted]
    left = ", ".join(name or "files of no split" for name in dict.fromkeys(splits.values()) if name != wanted)
    return chosen, f"{place}: the split {wanted}, {len(chosen)} of {len(files)} files; left out: {left}"


# ---- names and identities -----------------------------------------------------------------------


def corpus_name(source: str) -> str:
    """A folder name for a source: a file's stem, or an id, and what else was said behind ``--``."""
    try:
        known = named(source)
    except DataError:  # what is not there must be called something in the message
        known = Named(source)
    if known.files:
        path = Path(known.place.removeprefix(builtin.SCHEME))
        # The name as given, not where a link leads: the Hub's cache links readable names to hashes.
        name = path.name.strip(".") or path.resolve().name
        name = name.removesuffix(path.name[-len(suffix_of(path)) :]) if _looks_local(name) else name
        name = name if path.exists() or builtin.is_builtin(known.place) else f"{path.parent.name}-{name}"  # a glob
    elif known.benchmark:
        name = known.benchmark.name
    else:
        name = re.sub("[/:@]", "--", known.place + (f":{known.config}" if known.config else ""))
    part = f"--{known.part.start or 0}-{known.part.end or 'end'}".replace("%", "pct") if known.part else ""
    more = [f"--{said}" for said in (None if known.benchmark else known.split, known.column) if said]
    return _safe(name + "".join(more) + part) or "corpus"


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-")[:100]


def told_apart(sources: Sequence[str], name_of: Callable[[str], str] = corpus_name) -> list[str]:
    """A name for each source, in order; one whose name is taken has that of its folder before it.

    Raises:
        DataError: a source is given twice.
    """
    names: list[str] = []
    for number, source in enumerate(sources):
        name = name_of(source)
        folders = iter(Path(source).absolute().parent.parts[:0:-1])
        while name in names:
            folder = next(folders, None)
            if source in sources[:number] or folder is None:
                raise DataError(f"{source} is given twice, or another of its name; give each once")
            name = _safe(f"{folder}-{name}")
        names.append(name)
    return names


def corpus_identity(source: str) -> str:
    """What a source is, for a fingerprint: an id as given, else a name and a hash of the content; never a path.

    Of a file larger than 32 MiB only the length and both ends are hashed.
    """
    try:
        known = named(source)
    except DataError:
        return source
    if known.files is None:
        return source
    root = local_path(known.place)
    hasher = xxhash.xxh3_128()
    for file in known.files:
        inner = file.relative_to(root).as_posix() if file.is_relative_to(root) else file.name
        hasher.update(f"{inner!r} {file.stat().st_size}\n".encode())
        with file.open("rb") as content:
            hasher.update(content.read(_SAMPLE_BYTES))
            content.seek(max(content.tell(), file.stat().st_size - _SAMPLE_BYTES))
            hasher.update(content.read(_SAMPLE_BYTES))
    name = known.place if builtin.is_builtin(known.place) else corpus_name(known.place)
    return f"{name} xxh3:{hasher.hexdigest()}{known.said}"


def cut(records: Iterator, part: Part | None, total: Callable[[], int]) -> Iterator:
    """A part of some records, of which there are ``total``."""
    if part is None:
        return records
    return itertools.islice(records, *part.of(total() if part.needs_total else 0))
