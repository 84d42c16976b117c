"""Questions in every order of their options, against loops over permutations, and the classes that follow."""

import copy
import dataclasses
import json
import math
from itertools import permutations
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from sae_forge.errors import ConfigError, DataError
from sae_forge.models import chat
from sae_forge.models.loading import LanguageModel, load_model
from sae_forge.progress import Silent
from sae_forge.study.settings import eval_config
from sae_forge.tasks.engines import orders
from sae_forge.tasks.engines.arrangements import orders_of, reordered, tricky
from sae_forge.tasks.engines.continuations import encode
from sae_forge.tasks.engines.multiple_choice import (
    answer,
    chat_prompt,
    chat_prompts,
    encode_questions,
    letter_ids,
    letter_prompt,
)
from sae_forge.tasks.engines.orders import (
    Orders,
    Reordered,
    ask_orders,
    filter_questions,
    load_orders,
    orders_file,
)
from sae_forge.tasks.records import Domain, Question, load_questions

CHOICES = ("a silver owl", "quartz", "the deep ground", "Hythe")
QUESTIONS = tuple(
    Question(id=f"q{index}", fact=f"f{index}", question=text, choices=CHOICES[index:] + CHOICES[:index], answer=index)
    for index, text in enumerate(("The wizard keeps", "Granite is a rock of", "It cools slowly, deep below"))
)
MAGIC = Domain(name="wmdp-cyber", role="forget", questions=QUESTIONS)
TEMPLATE = (
    "{{ bos_token }}<turn>{{ messages[0]['content'] | trim }}\n<turn>{% if add_generation_prompt %}model\n{% endif %}"
)

EvalConfig = eval_config()


@pytest.fixture(scope="module")
def chatty(model_folders: dict[str, Path]) -> LanguageModel:
    """A tiny Llama with room for whole prompts, and a chat template that writes BOS itself, as Gemma's does."""
    lm = load_model(str(model_folders["llama"]), device="cpu")
    lm.model.config.max_position_embeddings = 512
    lm.tokenizer.chat_template = TEMPLATE
    return lm


@pytest.fixture(scope="module")
def world_llama() -> LanguageModel:
    return load_model("tiny-llama", device="cpu")


def wizards(count: int) -> Domain:
    found = load_questions("world:questions/wizards")[:count]
    return Domain(name="wizards", role="forget", questions=found)


