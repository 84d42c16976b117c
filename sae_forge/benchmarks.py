"""Benchmarks by name: where on the Hub the records of each are, and which of them a flag means.

``wmdp-bio`` is a name: its questions where questions are asked for, its forget corpus after ``--forget``. A name stands
for a file of that name in the working folder, where one is there (``data_scripts.prepare_corpora`` writes these), and
else for the dataset. What is gated says where to ask. No record of any of them is part of this package.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from sae_forge.errors import DataError, did_you_mean

Schema = Literal["questions", "text", "lines", "answered", "recited", "perturbed"]
"""What its records are: with options; one text; one line of a text that keeps its blank ones; a question with its
answer; a prompt with what follows it; an answer with wrong ones beside it."""


@dataclass(frozen=True)
class Part:
    """One set of records."""

    name: str
    """What it is called here, and its file but for the ending."""
    source: str
    """A ``datasets`` id with configuration and split, as every flag of text takes it."""
    schema: Schema
    count: int | None = None
    """Records that it is known to hold."""
    endless: bool = False
    """Whether nobody takes all of it."""
    ask: str = ""
    """Where to ask for it, if it is gated."""

    @property
    def file(self) -> str:
        """The file that holds it."""
        return f"{self.name}.jsonl"

    @property
    def missing(self) -> str:
        """What to do where it cannot be had."""
        gated = f"; it is gated: ask at {self.ask}" if self.ask else ""
        return f"{self.name} is {self.source} of the Hub, or {self.file} here{gated}"


BIO = "huggingface.co/datasets/cais/wmdp-bio-forget-corpus, with a Hub account, then hf auth login"


def _muse(corpus: str) -> tuple[Part, ...]:
    name, hub = f"muse-{corpus.lower()}", f"muse-bench/MUSE-{corpus}"
    asked: dict[str, tuple[str, Schema]] = {
        f"knowmem-{role}{end}": (f"knowmem@{role}_qa{split}", "answered")
        for role in ("forget", "retain")
        for end, split in (("", ""), ("-shots", "_icl"))
    }
    texts = {f"privleak-{side}": f"privleak@{side}" for side in ("forget", "retain", "holdout")}
    texts |= {side: f"raw@{side}" for side in ("forget", "retain1", "retain2", "holdout")}
    texts |= {f"{kind}-{fold}": f"{kind}@forget_{fold}" for kind in ("scal", "sust") for fold in range(1, 5)}
    every = {"verbmem": ("verbmem@forget", "recited"), **asked, **{key: (at, "text") for key, at in texts.items()}}
    return tuple(Part(f"{name}-{part}", f"{hub}:{at}", schema) for part, (at, schema) in every.items())


def _tofu() -> tuple[Part, ...]:
    names: dict[str, Schema] = {}
    for share in ("01", "05", "10"):
        rest = f"{100 - int(share):02d}"
        names |= {f"forget{share}": "answered", f"retain{rest}": "answered", f"holdout{share}": "answered"}
        names[f"forget{share}_perturbed"] = "perturbed"
    names |= {"full": "answered", "retain_perturbed": "perturbed"}
    names |= {"real_authors_perturbed": "perturbed", "world_facts_perturbed": "perturbed"}
    return tuple(Part(f"tofu-{name}", f"locuslab/TOFU:{name}@train", schema) for name, schema in names.items())


BENCHMARKS: Mapping[str, tuple[Part, ...]] = {
    **{
        f"wmdp-{field}": (Part(f"wmdp-{field}", f"cais/wmdp:wmdp-{field}@test", "questions", count),)
        for field, count in (("bio", 1273), ("cyber", 1987), ("chem", 408))
    },
    "wmdp-bio-corpora": (
        Part("wmdp-bio-forget", "cais/wmdp-bio-forget-corpus@train", "text", ask=BIO),
        Part("wmdp-bio-retain", "cais/wmdp-corpora:bio-retain-corpus@train", "text", 60_887),
    ),
    "wmdp-cyber-corpora": (
        Part("wmdp-cyber-forget", "cais/wmdp-corpora:cyber-forget-corpus@train", "text", 1000),
        Part("wmdp-cyber-retain", "cais/wmdp-corpora:cyber-retain-corpus@train", "text", 4473),
    ),
    "wikitext-2": tuple(
        Part(f"wikitext-2-{split}", f"Salesforce/wikitext:wikitext-2-raw-v1@{split}", "lines")
        for split in ("train", "validation", "test")
    ),
    "openwebtext": (Part("openwebtext", "Skylion007/openwebtext@train", "text", endless=True),),
    "tinystories": (Part("tinystories", "roneneldan/TinyStories@train", "text", endless=True),),
    "muse-news": _muse("News"),
    "muse-books": _muse("Books"),
    "tofu": _tofu(),
}
FAMILIES: Mapping[str, Callable[[str], tuple[Part, ...]]] = {
    "mmlu": lambda subject: (
        Part(subject, f"cais/mmlu:{subject}@test", "questions"),
        Part(f"{subject}_dev", f"cais/mmlu:{subject}@dev", "questions", 5),
    ),
    "mmlu-redux": lambda subject: (
        Part(f"{subject}_redux", f"edinburgh-dawg/mmlu-redux-2.0:{subject}@test", "questions"),
    ),
}
"""Benchmarks by subject, ``mmlu:anatomy``."""
PARTS: Mapping[str, Part] = {part.name: part for parts in BENCHMARKS.values() for part in parts}

TEXTS = ("forget", "retain", "forget_eval", "retain_eval")
QUESTIONS = ("forget_questions", "neighbour_questions", "retain_questions")
_MEANT: Mapping[str, Mapping[str, str]] = {
    **{
        f"wmdp-{field}": {flag: f"wmdp-{field}-{flag.removesuffix('_eval')}" for flag in TEXTS}
        for field in ("bio", "cyber")
    },
    "wikitext": dict(zip(TEXTS, ("wikitext-2-train",) * 2 + ("wikitext-2-test",) * 2, strict=True)),
    **{
        f"muse-{corpus}": {
            flag: f"muse-{corpus}-{part}"
            for flag, part in {
                **dict(zip(TEXTS, ("forget", "retain1", "forget", "retain2"), strict=True)),
                "verbmem": "verbmem", "knowmem_forget": "knowmem-forget", "knowmem_retain": "knowmem-retain",
                "privleak_forget": "privleak-forget", "privleak_holdout": "privleak-holdout",
            }.items()
        }
        for corpus in ("news", "books")
    },
}  # fmt: skip
"""Names that are sets of several parts: the part that each flag means."""


def meant(name: str, flag: str) -> str:
    """What a benchmark's name means after this flag, as ``sources.named`` takes it; any other text as it is.

    Raises:
        DataError: it is a benchmark, and has nothing of what the flag takes.
    """
    whole, bracket, part = name.partition("[")
    family, colon, rest = whole.partition(":")
    source = _MEANT.get(whole, {}).get(flag)
    if source is None and family == "tofu" and colon and f"tofu-{rest}" in PARTS:
        # answers are sentences that say of whom they speak, so they are the text; questions are not
        source = f"tofu-{rest}:answer" if flag in TEXTS else f"tofu-{rest}"
        if flag.startswith("tofu_") and f"tofu-{rest}_perturbed" in PARTS:
            source = f"tofu-{rest}_perturbed"
    if source is None and flag == "shot_questions" and family == "mmlu" and rest.replace("_", "").isalnum():
        source = f"{whole}@dev"
    source = source or whole
    known, wanted = part_of(source), "questions" if flag in QUESTIONS else "text" if flag in TEXTS else ""
    if not wanted or (known is None and whole not in _MEANT):
        return f"{source}{bracket}{part}"
    has = "text" if known is None or known.schema in ("lines", "answered") else known.schema
    if known is None or has != wanted or (has == "text" and wanted == "questions"):
        possible = [one.name for one in PARTS.values() if one.schema == wanted]
        possible += ["mmlu:SUBJECT"] if wanted == "questions" else []
        listed = ", ".join(possible[:12]) + (" …" if len(possible) > 12 else "")
        raise DataError(f"--{flag} {name}: it has no {wanted}; those that have are {listed}")
    return f"{source}{bracket}{part}"


def part_of(name: str) -> Part | None:
    """The part that this name is, a column and a split behind it aside; None where it is none."""
    family, _, rest = name.partition(":")
    if family in FAMILIES:
        subject, _, split = rest.partition("@")
        if not subject.replace("_", "").isalnum():
            return None
        parts = FAMILIES[family](subject)
        return next((one for one in parts if one.source.endswith(f"@{split or 'test'}")), None)
    return PARTS.get(family)


def parts_of(name: str) -> tuple[Part, ...]:
    """All that a name stands for.

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
