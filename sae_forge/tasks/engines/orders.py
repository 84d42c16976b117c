"""Which questions a model knows for sure: those it gets right however the options are ordered.

Every question is asked in all orders of its options, 24 for four (arXiv 2410.19278, arXiv 2504.08192), and the
questions kept by a filter are those an edit has something to take from. Of more than four options the rotations stand
for all orders: in them every option stands behind every letter once. Results are kept in a file a domain and scoring,
question by question, so a stopped run continues and another half or limit of the same file asks only what is new.
Under ``cloze`` the options are never listed, so their order changes nothing and one order stands for all.
"""

import math
from collections.abc import Collection, Container, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sae_forge import ranks
from sae_forge.config.questions import QuestionFilter, Scoring
from sae_forge.errors import DataError
from sae_forge.models.loading import LanguageModel
from sae_forge.progress import SILENT, Progress
from sae_forge.statistics.answers import LETTERS
from sae_forge.store import files, records
from sae_forge.store.weights import same
from sae_forge.tasks.engines.arrangements import orders_of, reordered, tricky
from sae_forge.tasks.engines.multiple_choice import Answered, answer, encode_questions, prompt_of
from sae_forge.tasks.frames import PLAIN, Frame
from sae_forge.tasks.records import Domain, Question

FORMAT = 1
WHAT = "the answers of a model to reordered questions"
CLASSES: tuple[QuestionFilter, ...] = ("correct", "correct_iff_question", "correct_no_tricks")
CHUNK = 64
"""Questions between two savings."""

ENOUGH_FACTS = 25
"""Known facts of a domain below which it is said that they are few."""


@dataclass(frozen=True, kw_only=True)
class Reordered:
    """How a model answered one question over the orders of its options."""

    content: str
    """Hash of what was asked; a question that reads otherwise is asked anew."""
    orders: int
    """Orders asked: 24 of four options, or 1 where order changes nothing."""
    right: int
    """Orders answered rightly."""
    probability: float
    """Mean share of the right option in the probability of all."""
    letters: tuple[int, ...]
    """Orders in which each place, from A, was chosen."""
    blind_right: int | None
    """Orders answered rightly without instruction and question; asked only where all orders were right, and wanted."""
    tricky: bool
    """Whether an option speaks of the others, which stops making sense once they move."""

    def passes(self, chosen: QuestionFilter) -> bool:
        """Whether the question belongs to a class."""
        sure = self.right == self.orders
        match chosen:
            case "none":
                return True
            case "correct" | "known":
                return sure
            case "correct_iff_question":
                return sure and self.blind_right != self.orders
            case "correct_no_tricks":
                return sure and not self.tricky


