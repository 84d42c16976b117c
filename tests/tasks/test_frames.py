"""Questions in a frame of the user's: what the model then reads, and what is said where it can only guess."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sae_forge.errors import ConfigError, DataError
from sae_forge.progress import SILENT
from sae_forge.results.claims import guessing
from sae_forge.results.report import Cell
from sae_forge.statistics.estimate import Estimate
from sae_forge.study.settings import catalogue_of, eval_config
from sae_forge.tasks.engines.multiple_choice import cloze_prompt, letter_prompt
from sae_forge.tasks.frames import PLAIN, Frame, frame_of
from sae_forge.tasks.records import Question

if TYPE_CHECKING:
    from sae_forge.models.loading import LanguageModel

ASKED = Question(id="1", fact="1", question=" Which is it? ", choices=("one", "two"), answer=1, subject="high_ground")
SHOT = Question(id="2", fact="2", question="Which was it?", choices=("old", "new"), answer=0)


def test_a_plain_frame_is_the_prompt_of_the_scoring() -> None:
    assert letter_prompt(ASKED, "x") == (
        "The following are multiple choice questions (with answers) about high ground.\n\nWhich is it?\nA. one\n"
        "B. two\nAnswer:"
    )
    assert cloze_prompt(ASKED, "x") == ASKED.question
    assert PLAIN.told() == {}


def test_shots_stand_in_front_once_the_front_was_said() -> None:
    frame = Frame(front="On {subject}.\n\n", template="Q: {question}\n{options}\nA:", shots=(SHOT,))
    shot = "Q: Which was it?\nA. old\nB. new\nA: A\n\n"
    assert letter_prompt(ASKED, "x", frame=frame) == f"On high ground.\n\n{shot}Q: Which is it?\nA. one\nB. two\nA:"
    assert cloze_prompt(ASKED, "x", frame=Frame(shots=(SHOT,))) == "Which was it? old\n\nWhich is it?"
    usual = letter_prompt(ASKED, "x", frame=Frame(shots=(SHOT,)))
    assert usual.count("The following are") == 1, "as in lm-evaluation-harness"
    assert "Which was it?\nA. old\nB. new\nAnswer: A\n\nWhich is it?" in usual
    assert letter_prompt(ASKED, "x", blind=True, frame=frame) == letter_prompt(ASKED, "x", blind=True)
    assert frame.told() == {"front": "On {subject}.\n\n", "template": "Q: {question}\n{options}\nA:", "shots": 1}


def config(**settings: Any) -> Any:
    return eval_config()(**settings)


def questions(path: Path, count: int) -> str:
    records = [{"question": f"What is {n}?", "choices": ["a", "b"], "answer": n % 2} for n in range(count)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_shots_come_from_the_file_called_like_the_domain(tmp_path: Path) -> None:
    owls, elks = (questions(tmp_path / f"{name}.jsonl", 4) for name in ("owls_dev", "elks_dev"))
    found = frame_of(config(shot_questions=(owls, elks), shots=3), "elks_test", SILENT)
    assert [shot.question for shot in found.shots] == ["What is 0?", "What is 1?", "What is 2?"]
    assert len(frame_of(config(shot_questions=(owls,)), "anything", SILENT).shots) == 4, "a single file serves all"
    assert frame_of(config(question_template="{question}\\n"), "x", SILENT).template == "{question}\n"
    with pytest.raises(ConfigError, match="no file called moles"):
        frame_of(config(shot_questions=(owls, elks)), "moles_test", SILENT)
    with pytest.raises(DataError, match=r"owls_dev\.jsonl holds 4 questions, and --shots 5"):
        frame_of(config(shot_questions=(owls,), shots=5), "owls", SILENT)
    with pytest.raises(ConfigError, match="--shots 2 are taken from --shot_questions"):
        frame_of(config(shots=2), "owls", SILENT)


def test_no_question_is_asked_behind_its_own_answer(tiny_llama: "LanguageModel", tmp_path: Path) -> None:
    few, more = questions(tmp_path / "few.jsonl", 2), questions(tmp_path / "more.jsonl", 5)
    settings = config(forget_questions=(more,), shot_questions=(few,), half="all", scoring="cloze")
    task = next(one for one in catalogue_of(settings).tasks if one.name == "questions")
    with pytest.raises(DataError, match="2 of the 5 more questions are among --shot_questions"):
        task.load(tiny_llama, settings, half="all", limit=None, progress=SILENT)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"question_template": "{question} {answer}"}, r"--question_template has \{answer\}; it may have \{options\}"),
        ({"question_template": "Say it."}, r"has no \{question\}"),
        ({"question_template": "{question"}, "--question_template '{question': expected '}'"),
        ({"question_front": "{question}"}, r"--question_front has \{question\}; it may have \{subject\}"),
    ],
)
def test_a_frame_that_makes_no_question_is_refused(settings: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        frame_of(config(**settings), "x", SILENT)


def test_a_chat_has_shots_as_turns(tiny_llama: "LanguageModel", monkeypatch: pytest.MonkeyPatch) -> None:
    from sae_forge.models import chat
    from sae_forge.models.chat import Rendered
    from sae_forge.tasks.engines import multiple_choice

    seen: list[dict] = []

    def render(lm: Any, turns: list[dict], *, to_go_on: bool) -> Rendered:
        assert to_go_on
        seen.extend(turns)
        return Rendered("…")

    monkeypatch.setattr(chat, "render", render)
    lm = replace(tiny_llama, tokenizer=copy.deepcopy(tiny_llama.tokenizer))
    lm.tokenizer.chat_template = "there"
    asked = multiple_choice.chat_prompt(lm, ASKED, "x", front="Be brief. ", frame=Frame(shots=(SHOT,)))
    assert asked.text == "…Answer: ("
    assert [(turn["role"], turn["content"]) for turn in seen] == [
        (
            "user",
            "Be brief. The following are multiple choice questions (with answers) about high ground.\n"
            "Which was it?\nA. old\nB. new",
        ),
        ("assistant", "Answer: (A)"),
        ("user", "Which is it?\nA. one\nB. two"),
    ]


def test_where_the_model_can_only_guess_it_is_said() -> None:
    near = {"accuracy": Estimate(0.3, 0.2, 0.4), "chance_distance": Estimate(0.05, 0.0, 0.15)}
    far = {"accuracy": Estimate(0.9, 0.8, 1.0), "chance_distance": Estimate(0.65, 0.55, 0.75)}
    (line,) = guessing({"forget": Cell(estimates=near), "retain": Cell(estimates=far)})
    assert "the unedited model is not told apart from guessing on the forget questions" in line
    assert "(0.30 [0.20, 0.40])" in line
