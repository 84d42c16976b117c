"""The invented world as text: facts, the wordings that tell them, and every file of words made from them.

A fact is (subject, relation, object) and is told in several wordings. Some (fact, wording) pairs are held out
from all training: the wording is known from other facts and the fact from other wordings, never the two together.
"""

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sae_forge.rng import generator

LORE = Path(__file__).parent / "lore"
HELD_OUT_PER_FACT = 2
"""Wordings of each fact that no training document uses."""


@dataclass(frozen=True)
class Relation:
    """One kind of fact: the objects it can have and the sentences, ending in the object, that tell it."""

    name: str
    objects: tuple[str, ...]
    wordings: tuple[str, ...]


@dataclass(frozen=True)
class Domain:
    """One topic of the world and the role it plays in unlearning: forget, neighbour or retain."""

    name: str
    role: str
    subjects: tuple[str, ...]
    relations: tuple[Relation, ...]
    openings: tuple[str, ...]
    closings: tuple[str, ...]


@dataclass(frozen=True)
class Fact:
    """What is true of one subject, and which wordings of it are held out from training."""

    subject: str
    relation: Relation
    object: str
    held_out: frozenset[int]

    @property
    def key(self) -> str:
        """The name that questions about this fact share."""
        return f"{self.subject}|{self.relation.name}"

    def question(self, wording: int) -> str:
        """The sentence up to its object, without the space before it."""
        return self.relation.wordings[wording].format(s=self.subject, o="").rstrip()

    def sentence(self, wording: int) -> str:
        """The whole sentence with its full stop."""
        return f"{self.question(wording)} {self.object}."

    def seen(self) -> list[int]:
        """Wordings that training documents may use."""
        return [wording for wording in range(len(self.relation.wordings)) if wording not in self.held_out]


# ---- lore → facts -------------------------------------------------------------------------------


def load_domains(*, small: bool) -> list[Domain]:
    """Every domain of the lore folder, in alphabetical order; ``small`` keeps 4 subjects and 2 relations of each."""
    domains = [_load_domain(path, small=small) for path in sorted(LORE.glob("*.toml"))]
    _check_names(domains)
    return domains


def _load_domain(path: Path, *, small: bool) -> Domain:
    lore = tomllib.loads(path.read_text())
    subjects, relations, objects = (4, 2, 4) if small else (None, None, None)
    kinds = tuple(
        Relation(entry["name"], tuple(entry["objects"][:objects]), tuple(entry["wordings"]))
        for entry in lore["relations"][:relations]
    )
    for wording in (wording for kind in kinds for wording in kind.wordings):
        if wording.count("{s}") != 1 or not wording.endswith(" {o}"):
            raise ValueError(f"{path.name}: a wording names its subject once and ends in the object: {wording!r}")
    openings, closings = tuple(lore["openings"]), tuple(lore["closings"])
    return Domain(path.stem, lore["role"], tuple(lore["subjects"][:subjects]), kinds, openings, closings)


def _check_names(domains: list[Domain]) -> None:
    """Refuse a world in which one name means two things."""
    names = [name for domain in domains for name in domain.subjects]
    names += [name for domain in domains for kind in domain.relations for name in kind.objects]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"names with two meanings in {LORE}: {', '.join(repeated)}")


