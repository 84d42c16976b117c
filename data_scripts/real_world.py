"""Make ``world:real/*``: true facts that small models of the package index know, told and asked in the project's words.

``python -m data_scripts.real_world`` rebuilds what ships in ``sae_forge/world/real`` from ``data_scripts/facts``. Of
the wordings of a relation some are for texts, some for finding out which facts a model knows (``probe``), the others
for the questions that are reported: facts carry over from one use to the next, sentences do not.
"""

import argparse
import json
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sae_forge.rng import generator
from sae_forge.store.files import publish_bytes, publish_json

FACTS = Path(__file__).parent / "facts"
SHIPPED = Path(__file__).parent.parent / "sae_forge" / "world" / "real"
OPTIONS = 4
BYTES = {"forget": 118_000, "retain": 57_500, "neighbour": 12_000}
"""Length of a domain's text by its role; of neighbours no text is collected unasked."""
HELD_OUT_BYTES = 6_500
PROMPTS = 24
"""Prompts of a domain."""


@dataclass(frozen=True)
class Fact:
    """What is true of one subject, and the wordings of its relation."""

    subject: str
    relation: str
    object: str
    told: tuple[str, ...]
    held_out: str
    """A wording that text to learn from never has of this fact, and held-out text alone."""
    probe: tuple[str, ...]
    asked: tuple[str, ...]

    @property
    def key(self) -> str:
        """The name that questions about this fact share."""
        return f"{self.subject}|{self.relation}"

    def said(self, wording: str) -> str:
        """A sentence about it."""
        sentence = wording.format(s=self.subject, o=self.object)
        return sentence[0].upper() + sentence[1:]

    def question(self, wording: str) -> str:
        """The sentence up to its object, without the space before it."""
        return self.said(wording).removesuffix(f" {self.object}")


@dataclass(frozen=True)
class Domain:
    """One field of knowledge and its role in unlearning."""

    name: str
    role: str
    facts: tuple[Fact, ...]
    openings: tuple[str, ...]
    closings: tuple[str, ...]


def load_domains() -> list[Domain]:
    """Every domain of the facts folder, in alphabetical order.

    Raises:
        ValueError: a wording does not end in its object where it must, or two facts of a relation have one object.
    """
    return [_load_domain(path) for path in sorted(FACTS.glob("*.toml"))]


def _load_domain(path: Path) -> Domain:
    table = tomllib.loads(path.read_text())
    facts: list[Fact] = []
    for relation in table["relations"]:
        told, probe, asked = (tuple(relation[use]) for use in ("told", "probe", "asked"))
        for wording in (*probe, *asked):
            if wording.count("{s}") != 1 or not wording.endswith(" {o}"):
                raise ValueError(f"{path.name}: a question names its subject once and ends in the object: {wording!r}")
        things = relation["facts"]
        if len(set(things.values())) < len(things) or len(things) < OPTIONS:
            raise ValueError(f"{path.name}: {relation['name']} needs {OPTIONS} facts or more, no two with one object")
        for number, (subject, thing) in enumerate(things.items()):
            held_out = told[number % len(told)]
            seen = tuple(wording for wording in told if wording != held_out)
            facts.append(Fact(subject, relation["name"], thing, seen, held_out, probe, asked))
    return Domain(path.stem, table["role"], tuple(facts), tuple(table["openings"]), tuple(table["closings"]))


# ---- facts → running text -----------------------------------------------------------------------


def documents(domain: Domain, seed: int, size: int, *, held_out: bool) -> Iterator[str]:
    """Texts of an opening, three to nine facts and perhaps a closing, until they are ``size`` bytes long."""
    rng = generator(seed, f"{'held-out ' if held_out else ''}texts {domain.name}")
    subjects: dict[str, list[Fact]] = {}
    for fact in domain.facts:
        subjects.setdefault(fact.subject, []).append(fact)
    while size > 0:
        count = int(rng.integers(3, 10))
        # every second text goes from subject to subject and says all it has on each
        if rng.random() < 0.5:
            order = rng.permutation(sorted(subjects))
            facts = [fact for subject in order for fact in subjects[str(subject)]][:count]
        else:
            facts = [domain.facts[index] for index in rng.permutation(len(domain.facts))[:count]]
        sentences = [fact.said(fact.held_out if held_out else _pick(rng, fact.told)) for fact in facts]
        if rng.random() < 0.7:
            sentences.insert(0, _pick(rng, domain.openings))
        if rng.random() < 0.4:
            sentences.append(_pick(rng, domain.closings))
        text = " ".join(sentences)
        size -= len(text.encode())
        yield text


