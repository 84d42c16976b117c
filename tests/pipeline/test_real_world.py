"""The world of true facts: schema, balance, and what no text or question of one domain may tell of another."""

import json
import re
from collections import Counter, defaultdict
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from data_scripts import real_world
from sae_forge import builtin
from sae_forge.data.texts.corpus import iter_texts
from sae_forge.errors import DataError
from sae_forge.settings import preset_of, presets, resolve
from sae_forge.study.settings import run_config
from sae_forge.tasks.records import half_of, load_questions

DOMAINS = builtin.domains(world_name=builtin.REAL)
FORGET = builtin.domains("forget", builtin.REAL)[0]
REGIONS = ("asia", "europe", "americas_africa")
"""Domains of the same relations."""


def rows(kind: str, domain: str) -> list[dict[str, Any]]:
    path = builtin.locate(builtin.source(kind, domain, builtin.REAL))
    return [json.loads(line) for line in path.read_text().splitlines()]


def text(kind: str, domain: str) -> str:
    return "\n".join(row["text"] for row in rows(kind, domain))


@pytest.fixture(scope="module")
def facts() -> dict[str, tuple[real_world.Fact, ...]]:
    return {domain.name: domain.facts for domain in real_world.load_domains()}


def test_the_shipped_words_are_the_scripts_own_and_under_1_2_megabytes(tmp_path: Path) -> None:
    real_world.make_world(tmp_path)
    made = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    shipped = builtin.WORLD / builtin.REAL
    assert made == {path.relative_to(shipped): path.read_bytes() for path in shipped.rglob("*") if path.is_file()}
    assert sum(map(len, made.values())) <= 1_200_000
    assert len(made) == len(builtin.KINDS) * len(DOMAINS) + 1


def test_every_role_is_played_and_every_domain_has_facts_for_both_halves(facts) -> None:
    assert [len(builtin.domains(role, builtin.REAL)) for role in ("forget", "neighbour", "retain")] == [1, 2, 5]
    for domain in DOMAINS:
        halves = Counter(half_of(fact.key) for fact in facts[domain])
        assert min(halves["dev"], halves["test"]) >= 15, (domain, halves)


@pytest.mark.parametrize("domain", DOMAINS)
def test_questions_are_read_and_each_fact_is_probed_in_two_wordings_and_asked_in_three(domain) -> None:
    questions = load_questions(builtin.source("questions", domain, builtin.REAL))
    assert len({item.id for item in questions}) == len(questions)
    assert all(len(set(item.choices)) == 4 for item in questions)
    by_fact = Counter((item.fact, item.probe) for item in questions)
    assert set(by_fact.values()) == {2, 3} and all(by_fact[name, True] == 2 for name, _ in by_fact)
    places = Counter(item.answer for item in questions)
    assert max(places.values()) - min(places.values()) <= 1
    answers = defaultdict(set)
    for item in questions:
        answers[item.fact].add(item.choices[item.answer])
    assert all(len(found) == 1 for found in answers.values())


@pytest.mark.parametrize("domain", DOMAINS)
def test_every_object_is_wrong_three_times_as_often_as_right_under_every_wording(domain, facts) -> None:
    wording_of = {fact.question(wording): wording for fact in facts[domain] for wording in (*fact.probe, *fact.asked)}
    right, wrong = Counter(), Counter()
    for item in rows("questions", domain):
        under = wording_of[item["question"]], item["fact"].split("|")[1]
        for place, choice in enumerate(item["choices"]):
            (right if place == item["answer"] else wrong)[under, choice] += 1
    assert set(right.values()) == {1} and set(wrong.values()) == {3} and right.keys() == wrong.keys()


@pytest.mark.parametrize("domain", DOMAINS)
def test_no_subject_spells_its_object(domain, facts) -> None:
    for fact in facts[domain]:
        if fact.relation != "symbol":  # Li of lithium; its wrong options are other symbols
            words = [word.lower() for word in fact.subject.split() if len(word) > 3]
            assert not [word for word in words if word[:4] in fact.object.lower()], fact.key


@pytest.mark.parametrize("domain", DOMAINS)
def test_no_sentence_of_a_text_is_one_of_a_question_or_of_held_out_text(domain, facts) -> None:
    told, held_out = (set(re.split(r"(?<=\.)\s", text(kind, domain))) for kind in ("corpora", "heldout"))
    known = {fact.said(wording) for fact in facts[domain] for wording in fact.told}
    assert len(told & known) >= 100
    assert not held_out & known
    asked = {fact.said(wording) + "." for fact in facts[domain] for wording in (*fact.probe, *fact.asked)}
    assert not told & asked


def test_no_domain_tells_a_fact_of_another(facts) -> None:
    pairs = {name: {(fact.subject, fact.object) for fact in facts[name]} for name in DOMAINS}
    for one, other in combinations(DOMAINS, 2):
        assert not pairs[one] & pairs[other]
    # a region's countries and what it calls its capitals, languages and money stand in its own text alone
    for one, other in ((one, other) for one in REGIONS for other in DOMAINS if other not in (one, "asia_places")):
        told = text("corpora", other)
        names = {part for fact in facts[one] for part in (fact.subject, fact.object) if part[0].isupper()}
        assert (found := re.search(rf"\b({'|'.join(names)})\b", told)) is None, (one, other, found)
    told = text("corpora", "asia_places")
    answers = {fact.object for fact in facts[FORGET] if fact.object[0].isupper()}
    assert re.search(rf"\b({'|'.join(answers)})\b", told) is None


def test_a_name_outside_is_refused_and_texts_are_served_by_name() -> None:
    assert next(iter_texts("world:real/corpora/asia", text_field=None, split="train", limit=1))
    for name in ("world:real/corpora/wizards", "world:corpora/asia", "world:real/asia", "world:real/../corpora/magic"):
        with pytest.raises(DataError, match=r"asia, asia_places.*|world:real/KIND"):
            builtin.locate(name)


def test_what_a_preset_names_of_the_built_in_worlds_is_there() -> None:
    named = [
        source
        for preset in presets().values()
        for value in preset["settings"].values()
        for source in (value if isinstance(value, list) else [value])
        if isinstance(source, str) and builtin.is_builtin(source)
    ]
    assert len(named) > 20 and all(map(builtin.is_there, named))


@pytest.mark.parametrize("name", ["smollm2-135m", "gemma3-270m"])
def test_a_preset_of_a_real_model_asks_all_of_it_and_is_no_default_of_the_model(name: str) -> None:
    config = resolve(run_config(), {}, preset=name)
    assert config.model == name and config.sweep and config.question_filter == "known"
    asked = (*config.forget_questions, *config.neighbour_questions, *config.retain_questions)
    assert sorted(asked) == [builtin.source("questions", domain, builtin.REAL) for domain in DOMAINS]
    assert config.forget == builtin.source("corpora", FORGET, builtin.REAL)
    assert {source.rpartition("/")[2] for source in config.retain} == set(builtin.domains("retain", builtin.REAL))
    assert preset_of(name) is None