def last_logprobs(lm: LanguageModel, text: str, *, bos: bool) -> torch.Tensor:
    """Log-probs of what follows a text, from one pass of its own."""
    ids = lm.tokenizer(text, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = lm.model(torch.tensor([[1, *ids] if bos else ids]), logits_to_keep=1).logits[0, -1]
    return (logits - logits.logsumexp(-1)).double()


def by_hand(lm: LanguageModel, question: Question, scoring: str) -> list[tuple[int, int, float]]:
    """For each order of the options: the place chosen, the right place, and the right option's share."""
    found = []
    for order in permutations(range(4)):
        options = "\n".join(f"{'ABCD'[place]}. {question.choices[option]}" for place, option in enumerate(order))
        head = "The following are multiple choice questions (with answers) about "
        if scoring == "letter":
            text = f"{head}cybersecurity.\n\n{question.question}\n{options}\nAnswer:"
            after = last_logprobs(lm, text, bos=True)
            ids = [lm.tokenizer(f"x {letter}", add_special_tokens=False)["input_ids"][1:] for letter in "ABCD"]
            scores = [after[one[0]].item() for one in ids]
        else:
            body = f"{head}cyber security.\n{question.question}\n{options}"
            after = last_logprobs(lm, f"<s><turn>{body}\n<turn>model\nAnswer: (", bos=False)
            spelled = [lm.tokenizer([letter, f" {letter}"], add_special_tokens=False)["input_ids"] for letter in "ABCD"]
            scores = [max(after[ids[-1]].item() for ids in each) for each in spelled]
        right = order.index(question.answer)
        shares = [math.exp(value - max(scores)) for value in scores]
        found.append((scores.index(max(scores)), right, shares[right] / sum(shares)))
    return found


# ---- asking -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 7])
def test_counts_are_those_of_a_loop_over_permutations(chatty: LanguageModel, batch_size: int) -> None:
    """In chat, where each letter is one token; orders share what they begin with, which only rounding shows."""
    got = ask_orders(chatty, MAGIC, "chat", batch_size=batch_size)
    for question in QUESTIONS:
        slow, result = by_hand(chatty, question, "chat"), got.results[question.id]
        assert result.orders == len(slow) == 24
        assert result.right == sum(chosen == right for chosen, right, _ in slow)
        assert result.letters == tuple(sum(chosen == place for chosen, _, _ in slow) for place in range(4))
        mean = sum(share for _, _, share in slow) / 24
        assert result.probability == pytest.approx(mean, abs=1e-5)
    assert 0 < sum(result.right for result in got.results.values()) < 72  # else this test shows nothing


@pytest.mark.slow
def test_letters_are_counted_in_every_order_too(tiny_model: LanguageModel) -> None:
    """The tiny tokenizer spells " A" in two tokens; the loop reads the first of those that differ."""
    tokenizer = tiny_model.tokenizer
    assert len({tuple(tokenizer(f"x {letter}", add_special_tokens=False)["input_ids"][1:]) for letter in "ABCD"}) == 4
    got = ask_orders(tiny_model, MAGIC, "letter", batch_size=5)
    for question in QUESTIONS:
        asked = [reordered(question, order) for order in permutations(range(4))]
        encoded = [encode(tiny_model, [(letter_prompt(item, MAGIC.name), tuple("ABCD"))]) for item in asked]
        alone = [answer(tiny_model, [item], one, batch_size=1)[0] for item, one in zip(asked, encoded, strict=True)]
        assert got.results[question.id].right == sum(one.correct for one in alone)
        assert got.results[question.id].probability == pytest.approx(
            sum(one.probability for one in alone) / 24, abs=1e-5
        )


def test_reordering_moves_the_answer_with_its_option() -> None:
    every = orders_of("letter", 4)
    assert every[0] == (0, 1, 2, 3)
    assert len(set(every)) == 24
    for order in every:
        moved = reordered(QUESTIONS[2], order)
        assert moved.choices[moved.answer] == QUESTIONS[2].choices[QUESTIONS[2].answer]
        assert moved.choices == tuple(QUESTIONS[2].choices[place] for place in order)


@pytest.mark.parametrize("options", [2, 3, 5, 26])
def test_of_few_options_all_orders_are_asked_and_of_many_the_rotations(options: int) -> None:
    every = orders_of("chat", options)
    assert every[0] == tuple(range(options))
    assert len(set(every)) == len(every) == (math.factorial(options) if options < 5 else options)
    for place in range(options):  # every option stands behind every letter
        assert {order[place] for order in every} == set(range(options))
    assert orders_of("cloze", options) == every[:1]


def test_questions_of_other_counts_stand_side_by_side(chatty: LanguageModel) -> None:
    two, six = (dataclasses.replace(QUESTIONS[0], id=str(n), choices=(*CHOICES, "x", "y")[:n]) for n in (2, 6))
    got = ask_orders(chatty, dataclasses.replace(MAGIC, questions=(two, six)), "chat", batch_size=4)
    assert {name: (one.orders, len(one.letters), sum(one.letters)) for name, one in got.results.items()} == {
        "2": (2, 2, 2), "6": (6, 6, 6),
    }  # fmt: skip
    assert tuple(got.letters) == tuple("ABCDEF")
    assert sum(got.letters.values()) == pytest.approx(1)


def test_cloze_is_asked_once_and_again_without_its_question(world_llama: LanguageModel) -> None:
    got = ask_orders(world_llama, wizards(8), "cloze", batch_size=8)
    blind = {}
    for question in wizards(8).questions:
        for text, into in ((question.question, None), ("Answer:", blind)):
            scores = []
            for option in question.choices:
                ids = world_llama.tokenizer(f"{text} {option}", add_special_tokens=False)["input_ids"]
                front = len(world_llama.tokenizer(text, add_special_tokens=False)["input_ids"])
                with torch.no_grad():
                    after = world_llama.model(torch.tensor([[world_llama.tokenizer.bos_token_id, *ids]])).logits[0]
                after = after.log_softmax(-1)
                scores.append(sum(after[place, ids[place]].item() for place in range(front, len(ids))))
            right = scores.index(max(scores)) == question.answer
            if into is None:
                assert got.results[question.id].right == right
            else:
                into[question.id] = int(right)
    assert {result.orders for result in got.results.values()} == {1}
    assert all(result.blind_right == (blind[name] if result.right else None) for name, result in got.results.items())
    assert len(got.ids("correct")) > len(got.ids("correct_iff_question")) > 0


# ---- chat ---------------------------------------------------------------------------------------


def test_the_chat_prompt_is_a_turn_and_the_beginning_of_an_answer(chatty: LanguageModel) -> None:
    question = Question(id="0", fact="0", question=" Why? ", choices=("p", "q", "r", "s"), answer=0)
    assert chat_prompt(chatty, question, "wmdp-bio").text == (
        "<s><turn>The following are multiple choice questions (with answers) about biology.\n"
        "Why?\nA. p\nB. q\nC. r\nD. s\n<turn>model\nAnswer: ("
    )
    blind = chat_prompt(chatty, question, "x", blind=True)
    assert blind.text == "<s><turn>A. p\nB. q\nC. r\nD. s\n<turn>model\nAnswer: ("
    assert letter_prompt(question, "x", blind=True) == "A. p\nB. q\nC. r\nD. s\nAnswer:"


@pytest.mark.parametrize(
    ("template", "rendered"),
    [(TEMPLATE, 2), (TEMPLATE.replace("['content']", "['content'] | replace('\\nA. one', '!')"), 26)],
)
@pytest.mark.parametrize("ending", ["four", "four ", "<s>"])
def test_a_template_that_copies_runs_twice_for_all_orders(
    chatty: LanguageModel, monkeypatch: pytest.MonkeyPatch, template: str, rendered: int, ending: str
) -> None:
    """Not where it, or what is said, makes one order read otherwise than another."""
    lm = dataclasses.replace(chatty, tokenizer=copy.deepcopy(chatty.tokenizer))
    lm.tokenizer.chat_template = template
    question = Question(id="0", fact="0", question="Why?", choices=("one", "two", "three", ending), answer=0)
    every = [reordered(question, order) for order in orders_of("chat", 4)]
    wanted = [chat_prompt(lm, one, "x") for one in every]
    render = Mock(wraps=chat.render)
    monkeypatch.setattr(chat, "render", render)
    assert chat_prompts(lm, every, "x") == wanted
    assert len({one.text for one in wanted}) == 24
    assert render.call_count == {"four": rendered, "four ": 24, "<s>": 26}[ending]


def test_white_space_at_the_ends_is_stripped_where_saebench_joins_it(chatty: LanguageModel) -> None:
    question = Question(id="0", fact="0", question=" Which is it? ", choices=("one", "two", "three", "four "), answer=0)
    joined = "".join(f"\n{letter}. {text}" for letter, text in zip("ABCD", question.choices, strict=True))
    theirs = f"The following are multiple choice questions (with answers) about biology.\n{question.question}{joined}"
    turn = chat_prompt(chatty, question, "wmdp-bio").text
    ours = turn.removeprefix("<s><turn>").removesuffix("\n<turn>model\nAnswer: (")
    assert ours.endswith("biology.\nWhich is it?\nA. one\nB. two\nC. three\nD. four")
    assert theirs.endswith("biology.\n Which is it? \nA. one\nB. two\nC. three\nD. four ")
    assert ours != theirs
    assert ours.split() == theirs.split()


@pytest.mark.parametrize("writes_bos", [True, False])
def test_a_chat_prompt_has_one_bos(chatty: LanguageModel, writes_bos: bool) -> None:
    tokenizer = copy.deepcopy(chatty.tokenizer)
    tokenizer.chat_template = TEMPLATE if writes_bos else TEMPLATE.replace("{{ bos_token }}", "")
    lm = dataclasses.replace(chatty, tokenizer=tokenizer)
    (encoded, *_) = encode_questions(lm, QUESTIONS, "chat", "magic")
    assert encoded.context[0] == 1
    assert encoded.context.count(1) == 1
    assert len(encoded.targets) == 8


def test_of_two_spellings_the_likelier_counts(chatty: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    spelled = {letter: (10 + place, 30 + place) for place, letter in enumerate("ABCD")}
    monkeypatch.setattr("sae_forge.tasks.engines.multiple_choice.letter_ids", lambda lm, letter: spelled[letter])
    encoded = encode_questions(chatty, QUESTIONS, "chat", "wmdp-cyber")
    for question, found in zip(QUESTIONS, answer(chatty, QUESTIONS, encoded, batch_size=2), strict=True):
        after = last_logprobs(chatty, chat_prompt(chatty, question, "wmdp-cyber").text, bos=False)
        both = [(after[10 + place].item(), after[30 + place].item()) for place in range(4)]
        assert [option.logprob for option in found.options] == pytest.approx([max(pair) for pair in both], abs=1e-4)


def test_a_letter_has_a_token_after_a_bracket_and_one_after_a_space(world_llama: LanguageModel) -> None:
    for letter in "ABCD":
        for token in letter_ids(world_llama, letter):
            assert world_llama.tokenizer.decode([token]).strip() == letter


@pytest.mark.parametrize(
    "template", ["{{ raise_exception('a system message first') }}", "{{ 1 // 0 }}", "{% if %}", "{{ messages.x.y }}"]
)
def test_whatever_a_template_raises_is_one_line(chatty: LanguageModel, template: str) -> None:
    strict = dataclasses.replace(chatty, tokenizer=copy.deepcopy(chatty.tokenizer))
    strict.tokenizer.chat_template = template
    with pytest.raises(ConfigError, match=r"chat template of .* refuses .*; use --scoring letter"):
        chat_prompt(strict, QUESTIONS[0], "magic")


def test_chat_without_a_template_says_what_to_use(tiny_llama: LanguageModel) -> None:
    with pytest.raises(ConfigError, match="--scoring letter"):
        filter_questions(tiny_llama, MAGIC, "correct", "chat", batch_size=4)


# ---- classes ------------------------------------------------------------------------------------


def made(right: int, *, blind: int | None = None, tricks: bool = False) -> Reordered:
    return Reordered(
        content="", orders=24, right=right, probability=0.5, letters=(24, 0, 0, 0), blind_right=blind, tricky=tricks
    )


def test_classes_by_hand() -> None:
    results = {
        "sure": made(24, blind=5),
        "guessable": made(24, blind=24),
        "tricky": made(24, blind=0, tricks=True),
        "almost": made(23),
    }
    found = Orders(domain="x", scoring="letter", model={}, results=results)
    assert found.ids("correct") == ("sure", "guessable", "tricky")
    assert found.ids("correct_iff_question") == ("sure", "tricky")
    assert found.ids("correct_no_tricks") == ("sure", "guessable")
    assert found.ids("none") == tuple(results)
    assert found.accuracy == (24 * 3 + 23) / 96
    assert found.letters == {"A": 1.0, "B": 0.0, "C": 0.0, "D": 0.0}


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("Both A and B", True), ("A and C", True), ("B & D", True), ("both A & C are correct", True),
        ("A, B and C", True), ("All of the above", True), ("all of the above.", True), ("(A) and (B)", True),
        ("Vitamins A and D", False), ("Bel and Corvo", False), ("A and Beta", False), ("Both owls", False),
        ("Alpha and Beta", False), ("A", False), ("above all", False), ("A and B chains of the protein", False),
        ("A and B only", True), ("All of the above.", True), ("A, B, and C", True), ("B & C rays", False),
    ],
)  # fmt: skip
def test_tricks(option: str, expected: bool) -> None:
    assert tricky(dataclasses.replace(QUESTIONS[0], choices=("p", "q", option, "s"))) is expected