@dataclass(frozen=True, kw_only=True)
class Orders:
    """The answers of one model to the questions of one domain, by id."""

    domain: str
    scoring: Scoring
    model: dict[str, Any]
    """Fingerprint of the model asked."""
    results: dict[str, Reordered]

    def ids(self, chosen: QuestionFilter) -> tuple[str, ...]:
        """The questions of a class, in the order they were asked."""
        return tuple(name for name, result in self.results.items() if result.passes(chosen))

    @property
    def asked_blind(self) -> bool:
        """Whether all that were right in every order were asked without the question too."""
        return all(one.blind_right is not None for one in self.results.values() if one.right == one.orders)

    @property
    def accuracy(self) -> float:
        """Mean over the questions of the share of orders answered rightly."""
        return sum(result.right / result.orders for result in self.results.values()) / len(self.results)

    @property
    def probability(self) -> float:
        """Mean over questions and orders of the right option's share of the probability."""
        return sum(result.probability for result in self.results.values()) / len(self.results)

    @property
    def letters(self) -> dict[str, float]:
        """Share of all answers that fell on each place; alike for a model without a favourite."""
        places = range(max(len(result.letters) for result in self.results.values()))
        counts = [sum(sum(result.letters[place : place + 1]) for result in self.results.values()) for place in places]
        return {letter: count / sum(counts) for letter, count in zip(LETTERS, counts, strict=False)}

    def restricted(self, questions: Sequence[Question]) -> "Orders":
        """The answers to these questions alone, in their order."""
        # tricks are told by the text alone, so they are told anew: kept answers may be older than the rule
        kept = {item.id: replace(self.results[item.id], tricky=tricky(item)) for item in questions}
        return replace(self, results=kept)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready: the answers, the ids of each class, and what a person looks at first."""
        classes: list[QuestionFilter] = [name for name in CLASSES if name != "correct_iff_question" or self.asked_blind]
        return {
            "format": FORMAT,
            "domain": self.domain,
            "scoring": self.scoring,
            "model": self.model,
            "questions": files.digest({name: result.content for name, result in self.results.items()}),
            "classes": {chosen: list(self.ids(chosen)) for chosen in classes},
            "accuracy": self.accuracy,
            "probability": self.probability,
            "letters": self.letters,
            "results": [{"id": name, **asdict(result)} for name, result in self.results.items()],
        }

    def summary(self) -> str:
        """One sentence for a person."""
        letters = ", ".join(f"{letter} {share:.0%}" for letter, share in self.letters.items())
        blind = f"{len(self.ids('correct_iff_question'))} of them only with the question, " if self.asked_blind else ""
        return (
            f"{self.domain}: {len(self.ids('correct'))} of {len(self.results)} questions right in every order "
            f"({blind}{len(self.ids('correct_no_tricks'))} without options that name others); "
            f"accuracy over orders {self.accuracy:.1%}, answers {letters}"
        )


# ---- choosing -----------------------------------------------------------------------------------


def filter_questions(
    lm: LanguageModel,
    domain: Domain,
    chosen: QuestionFilter,
    scoring: Scoring,
    *,
    batch_size: int,
    folder: Path | None = None,
    fresh: bool = False,
    progress: Progress = SILENT,
    frame: Frame = PLAIN,
) -> tuple[Question, ...]:
    """The questions of a class, as ``lm`` answers them now; ``known``: those that are no probes, of the facts of which
    all probes are of the class ``correct``.

    Args:
        folder: Where the answers are kept and looked for; None asks anew and keeps nothing.
        fresh: Ask again even what is there.

    Raises:
        DataError: none is left, ``known`` finds no probes, or a kept file is of another model.
    """
    if chosen == "none" or not domain.questions:
        return domain.questions
    path = None if folder is None else orders_file(folder, domain.name, scoring)
    whole = domain
    if chosen == "known":
        domain = replace(domain, questions=tuple(item for item in domain.questions if item.probe))
        if not domain.questions:
            raise DataError(
                f'--question_filter known asks the questions with "probe": true, and {domain.name!r} has none; mark '
                "two or more wordings of each fact, or use another filter"
            )
    orders = ask_orders(
        lm, domain, scoring, batch_size=batch_size, path=path, fresh=fresh, progress=progress, frame=frame,
        blind=chosen != "known",
    )  # fmt: skip
    progress.say(orders.summary())
    ids = set(orders.ids(chosen))
    if chosen == "known":
        facts = known_facts(domain.questions, ids)
        ids = {item.id for item in whole.questions if item.fact in facts and not item.probe}
        progress.say(_known(domain, facts))
        domain = whole
    if not ids:
        chance = sum(1 / len(item.choices) for item in domain.questions) / len(domain.questions)
        counts = (
            f"{len(orders.ids('correct'))} are right in every order, {orders.accuracy:.1%} of the answers are right"
        )
        raise DataError(
            f"--question_filter {chosen} leaves none of the {len(domain.questions)} questions of {domain.name!r} "
            f"({counts}; chance is {chance:.0%}); use --question_filter none, another --scoring, or a model that "
            "knows more"
        )
    return tuple(item for item in domain.questions if item.id in ids)


def known_facts(probes: Sequence[Question], right: Container[str]) -> set[str]:
    """The facts of which every probe was answered rightly.

    Args:
        right: Ids of the probes that were.
    """
    return {item.fact for item in probes} - {item.fact for item in probes if item.id not in right}


def _known(probes: Domain, facts: Collection[str]) -> str:
    """One sentence on how many facts a model knows, and how many it would by guessing."""
    by_fact: dict[str, list[int]] = {}
    for item in probes.questions:
        by_fact.setdefault(item.fact, []).append(len(item.choices))
    guessed = sum(1 / math.prod(options) for options in by_fact.values())
    few = f"; fewer than {ENOUGH_FACTS} say little" if len(facts) < ENOUGH_FACTS else ""
    return (
        f"{probes.name}: {len(facts)} of {len(by_fact)} facts are known (guessing: {guessed:.1f}), told by "
        f"{len(probes.questions)} questions that are not asked again{few}"
    )


def orders_file(folder: Path, domain: str, scoring: Scoring) -> Path:
    """Where the answers to one domain under one scoring are kept in a run folder."""
    return folder / "questions" / f"{domain}-{scoring}.json"


# ---- asking -------------------------------------------------------------------------------------


def ask_orders(
    lm: LanguageModel,
    domain: Domain,
    scoring: Scoring,
    *,
    batch_size: int,
    path: Path | None = None,
    fresh: bool = False,
    progress: Progress = SILENT,
    frame: Frame = PLAIN,
    blind: bool = True,
) -> Orders:
    """Every question of a domain in every order of its options, read from ``path`` as far as they are there.

    What orders begin with runs once for all, and only the logits of letters are formed, at the last token. Those that
    are right in every order are asked as often again, without instruction and question.

    Args:
        blind: Whether they are, which of the classes ``correct_iff_question`` alone needs.

    Raises:
        DataError: ``path`` holds something else, or the answers of another model.
    """
    model, team = lm.fingerprint(), ranks.here()
    contents = {item.id: _content(lm, item, scoring, domain.name, frame) for item in domain.questions}

    def looked_up() -> tuple[dict[str, Reordered], list[Question]]:
        """What is known, and what is left to ask."""
        if path is None or fresh or not path.exists():
            return {}, list(domain.questions)
        known = dict(load_orders(path, domain.name, scoring, model).results)
        return known, [item for item in domain.questions if _is_new(known.get(item.id), contents[item.id], blind)]

    results, missing = looked_up()
    if not any(team.tell(bool(missing))):
        return Orders(domain=domain.name, scoring=scoring, model=model, results=results).restricted(domain.questions)
    # one job asks, and others that come meanwhile find what it has written
    with files.locked(path.parent, wait=True) if path is not None and team.leads else nullcontext():
        team.meet()  # nobody reads before the file is held
        results, missing = looked_up()
        team.meet()  # nor is it written before all have read it
        with progress.task(f"orders of {domain.name}", len(missing), "questions") as task:
            for start in range(0, len(missing), CHUNK * team.world):
                first = start + CHUNK * team.rank
                chunk = missing[first : first + CHUNK]
                asked = _ask(lm, chunk, scoring, domain.name, batch_size, frame, blind) if chunk else []
                told = [one for each in team.tell([asdict(one) for one in asked]) for one in each]
                for item, record in zip(missing[start : start + len(told)], told, strict=True):
                    results[item.id] = replace(records.decode(Reordered, record), content=contents[item.id])
                if path is not None and team.leads:
                    whole = Orders(domain=domain.name, scoring=scoring, model=model, results=results)
                    files.publish_json(path, whole.to_json())
                task.advance(len(told))
    return Orders(domain=domain.name, scoring=scoring, model=model, results=results).restricted(domain.questions)


def _is_new(known: Reordered | None, content: str, blind: bool) -> bool:
    if known is None or known.content != content:
        return True
    return blind and known.right == known.orders and known.blind_right is None


def _content(lm: LanguageModel, question: Question, scoring: Scoring, domain: str, frame: Frame) -> str:
    return files.short_hash([prompt_of(lm, question, scoring, domain, frame=frame), question.choices, question.answer])


def _ask(
    lm: LanguageModel,
    questions: Sequence[Question],
    scoring: Scoring,
    domain: str,
    batch_size: int,
    frame: Frame,
    blind: bool,
) -> list[Reordered]:
    """The answers to some questions, their contents not yet noted."""
    seen = _in_orders(lm, questions, scoring, domain, batch_size, blind=False, frame=frame)
    right = (item for item, answers in zip(questions, seen, strict=True) if all(one.correct for one in answers))
    sure = list(right) if blind else []
    # without the question only those are asked that were right in every order: the others are out already
    unseen = _in_orders(lm, sure, scoring, domain, batch_size, blind=True, frame=frame)
    without = {item.id: sum(one.correct for one in answers) for item, answers in zip(sure, unseen, strict=True)}
    return [
        Reordered(
            content="",
            orders=len(answers),
            right=sum(one.correct for one in answers),
            probability=sum(one.probability for one in answers) / len(answers),
            letters=tuple(sum(one.chosen == place for one in answers) for place in range(len(item.choices))),
            blind_right=without.get(item.id),
            tricky=tricky(item),
        )
        for item, answers in zip(questions, seen, strict=True)
    ]


def _in_orders(
    lm: LanguageModel,
    questions: Sequence[Question],
    scoring: Scoring,
    domain: str,
    batch_size: int,
    *,
    blind: bool,
    frame: Frame,
) -> list[list[Answered]]:
    asked = [reordered(item, order) for item in questions for order in orders_of(scoring, len(item.choices))]
    encoded = encode_questions(lm, asked, scoring, domain, blind=blind, frame=frame)
    answers = iter(answer(lm, asked, encoded, batch_size=batch_size, relative=True))
    return [[next(answers) for _ in orders_of(scoring, len(item.choices))] for item in questions]


# ---- reading back -------------------------------------------------------------------------------


def load_orders(path: Path, domain: str, scoring: Scoring, model: Mapping[str, Any]) -> Orders:
    """What an earlier run asked the same model.

    Raises:
        DataError: missing, malformed, of another domain or scoring, or the answers of another model.
    """
    record = files.read_json(path, kind=DataError, what=WHAT)
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise DataError(f"{path} is not {WHAT}; delete it, or ask anew with --fresh")
    asked = record.get("model")
    if isinstance(asked, dict) and same(str(asked.get("weights")), model["weights"]) is not False:
        asked = {
            **asked,
            **{name: model[name] for name in ("name", "revision", "weights")},
        }  # known by its weights alone
    for name, wanted in (("domain", domain), ("scoring", scoring), ("model", dict(model))):
        if (asked if name == "model" else record.get(name)) != wanted:
            raise DataError(
                f"{path} holds the answers of another {name}: {_differing(record.get(name), wanted)}; "
                "choose another --run_dir, or ask anew with --fresh"
            )
    try:
        results = {entry["id"]: _result(entry) for entry in record["results"]}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path} is not {WHAT}: {error!r:.80}; delete it, or ask anew with --fresh") from None
    return Orders(domain=domain, scoring=scoring, model=dict(model), results=results)


def _differing(given: object, wanted: object) -> str:
    """The first field in which two fingerprints differ, or the two values."""
    if isinstance(given, dict) and isinstance(wanted, dict):
        name = next(name for name in sorted({*given, *wanted}) if given.get(name) != wanted.get(name))
        return f"{name} is {str(given.get(name))[:40]}, not {str(wanted.get(name))[:40]}"
    return f"{str(given)[:40]}, not {str(wanted)[:40]}"


def _result(entry: Mapping[str, Any]) -> Reordered:
    result = records.decode(Reordered, {name: value for name, value in entry.items() if name != "id"})
    counts = (result.orders, result.right, *result.letters, result.blind_right or 0)
    if not all(0 <= count <= result.orders for count in counts):
        raise ValueError(f"the counts of {entry['id']!r} do not fit together")
    if sum(result.letters) != result.orders or result.orders < 1:
        raise ValueError(f"the letters of {entry['id']!r} do not sum to its orders")
    return result
