"""Records of every schema, 500 of each with one thing wrong: a line that says where and what, and exit code 2."""

import copy
import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sae_forge.errors import ConfigError, DataError, ForgeError
from sae_forge.tasks import judge, memorisation, muse, tofu
from sae_forge.tasks.records import load, load_questions, read_passage, read_prompt, read_question
from sae_forge.tasks.rubric import read_rubric

COUNT = 500
ASKED, TEXTS = "What did the fox carry?", ["a boat", "a cake", "a kite", "a drum"]
TEXT = (None, 7, True, "", "  ", [], {}, ["a"], {"a": 1}, "\ud83e", 1.5, float("nan"))
"""What is no text."""
OPTIONS = (None, 7, "", [], ["one"], {}, {"A": "one"}, [[], []], ["a", None], ["a", "a", "\ud800"], [""] * 4, "[1, 2")
ANSWER = (None, -1, 9, "Z", "", [], {}, 1.5, "none of these", 10**400, float("inf"), "AB", [1])
Wrong = dict[str, tuple[Any, ...]]
QUESTION: tuple[dict[str, Any], Wrong] = (
    {"question": ASKED, "choices": TEXTS, "answer": 2},
    {"question": TEXT, "choices": OPTIONS, "answer": ANSWER},
)
SCHEMAS: dict[str, tuple[dict[str, Any], Wrong, Callable[[dict[str, Any], str], object]]] = {
    "wmdp": (*QUESTION, read_question),
    "own": (
        QUESTION[0] | {"fact": "f", "id": 3, "subject": "owls"},
        QUESTION[1] | {"fact": ([], {}, True, "\ud800", 1.5), "id": ([1], {}, False)},
        read_question,
    ),
    "arc": (
        {"question": ASKED, "choices": {"text": TEXTS, "label": list("ABCD")}, "answerKey": "C"},
        {"question": TEXT, "choices": OPTIONS, "answerKey": ANSWER},
        read_question,
    ),
    "mmlu_pro": (
        {"question": ASKED, "options": [*TEXTS, "a bell", "an egg"], "answer": "C"},
        {"question": TEXT, "options": OPTIONS, "answer": ANSWER},
        read_question,
    ),
    "tofu": (
        {"question": ASKED, "answer": "A kite.", "paraphrased_answer": "It was a kite.", "perturbed_answer": TEXTS[:3]},
        {
            "question": TEXT, "answer": TEXT, "paraphrased_answer": TEXT,
            "perturbed_answer": (None, [], "a", {}, [None], ["a", 7], [""], 3, [["a"]]),
        },
        partial(tofu._read_answered, paraphrased=True),
    ),
    "verbmem": ({"prompt": "The fox", "gt": "carried"}, {"prompt": TEXT, "gt": TEXT}, muse._read_verbmem),
    "knowmem": ({"question": ASKED, "answer": "A kite."}, {"question": TEXT, "answer": TEXT}, muse._read_answered),
    "passage": ({"text": "The fox."}, {"text": TEXT}, read_passage),
    "prompts": ({"prompt": "The fox", "target": "ran"}, {"prompt": TEXT, "target": TEXT}, read_prompt),
    "memorised": ({"prompt": "The fox", "gt": "ran"}, {"prompt": TEXT, "gt": TEXT}, memorisation._read_memorised),
    "judged": ({"prompt": {"prompt": "The fox"}}, {"prompt": [*TEXT[:7], {"prompt": 3}, "\ud800"]}, judge._read),
}  # fmt: skip


def spoilt(draw: random.Random, record: dict[str, Any], wrong: Wrong) -> dict[str, Any]:
    """The record with one field gone, under another name, or holding what it may not."""
    record, key = copy.deepcopy(record), draw.choice(list(wrong))
    match draw.randrange(4):
        case 0 if key not in ("fact", "id"):
            del record[key]
        case 1 if key not in ("fact", "id"):
            record[f"x_{key}"] = record.pop(key)
        case _:
            record[key] = draw.choice(wrong[key])
    return record


def refused(error: ForgeError, where: str) -> bool:
    text = str(error)
    return where in text and "\n" not in text and error.exit_code == 2 and len(text) < 700


@pytest.mark.parametrize("schema", SCHEMAS)
def test_whatever_is_wrong_with_a_record_is_said_with_its_line(schema: str) -> None:
    record, wrong, read = SCHEMAS[schema]
    read(record, "a.jsonl line 1")
    draw = random.Random(schema)
    for number in range(COUNT):
        bad = spoilt(draw, record, wrong)
        with pytest.raises(DataError) as error:
            read(bad, f"a.jsonl line {number}")
        assert refused(error.value, f"a.jsonl line {number}"), (bad, error.value)


@pytest.mark.parametrize("schema", SCHEMAS)
def test_in_a_file_the_line_is_the_files(schema: str, tmp_path: Path) -> None:
    record, wrong, read = SCHEMAS[schema]
    path, draw = tmp_path / "records.jsonl", random.Random(schema)
    for _ in range(4):
        lines = [json.dumps(record), json.dumps(spoilt(draw, record, wrong)), json.dumps(record)]
        path.write_text("\n".join(lines))
        with pytest.raises(DataError) as error:
            load([str(path)], read)
        assert refused(error.value, f"{path} line 2"), lines


def test_rows_of_the_mmlu_archive_that_are_none_are_named(tmp_path: Path) -> None:
    path, draw = tmp_path / "anatomy_test.csv", random.Random(0)
    good, odd = [ASKED, *TEXTS, "C"], ["", "Z", "9", "\x00", "AB", '"', "CC"]
    for _ in range(60):
        row = list(good)
        match draw.randrange(3):
            case 0:
                row[-1] = draw.choice(odd)
            case 1:
                del row[draw.randrange(1, 5)]
            case _:
                row[0] = draw.choice(["", "  "])
        path.write_text("\n".join(",".join(each) for each in (good, row, good)) + "\n")
        try:
            assert len(load_questions(str(path))) <= 3  # a row that lacks an option may be a question of three
        except DataError as error:
            assert refused(error, str(path))


def test_rubrics_with_anything_in_them_are_read_or_refused(tmp_path: Path) -> None:
    draw, refusals = random.Random(3), 0
    whole = {
        "name": "r",
        "instruction": "{categories} {answer}",
        "categories": [{"name": n, "says": "x"} for n in "AB"],
    }
    odd = [None, 3, "", [], {}, True, "{", "{x}", "\ud800", ["a"], [{}], 1e400, "{answer} {categories!r}", [[]]]
    for number in range(COUNT // 2):
        said: Any = copy.deepcopy(whole)
        at = draw.choice([said, *said["categories"]])
        at[draw.choice([*at, "score", "other"])] = draw.choice(odd)
        path = tmp_path / f"r{number % 8}.json"
        path.write_text(draw.choice(["", "["]) + json.dumps(draw.choice([said, said, said, [said], 3])))
        try:
            read_rubric(path)
        except ConfigError as error:
            refusals += 1
            assert refused(error, path.name), said
    assert refusals > COUNT / 3