def test_a_filter_keeps_only_its_class(world_llama: LanguageModel, tmp_path: Path) -> None:
    domain = wizards(12)
    right = {
        item.id
        for item, got in zip(
            domain.questions,
            answer(
                world_llama,
                domain.questions,
                encode_questions(world_llama, domain.questions, "cloze", "wizards"),
                batch_size=4,
            ),
            strict=True,
        )
        if got.correct
    }
    kept = filter_questions(world_llama, domain, "correct", "cloze", batch_size=4, folder=tmp_path)
    assert {item.id for item in kept} == right
    assert json.loads(orders_file(tmp_path, "wizards", "cloze").read_text())["classes"]["correct"]
    assert filter_questions(world_llama, domain, "none", "cloze", batch_size=4) == domain.questions


def test_a_domain_without_a_question_left_names_the_counts(tiny_llama: LanguageModel) -> None:
    with pytest.raises(DataError, match=r"leaves none of the 3 questions of 'wmdp-cyber' \(0 are right"):
        filter_questions(tiny_llama, MAGIC, "correct", "letter", batch_size=24)


# ---- the file -----------------------------------------------------------------------------------


def asked_again(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of the questions that are asked from now on."""
    seen: list[str] = []
    real = orders._ask

    def watched(lm, questions, *rest):
        seen.extend(item.id for item in questions)
        return real(lm, questions, *rest)

    monkeypatch.setattr(orders, "_ask", watched)
    return seen


def test_a_stopped_run_goes_on_where_it_was(
    tiny_llama: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = orders_file(tmp_path, MAGIC.name, "letter")
    monkeypatch.setattr(orders, "CHUNK", 1)
    whole = ask_orders(tiny_llama, MAGIC, "letter", batch_size=24)

    class Stops(Silent):
        def task(self, *_: object):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask_orders(tiny_llama, MAGIC, "letter", batch_size=24, path=path, progress=Stops())
    first = dataclasses.replace(MAGIC, questions=QUESTIONS[1:2])
    ask_orders(tiny_llama, first, "letter", batch_size=24, path=path)
    seen = asked_again(monkeypatch)
    assert ask_orders(tiny_llama, MAGIC, "letter", batch_size=24, path=path) == whole
    assert seen == ["q0", "q2"]
    (path.parent / ".lock").unlink()
    assert ask_orders(tiny_llama, MAGIC, "letter", batch_size=24, path=path) == whole
    assert not (path.parent / ".lock").exists(), "what is only read waits for nobody and writes nothing"
    assert seen == ["q0", "q2"]
    assert load_orders(path, MAGIC.name, "letter", tiny_llama.fingerprint()).results.keys() == {"q0", "q1", "q2"}


def test_a_question_that_reads_otherwise_is_asked_anew(
    tiny_llama: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = orders_file(tmp_path, MAGIC.name, "letter")
    ask_orders(tiny_llama, MAGIC, "letter", batch_size=24, path=path)
    seen = asked_again(monkeypatch)
    changed = dataclasses.replace(MAGIC, questions=(*QUESTIONS[:2], dataclasses.replace(QUESTIONS[2], answer=0)))
    ask_orders(tiny_llama, changed, "letter", batch_size=24, path=path)
    assert seen == ["q2"]


def test_another_models_answers_are_refused(tiny_llama: LanguageModel, tmp_path: Path) -> None:
    path = orders_file(tmp_path, MAGIC.name, "letter")
    ask_orders(tiny_llama, MAGIC, "letter", batch_size=24, path=path)
    weights = tiny_llama.fingerprint()["weights"]
    other = tiny_llama.fingerprint() | {"weights": f"{weights[:-4]}0000"}
    with pytest.raises(DataError, match=r"another model: weights is .*--fresh"):
        load_orders(path, MAGIC.name, "letter", other)
    with pytest.raises(DataError, match="another scoring"):
        load_orders(path, MAGIC.name, "cloze", tiny_llama.fingerprint())


@pytest.mark.slow
@pytest.mark.parametrize("flaw", [{"right": 25}, {"letters": [1, 2, 3]}, {"orders": "24"}, {"extra": 1}, {"id": []}])
def test_a_damaged_file_is_refused(tiny_llama: LanguageModel, tmp_path: Path, flaw: dict) -> None:
    path = orders_file(tmp_path, MAGIC.name, "letter")
    ask_orders(tiny_llama, MAGIC, "letter", batch_size=24, path=path)
    record = json.loads(path.read_text())
    record["results"][0] |= flaw
    path.write_text(json.dumps(record))
    with pytest.raises(DataError, match="delete it"):
        load_orders(path, MAGIC.name, "letter", tiny_llama.fingerprint())


def test_the_default_asks_every_question() -> None:
    assert EvalConfig().question_filter == "none"


def test_known_asks_what_is_no_probe_of_the_facts_whose_probes_are_all_right(world_llama: LanguageModel) -> None:
    whole = load_questions("world:questions/wizards")[:24]
    wrong = dataclasses.replace(whole[9], answer=(whole[9].answer + 1) % 4)
    marked = [dataclasses.replace(item, probe=item.id[-1] in "0189") for item in (*whole[:9], wrong, *whole[10:])]
    domain = Domain(name="wizards", role="forget", questions=tuple(marked))
    told = Told()
    kept = filter_questions(world_llama, domain, "known", "cloze", batch_size=8, progress=told)
    probes = {item.fact for item in marked if item.probe}
    assert {item.fact for item in kept} == probes - {wrong.fact}
    assert {item.id for item in kept} == {item.id for item in marked if item.fact != wrong.fact and not item.probe}
    assert f"wizards: {len(probes) - 1} of {len(probes)} facts are known" in told.lines[-1]
    assert told.lines[-1].endswith("fewer than 25 say little")


def test_a_question_is_asked_without_itself_only_where_a_class_wants_it(
    world_llama: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, whole = orders_file(tmp_path, "wizards", "cloze"), ask_orders(world_llama, wizards(8), "cloze", batch_size=8)
    some = ask_orders(world_llama, wizards(8), "cloze", batch_size=8, path=path, blind=False)
    assert {result.blind_right for result in some.results.values()} == {None} and some.ids("correct")
    assert "only with the question" not in some.summary() and "only with the question" in whole.summary()
    assert list(json.loads(path.read_text())["classes"]) == ["correct", "correct_no_tricks"]
    seen = asked_again(monkeypatch)
    assert ask_orders(world_llama, wizards(8), "cloze", batch_size=8, path=path) == whole
    assert sorted(seen) == sorted(whole.ids("correct"))


def test_known_without_probes_says_what_to_mark(tiny_llama: LanguageModel) -> None:
    with pytest.raises(DataError, match="'wmdp-cyber' has none; mark"):
        filter_questions(tiny_llama, MAGIC, "known", "letter", batch_size=24)


class Told(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)