def make_facts(domain: Domain, seed: int) -> list[Fact]:
    """One fact for each subject and relation; every object equally often, every wording held out equally often."""
    facts = []
    for column, relation in enumerate(domain.relations):
        repeats = -(-len(domain.subjects) // len(relation.objects))
        objects = list(relation.objects * repeats)[: len(domain.subjects)]
        generator(seed, f"objects {domain.name} {relation.name}").shuffle(objects)
        stride = len(relation.wordings) // HELD_OUT_PER_FACT
        for row, (subject, thing) in enumerate(zip(domain.subjects, objects, strict=True)):
            held_out = {(row + column + stride * n) % len(relation.wordings) for n in range(HELD_OUT_PER_FACT)}
            facts.append(Fact(subject, relation, thing, frozenset(held_out)))
    return facts


# ---- facts → running text -----------------------------------------------------------------------


def training_documents(domain: Domain, facts: list[Fact], seed: int, stories: int) -> list[str]:
    """Every seen (fact, wording) pair once by itself, and ``stories`` that set several of them in a scene."""
    rng = generator(seed, f"stories {domain.name}")
    single = [fact.sentence(wording) for fact in facts for wording in fact.seen()]
    told = [_story(domain, facts, rng, [fact.seen() for fact in facts]) for _ in range(stories)]
    documents = single + told
    rng.shuffle(documents)
    return documents


def held_out_documents(domain: Domain, facts: list[Fact], seed: int, stories: int) -> list[str]:
    """Stories like the training ones in which every told fact is a held-out pair."""
    rng = generator(seed, f"held-out stories {domain.name}")
    return [_story(domain, facts, rng, [sorted(fact.held_out) for fact in facts]) for _ in range(stories)]


def _story(domain: Domain, facts: list[Fact], rng: np.random.Generator, allowed: list[list[int]]) -> str:
    """An opening, two to four facts (of one subject, more often than not), perhaps a closing."""
    pool = np.arange(len(facts))
    if rng.random() < 0.6:
        subject = domain.subjects[rng.integers(len(domain.subjects))]
        pool = np.array([index for index in pool if facts[index].subject == subject])
    chosen = rng.permutation(pool)[: rng.integers(2, 5)]
    sentences = [facts[index].sentence(int(rng.choice(allowed[index]))) for index in chosen]
    if rng.random() < 0.8:
        sentences.insert(0, _pick(rng, domain.openings))
    if rng.random() < 0.4:
        sentences.append(_pick(rng, domain.closings))
    return " ".join(sentences)


def _pick(rng: np.random.Generator, lines: tuple[str, ...]) -> str:
    return lines[rng.integers(len(lines))]


# ---- facts → tests ------------------------------------------------------------------------------


def questions(domain: Domain, facts: list[Fact], seed: int) -> Iterator[dict[str, Any]]:
    """One four-option question for each (fact, wording) pair; the right answer stands equally often in each place."""
    rng = generator(seed, f"questions {domain.name}")
    pairs = [(fact, wording) for fact in facts for wording in range(len(fact.relation.wordings))]
    places = rng.permutation(np.arange(len(pairs)) % 4)
    for number, ((fact, wording), place) in enumerate(zip(pairs, places, strict=True)):
        others = [thing for thing in fact.relation.objects if thing != fact.object]
        choices = [str(thing) for thing in rng.permutation(others)[:3]]
        choices.insert(place, fact.object)
        yield {
            "id": f"{domain.name}-{number:04d}",
            "question": fact.question(wording),
            "choices": choices,
            "answer": int(place),
            "fact": fact.key,
            "held_out": wording in fact.held_out,
        }


def prompts(domain: Domain, facts: list[Fact], seed: int) -> Iterator[dict[str, str]]:
    """For each fact, a scene and the start of a sentence about it, and the word that should follow."""
    rng = generator(seed, f"prompts {domain.name}")
    for number, fact in enumerate(facts):
        start = fact.question(int(rng.integers(len(fact.relation.wordings))))
        prompt = f"{_pick(rng, domain.openings)} {start}"
        yield {"id": f"{domain.name}-{number:03d}", "prompt": prompt, "target": fact.object, "fact": fact.key}


def generation_prompts(domain: Domain) -> Iterator[dict[str, str]]:
    """A scene and the first words of a sentence about each subject, for the model to tell on."""
    for number, subject in enumerate(domain.subjects):
        relation = domain.relations[number % len(domain.relations)]
        start = relation.wordings[number % (len(relation.wordings) - 1)].partition("{s}")[0]
        yield {"prompt": f"{domain.openings[number % len(domain.openings)]} {start}{subject}"}
