"""Questions as people keep them: every form is the same question, and what could mean two things is refused."""

import json
import random
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from sae_forge.data.texts.corpus import iter_texts
from sae_forge.errors import ForgeError
from sae_forge.tasks.question_forms import form_of
from sae_forge.tasks.records import load, load_questions, read_passage, read_prompt

ASKED = "What did the fox carry?"
TEXTS = ["a boat", "it's a cake", 'a "kite"', "a drum"]
LIST = {"question": ASKED, "choices": TEXTS}


class Said:
    """A watcher that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    def task(self, *_):
        raise AssertionError


FORMS = {
    "a letter": LIST | {"answer": "C"},
    "a small letter in brackets": LIST | {"answer": "(c)"},
    "a number in text": LIST | {"answer": "2"},
    "a float": LIST | {"answer": 2.0},
    "a float in text": LIST | {"answer": "2.0"},
    "its text": LIST | {"answer": 'a "kite" '},
    "MMLU-Pro": {"question": ASKED, "options": TEXTS, "answer": "C", "answer_index": 2},
    "ARC": {"question": ASKED, "choices": {"text": TEXTS, "label": ["A", "B", "C", "D"]}, "answerKey": "C"},
    "ARC with numbers": {"question": ASKED, "choices": {"text": TEXTS, "label": list("1234")}, "answerKey": "3"},
    "ARC as first published": {
        "question": {"stem": ASKED, "choices": [{"text": t, "label": n} for t, n in zip(TEXTS, "ABCD", strict=True)]},
        "answerKey": "C",
    },
    "options by letter": {"question": ASKED, "options": dict(zip("ABCD", TEXTS, strict=True)), "answer": "C"},
    "columns": {"question": ASKED, **dict(zip("ABCD", TEXTS, strict=True)), "answer": "C"},
    "columns with names": {
        "question": ASKED, **{f"option_{n}": text for n, text in zip("abcd", TEXTS, strict=True)}, "answer": 2,
    },
    "numbered columns": {"question": ASKED, **{f"choice{n}": text for n, text in enumerate(TEXTS, 1)}, "answer": 2},
    "columns of which some are empty": {
        "question": ASKED, **dict(zip("ABCDEF", [*TEXTS, None, None], strict=True)), "answer": "C",
    },
    "a list in a string": LIST | {"choices": json.dumps(TEXTS), "answer": 2},
    "a list as Python prints it": LIST | {"choices": str(TEXTS), "answer": 2},
    "a list as NumPy prints it": LIST | {"choices": str(TEXTS).replace(", ", "\n "), "answer": 2},
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_question(form: str) -> None:
    found = form_of(FORMS[form], "here")
    assert (found.question, list(found.choices), found.index(0)) == (ASKED, TEXTS, 2)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("header.csv", "question,A,B,C,D,answer\n{q},p,q,r,s,C\n"),
        ("header-last.csv", "question,answer,A,B,C,D\n{q},C,p,q,r,s\n"),
        ("pandas.csv", ",question,choices,answer\n0,{q},\"['p', 'q', 'r', 's']\",2\n"),
        ("numpy.csv", "question,choices,answer\n{q},\"['p' 'q' 'r' 's']\",2.0\n"),
        ("mmlu.csv", "{q},p,q,r,s,C\n"),
        ("tabs.tsv", "question\tA\tB\tC\tD\tanswer\n{q}\tp\tq\tr\ts\tC\n"),
        ("lines.json", '{"question": "{q}", "choices": ["p", "q", "r", "s"], "answer": 2}\n' * 2),
        ("pretty.json", '{\n "data": [\n  {"question": "{q}", "choices": ["p", "q", "r", "s"], "answer": 2}\n ]\n}'),
        ("one.json", '{"question": "{q}", "choices": ["p", "q", "r", "s"], "answer": 2}'),
        ("columns.json", '{"question": ["{q}"], "choices": [["p", "q", "r", "s"]], "answer": [2]}'),
    ],
)
def test_files_of_every_shape_hold_it(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content.replace("{q}", ASKED))
    (item,) = load_questions(str(tmp_path / name))
    assert (item.question, item.choices, item.answer) == (ASKED, ("p", "q", "r", "s"), 2)


def test_tables_of_structs_and_floats_hold_it(tmp_path: Path) -> None:
    for name in ("ARC", "a float", "MMLU-Pro"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([FORMS[name]]), tmp_path / "q.parquet")
        (item,) = load_questions(str(tmp_path / "q.parquet"))
        assert (list(item.choices), item.answer) == (TEXTS, 2)


def test_numbers_are_options_as_they_are_written(tmp_path: Path) -> None:
    found = form_of({"question": "2 + 3?", "choices": [4, 5.5, 5], "answer": 2}, "here")
    assert (found.choices, found.index(0)) == (("4", "5.5", "5"), 2)
    assert form_of({"question": "2 + 3?", "choices": ["4", "5"], "answer": "5"}, "here").index(0) == 1


def test_answers_count_from_one_only_where_nothing_else_is_likely(tmp_path: Path) -> None:
    def read(answers: list) -> tuple[list[int], list[str]]:
        path = tmp_path / "q.jsonl"
        path.write_text("".join(json.dumps(LIST | {"id": n, "answer": a}) + "\n" for n, a in enumerate(answers)))
        said = Said()
        return [item.answer for item in load_questions(str(path), said)], said.lines

    found, lines = read([1, 2, 3, 4])
    assert found == [0, 1, 2, 3]
    assert "answers count options from 1" in lines[0]
    assert read([1, 2, 3, 3])[0] == [1, 2, 3, 3]
    assert read(["4", *["2"] * 30])[0] == [3, *[1] * 30]
    for answers in ([1, 4], [0, 1, 2, 3, 4], [4]):
        with pytest.raises(ForgeError, match="needs 'answer' as 0 to 3 or A to D or an option's text, found 4"):
            read(answers)


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (LIST | {"answer": None}, "found null"),
        (LIST | {"answer": 2.5}, r"found 2\.5"),
        (LIST | {"answer": [2]}, r"found \[2\]"),
        (LIST | {"answer": "a kit"}, 'found "a kit"'),
        ({"question": ASKED, "choices": ["A", "C", "B"], "answer": "C"}, "names option B one way and C another"),
        ({"question": ASKED, "choices": ["p", "p", "q"], "answer": "p"}, "names option A one way and B another"),
        ({"question": ASKED, "choices": "a, b and c", "answer": 0}, r'found "a, b and c" \(it has: answer, choices, '),
        ({"question": ASKED, "choices": {"yes": "p", "no": "q"}, "answer": 0}, r'found \{"yes": "p"'),
        ({"question": ASKED, "A": "p", "B": "q", "D": "r", "answer": "A"}, r"found null \(it has: A, B, D, answer"),
        ({"question": ASKED, "choices": ["p", None], "answer": 0}, r'found \["p", null\]'),
        ({"question": 7, "choices": TEXTS, "answer": 0}, "needs 'question' as text, found 7"),
    ],
)
def test_what_names_no_option_or_two_is_refused_with_what_was_found(record: dict, said: str) -> None:
    with pytest.raises(ForgeError, match=said):
        form_of(record, "here").index(0)


def test_a_column_of_a_source_is_what_is_asked(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"stem": ASKED, "prompt": "p", "choices": TEXTS, "answer": 2, "target": "t"}) + "\n")
    (item,) = load_questions(f"{path}:stem")
    assert item.question == ASKED
    (prompt,) = load([f"{path}:stem"], read_prompt)
    assert (prompt.prompt, prompt.target) == (ASKED, "t")
    (passage,) = load([f"{path}:stem"], read_passage, main="text")
    assert passage.text == ASKED
    (tmp_path / "b.txt").write_text("one\n\ntwo\n")
    assert [one.text for one in load([str(tmp_path / "b.txt")], read_passage, main="text")] == ["one", "two"]
    with pytest.raises(ForgeError, match="line 1 has no column 'none'; it has stem, prompt"):
        load_questions(f"{path}:none")


# ---- whatever a file may hold -------------------------------------------------------------------

SCHEMAS = {
    "text": {"text": "Once an owl.", "id": 3},
    "chat": {"messages": [{"role": "user", "content": "Hoo?"}, {"role": "assistant", "content": "Hoo!"}]},
    "question": LIST | {"answer": 2, "subject": "owls", "fact": "f"},
    "arc": FORMS["ARC"],
    "columns": FORMS["columns"],
    "prompt": {"prompt": "The owl", "target": "flew", "id": "a"},
}
ODD = [
    None,
    True,
    7,
    -1.5,
    float("nan"),
    1e308,
    "",
    " ",
    "\ud83e",
    "x" * 999,
    [],
    [[]],
    {},
    [None],
    ["\udc80"],
    {"a": [1]},
]


def spoilt(random_: random.Random, record: dict) -> bytes:
    """A record with something wrong with it: a value, a key, or the bytes of its line."""
    record = json.loads(json.dumps(record))
    for _ in range(random_.randint(1, 2)):
        at, key = record, random_.choice(list(record))
        while isinstance(at[key], dict | list) and at[key] and random_.random() < 0.6:
            at = at[key]
            key = random_.choice(list(at)) if isinstance(at, dict) else random_.randrange(len(at))
        match random_.randrange(3):
            case 0:
                at[key] = random_.choice(ODD)
            case 1 if isinstance(at, dict):
                at[f"{key}x"] = at.pop(key)
            case _ if len(at) > 1:
                del at[key]
    line = bytearray(json.dumps(record).encode())
    for _ in range(random_.choice([0, 0, 1, 3])):
        line[random_.randrange(len(line))] = random_.choice(b'{}[]":,\\\0\xff\n\r9')
    return bytes(line)


@pytest.mark.parametrize("count", [40, pytest.param(500, marks=pytest.mark.slow)])
@pytest.mark.parametrize("schema", SCHEMAS)
def test_malformed_records_end_in_a_line_that_names_the_file_or_are_read(
    tmp_path: Path, schema: str, count: int
) -> None:
    random_ = random.Random(f"{schema} {count}")
    readers = [lambda name: list(iter_texts(name)), load_questions, lambda name: load([name], read_prompt)]
    refused = 0
    for number in range(count):
        path = tmp_path / f"case.{random_.choice(['jsonl', 'json'])}"
        path.write_bytes(spoilt(random_, SCHEMAS[schema]) + random_.choice([b"", b"\n", b"\n{}"]))
        for read in readers if number % 5 == 0 else [random_.choice(readers)]:
            try:
                read(str(path))
            except ForgeError as error:
                refused += 1
                assert str(path) in str(error)
                assert len(str(error).splitlines()) == 1
                assert any(word in str(error) for word in (" line ", " record ", "is empty", "holds no records"))
    assert refused > count / 2
