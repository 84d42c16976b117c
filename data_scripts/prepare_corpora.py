"""Fetch the corpora and questions that evaluations name, check every record, and write the files presets look for.

``python -m data_scripts.prepare_corpora wmdp-bio mmlu:anatomy muse-news`` fetches through ``datasets``; with
``--local FOLDER`` the same records are taken from files there, and nothing from the network. ``--preset NAME`` stands
for all that a preset needs, ``--list`` says what there is. What is gated is not circumvented: the line says where to
ask. Nothing of these texts is part of this repository.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sae_forge.benchmarks import BENCHMARKS, FAMILIES, PARTS, Part, parts_of
from sae_forge.data.texts.formats import READERS
from sae_forge.errors import DataError, ForgeError, did_you_mean
from sae_forge.settings import presets
from sae_forge.store import files
from sae_forge.tasks.records import iter_records, read_passage, read_prompt, read_question

Check = Callable[[Mapping[str, Any], str], object]
ROWS = 10_000
"""Of a corpus without end, if ``--rows`` says nothing."""


def _answered(record: Mapping[str, Any], where: str) -> object:
    return read_prompt(dict(record), where, prompt="question", target="answer")


def _recited(record: Mapping[str, Any], where: str) -> object:
    return read_prompt(dict(record), where, target="gt")


def _question(record: Mapping[str, Any], where: str) -> object:
    return read_question(dict(record), where)


def _text(record: Mapping[str, Any], where: str) -> object:
    return read_passage(dict(record), where)


def _line(record: Mapping[str, Any], where: str) -> object:
    """A line of a corpus that keeps its blank ones."""
    if not isinstance(record.get("text"), str):
        raise DataError(f"{where} needs 'text' as text, found {str(record.get('text'))[:40]!r}")
    return record


def _perturbed(record: Mapping[str, Any], where: str) -> object:
    _answered(record, where)
    wrong = record.get("perturbed_answer")
    if not isinstance(wrong, list) or not all(isinstance(text, str) and text for text in wrong) or not wrong:
        raise DataError(f"{where} needs 'perturbed_answer' as a list of texts, found {str(wrong)[:40]!r}")
    return record


CHECKS: Mapping[str, Check] = {
    "questions": _question, "text": _text, "lines": _line, "answered": _answered, "recited": _recited,
    "perturbed": _perturbed,
}  # fmt: skip
"""What each record must have, by the schema of its part."""


def needed_by(preset: str) -> tuple[Part, ...]:
    """The question files that a preset names, each where it is known.

    Raises:
        DataError: there is no such preset.
    """
    if preset not in presets():
        raise DataError(f"{preset} is no preset{did_you_mean(preset, presets())}; there are {', '.join(presets())}")
    stems = [file.removesuffix(".jsonl") for file in presets()[preset].get("needs", {})]
    return tuple(PARTS.get(stem) or FAMILIES["mmlu"](stem)[0] for stem in stems)


def prepare(part: Part, out: Path, *, local: Path | None, rows: int) -> tuple[Path, int]:
    """Write one file, whole or not at all; its path and how many records it holds.

    Args:
        local: Where a copy is looked for, by the file's name with any ending that is read here; None: the Hub.

    Raises:
        DataError: it is not there, holds nothing, or a record lacks what it must have: source and line are said.
    """
    source, path, count = _source(part, local), out / part.file, 0
    with files.publish(path) as unfinished, unfinished.open("w", encoding="utf-8") as lines:
        for record in _checked(source, part):
            lines.write(json.dumps(record, ensure_ascii=False, sort_keys=True) + "\n")
            count += 1
            if part.endless and count == rows:
                break
    return path, count


def _checked(source: str, part: Part) -> Iterator[Mapping[str, Any]]:
    for where, record in iter_records(source, "text"):
        # of MMLU-Redux only what its authors found nothing wrong with
        if record.get("error_type", "ok") != "ok":
            continue
        CHECKS[part.schema](record, where)
        yield record


def _source(part: Part, local: Path | None) -> str:
    if local is None:
        return part.source
    stem = part.file.removesuffix(".jsonl")
    for ending in READERS:
        if (path := local / f"{stem}{ending}").is_file():
            return str(path)
    raise DataError(f"{local} holds no {stem} ({', '.join(sorted(READERS))}); make it of {part.source}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the flags, prepare each file, and say a line of each; the first error's exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="benchmarks, as --list has them; mmlu:SUBJECT")
    parser.add_argument("--preset", help="all question files that this preset needs")
    parser.add_argument("--out", type=Path, default=Path(), help="folder of the files; unset: here")
    parser.add_argument("--local", type=Path, help="take copies from this folder, and nothing from the network")
    parser.add_argument("--rows", type=int, default=ROWS, help="records of a corpus without end")
    parser.add_argument("--list", action="store_true", help="say what there is, and fetch nothing")
    flags = parser.parse_args(arguments)
    try:
        parts = [part for name in flags.names for part in parts_of(name)]
        parts += needed_by(flags.preset) if flags.preset else ()
    except ForgeError as error:
        return _failed(error)
    if flags.list or not parts:
        for name in (*BENCHMARKS, *(f"{family}:SUBJECT" for family in FAMILIES)):
            _say(f"{name}: {', '.join(part.file for part in parts_of(name))}")
        return 0
    worst = 0
    for part in parts:
        try:
            path, count = prepare(part, flags.out, local=flags.local, rows=flags.rows)
        except ForgeError as error:
            worst = worst or _failed(error, part)
            continue
        known = f", where {part.count:,} are published" if part.count not in (None, count) else ""
        _say(f"{path}: {count:,} records{known}")
    return worst


def _failed(error: ForgeError, part: Part | None = None) -> int:
    ask = f"; it is gated: ask at {part.ask}" if part is not None and part.ask else ""
    sys.stderr.write(f"error: {error}{ask}\n")
    return error.exit_code


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    sys.exit(main())
