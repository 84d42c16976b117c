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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_forge.data.texts.formats import READERS
from sae_forge.errors import DataError, ForgeError, did_you_mean
from sae_forge.settings import presets
from sae_forge.store import files
from sae_forge.tasks.records import iter_records, read_passage, read_prompt, read_question

Check = Callable[[Mapping[str, Any], str], object]
ROWS = 10_000
"""Of a corpus without end, if ``--rows`` says nothing."""


@dataclass(frozen=True)
class Part:
    """One file to be: where its records are, and what each must have."""

    file: str
    source: str
    """A ``datasets`` id with configuration and split, as every flag of text takes it."""
    check: Check
    count: int | None = None
    """Records that it is known to hold; another number is said, not refused."""
    endless: bool = False
    """Whether only its beginning is taken."""
    ask: str = ""
    """Where to ask for it, if it is gated."""


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


def _muse(corpus: str) -> tuple[Part, ...]:
    name, hub = f"muse-{corpus.lower()}", f"muse-bench/MUSE-{corpus}"
    asked = {
        f"knowmem-{role}{end}": (f"knowmem@{role}_qa{split}", _answered)
        for role in ("forget", "retain")
        for end, split in (("", ""), ("-shots", "_icl"))
    }
    texts = {f"privleak-{side}": (f"privleak@{side}", _text) for side in ("forget", "retain", "holdout")}
    raw = {side: (f"raw@{side}", _text) for side in ("forget", "retain1", "retain2", "holdout")}
    folds = {f"{kind}-{fold}": (f"{kind}@forget_{fold}", _text) for kind in ("scal", "sust") for fold in range(1, 5)}
    every = {"verbmem": ("verbmem@forget", _recited), **asked, **texts, **raw, **folds}
    return tuple(Part(f"{name}-{part}.jsonl", f"{hub}:{where}", check) for part, (where, check) in every.items())


def _tofu() -> tuple[Part, ...]:
    hub, parts = "locuslab/TOFU", []
    for share in ("01", "05", "10"):
        rest = f"{100 - int(share):02d}"
        parts += [(f"forget{share}", _answered), (f"retain{rest}", _answered), (f"holdout{share}", _answered)]
        parts += [(f"forget{share}_perturbed", _perturbed)]
    parts += [("full", _answered), ("retain_perturbed", _perturbed)]
    parts += [("real_authors_perturbed", _perturbed), ("world_facts_perturbed", _perturbed)]
    return tuple(Part(f"tofu-{name}.jsonl", f"{hub}:{name}@train", check) for name, check in parts)


BIO = "huggingface.co/datasets/cais/wmdp-bio-forget-corpus, with a Hub account, then hf auth login"
BENCHMARKS: Mapping[str, tuple[Part, ...]] = {
    **{
        f"wmdp-{field}": (Part(f"wmdp-{field}.jsonl", f"cais/wmdp:wmdp-{field}@test", _question, count),)
        for field, count in (("bio", 1273), ("cyber", 1987), ("chem", 408))
    },
    "wmdp-bio-corpora": (
        Part("wmdp-bio-forget.jsonl", "cais/wmdp-bio-forget-corpus@train", _text, ask=BIO),
        Part("wmdp-bio-retain.jsonl", "cais/wmdp-corpora:bio-retain-corpus@train", _text, 60_887),
    ),
    "wmdp-cyber-corpora": (
        Part("wmdp-cyber-forget.jsonl", "cais/wmdp-corpora:cyber-forget-corpus@train", _text, 1000),
        Part("wmdp-cyber-retain.jsonl", "cais/wmdp-corpora:cyber-retain-corpus@train", _text, 4473),
    ),
    "wikitext-2": tuple(
        Part(f"wikitext-2-{split}.jsonl", f"Salesforce/wikitext:wikitext-2-raw-v1@{split}", _line)
        for split in ("train", "validation", "test")
    ),
    "openwebtext": (Part("openwebtext.jsonl", "Skylion007/openwebtext@train", _text, endless=True),),
    "tinystories": (Part("tinystories.jsonl", "roneneldan/TinyStories@train", _text, endless=True),),
    "muse-news": _muse("News"),
    "muse-books": _muse("Books"),
    "tofu": _tofu(),
}
FAMILIES: Mapping[str, Callable[[str], tuple[Part, ...]]] = {
    "mmlu": lambda subject: (
        Part(f"{subject}.jsonl", f"cais/mmlu:{subject}@test", _question),
        Part(f"{subject}_dev.jsonl", f"cais/mmlu:{subject}@dev", _question, 5),
    ),
    "mmlu-redux": lambda subject: (
        Part(f"{subject}_redux.jsonl", f"edinburgh-dawg/mmlu-redux-2.0:{subject}@test", _question),
    ),
}
"""Benchmarks by subject, ``mmlu:anatomy``."""


def parts_of(name: str) -> tuple[Part, ...]:
    """The files that a name stands for.

    Raises:
        DataError: there is no such benchmark.
    """
    family, _, subject = name.partition(":")
    if family in FAMILIES and subject.replace("_", "").isalnum():
        return FAMILIES[family](subject)
    if name not in BENCHMARKS:
        known = [*BENCHMARKS, *(f"{one}:SUBJECT" for one in FAMILIES)]
        raise DataError(f"{name} is no benchmark here{did_you_mean(name, known)}; there are {', '.join(known)}")
    return BENCHMARKS[name]


def needed_by(preset: str) -> tuple[Part, ...]:
    """The question files that a preset names, each where it is known.

    Raises:
        DataError: there is no such preset.
    """
    if preset not in presets():
        raise DataError(f"{preset} is no preset{did_you_mean(preset, presets())}; there are {', '.join(presets())}")
    every = {part.file: part for parts in BENCHMARKS.values() for part in parts}
    return tuple(
        every.get(file) or FAMILIES["mmlu"](file.removesuffix(".jsonl"))[0]
        for file in presets()[preset].get("needs", {})
    )


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
        part.check(record, where)
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