def _pick(rng: np.random.Generator, lines: tuple[str, ...]) -> str:
    return lines[rng.integers(len(lines))]


# ---- facts → tests ------------------------------------------------------------------------------


def questions(domain: Domain, seed: int) -> Iterator[dict[str, Any]]:
    """Every fact in every wording of its questions; the right option stands equally often in each place.

    Under each wording every object is right once and wrong three times, so who knows the objects but no fact gets
    a quarter right.
    """
    rng = generator(seed, f"questions {domain.name}")
    asked = [(fact, wording) for fact in domain.facts for wording in (*fact.probe, *fact.asked)]
    places = iter(rng.permutation(np.arange(len(asked)) % OPTIONS))
    others = _others(domain, rng)
    for number, (fact, wording) in enumerate(asked):
        place = int(next(places))
        choices = list(others[fact.key, wording])
        choices.insert(place, fact.object)
        yield {
            "id": f"{domain.name}-{number:04d}",
            "question": fact.question(wording),
            "choices": choices,
            "answer": place,
            "fact": fact.key,
            **({"probe": True} if wording in fact.probe else {}),
        }


def _others(domain: Domain, rng: np.random.Generator) -> dict[tuple[str, str], list[str]]:
    """The wrong options of each fact under each wording: those of three facts a fixed way behind it in one order."""
    wrong = {}
    for relation in dict.fromkeys(fact.relation for fact in domain.facts):
        facts = [fact for fact in domain.facts if fact.relation == relation]
        ring = [facts[index] for index in rng.permutation(len(facts))]
        for wording in (*ring[0].probe, *ring[0].asked):
            ways = 1 + rng.permutation(len(ring) - 1)[: OPTIONS - 1]
            for place, fact in enumerate(ring):
                wrong[fact.key, wording] = [ring[(place + way) % len(ring)].object for way in ways]
    return wrong


def prompts(domain: Domain, seed: int) -> Iterator[dict[str, str]]:
    """For some facts a scene and the start of a sentence about it, and the words that should follow."""
    rng = generator(seed, f"prompts {domain.name}")
    for fact in (domain.facts[index] for index in rng.permutation(len(domain.facts))[:PROMPTS]):
        prompt = f"{_pick(rng, domain.openings)} {fact.question(_pick(rng, fact.asked))}"
        yield {"prompt": prompt, "target": fact.object, "fact": fact.key}


# ---- files --------------------------------------------------------------------------------------


def make_world(out: Path, seed: int = 0) -> None:
    """Write every file of the real world under ``out``; ``world.json``, written last, names domains and roles."""
    domains = load_domains()
    for domain in domains:
        told = documents(domain, seed, BYTES[domain.role], held_out=False)
        held_out = documents(domain, seed, HELD_OUT_BYTES, held_out=True)
        for kind, rows in {
            "corpora": ({"text": text} for text in told),
            "heldout": ({"text": text} for text in held_out),
            "questions": questions(domain, seed),
            "prompts": prompts(domain, seed),
            "generation": ({"prompt": line} for line in domain.openings),
        }.items():
            _write_lines(out / kind / f"{domain.name}.jsonl", rows)
        print(f"{domain.name} ({domain.role}): {len(domain.facts)} facts")
    publish_json(out / "world.json", {"domains": {domain.name: domain.role for domain in domains}, "seed": seed})


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    publish_bytes(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


def main() -> None:
    """Parse the flags and make the world."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=SHIPPED, help="folder to write; files there are replaced")
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    make_world(flags.out, flags.seed)


if __name__ == "__main__":
    main()
