"""Question and prompt files: every form that is read, every mistake in one line, and halves that hold everywhere."""

import json
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from sae_forge.errors import DataError
from sae_forge.models.loading import LanguageModel
from sae_forge.progress import SILENT
from sae_forge.study.estimates import described_domains
from sae_forge.study.measure import load_asked
from sae_forge.study.settings import eval_config
from sae_forge.tasks.prompts import Prompts
from sae_forge.tasks.records import choose, domain_name, half_of, iter_records, load, load_questions, read_prompt
from sae_forge.tasks.table import TASKS

EvalConfig = eval_config()

RECORD = {
    "question": "Which planet is closest to the Sun?",
    "choices": ["Venus", "Mercury", "Mars", "Earth"],
    "answer": 1,
}


def write_lines(path: Path, records: list) -> Path:
    path.write_text("\n".join(json.dumps(record) for record in records) + "\n")
    return path


def test_every_form_of_the_same_question_is_the_same_item(tmp_path: Path):
    lettered = RECORD | {"answer": "B"}
    files = [
        write_lines(tmp_path / "a.jsonl", [lettered]),
        *(tmp_path / name for name in ("b.json", "c.csv", "d.parquet")),
    ]
    files[1].write_text(json.dumps([RECORD]))
    files[2].write_text("Which planet is closest to the Sun?,Venus,Mercury,Mars,Earth,B\n")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([RECORD]), files[3])
    found = [load_questions(str(file)) for file in files]
    assert all(len(items) == 1 for items in found)
    assert len(set(found)) == 1
    assert found[0][0].answer == 1
    assert found[0][0].fact == found[0][0].id


def test_quotes_and_line_breaks_in_a_csv_field_are_kept(tmp_path: Path):
    path = tmp_path / "q.csv"
    path.write_text('"A ""quoted"" one,\nover two lines",a,b,c,"d, too",D\n')
    (item,) = load_questions(str(path))
    assert item.question == 'A "quoted" one,\nover two lines'
    assert item.choices[3] == "d, too"


def test_given_names_are_kept_and_blank_subjects_dropped(tmp_path: Path):
    record = RECORD | {"id": 7, "fact": "mercury|place", "subject": ""}
    (item,) = load_questions(str(write_lines(tmp_path / "q.jsonl", [record])))
    assert (item.id, item.fact, item.subject) == ("7", "mercury|place", None)


def test_an_item_that_stands_in_the_file_twice_is_taken_once(tmp_path: Path):
    assert len(load_questions(str(write_lines(tmp_path / "q.jsonl", [RECORD, RECORD])))) == 1


BROKEN = {
    "one choice": (json.dumps(RECORD | {"choices": ["a"], "answer": 0}), "'choices' as a list of 2 to 26"),
    "too many choices": (json.dumps(RECORD | {"choices": ["a"] * 27}), "'choices' as a list of 2 to 26"),
    "an empty choice": (json.dumps(RECORD | {"choices": ["a", "b", "c", " "]}), "'choices'"),
    "answer out of range": (json.dumps(RECORD | {"answer": 4}), "'answer'"),
    "answer a truth value": (json.dumps(RECORD | {"answer": True}), "'answer'"),
    "answer missing": (json.dumps({key: RECORD[key] for key in ("question", "choices")}), "'answer'"),
    "no question": (json.dumps({"text": "hello"}), "'question'"),
    "not JSON": ("{'question': 1}", "is not JSON"),
    "a list": ("[1, 2]", r"is not a JSON object but \[1, 2\]"),
    "a key twice": ('{"question": "a", "question": "b"}', "twice"),
    "half a surrogate pair": (
        json.dumps(RECORD | {"question": "\ud800"}),
        "'question' as text, and it holds half a sur",
    ),
    "half of one in an option": (
        json.dumps(RECORD | {"choices": ["a", "\ud800"]}),
        "'choices' as text, and it holds half",
    ),
    "half of one in an id": (json.dumps(RECORD | {"id": "\ud800"}), "'id' as text"),
    "an answer of no option": (json.dumps(RECORD | {"answer": "Pluto"}), 'or an option\'s text, found "Pluto"'),
    "an answer that names two": (
        json.dumps(RECORD | {"choices": ["1", "2", "3", "4"], "answer": "2"}),
        "which names option B one way and C another",
    ),
    "id no text": (json.dumps(RECORD | {"id": [1]}), "'id'"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_bad_line_is_named_with_its_number(tmp_path: Path, what: str):
    line, complaint = BROKEN[what]
    path = tmp_path / "bio.jsonl"
    path.write_text(json.dumps(RECORD) + "\n\n" + line + "\n")
    with pytest.raises(DataError, match=complaint) as caught:
        load_questions(str(path))
    assert "bio.jsonl line 3" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_records_of_one_id_are_refused(tmp_path: Path):
    path = write_lines(tmp_path / "q.jsonl", [RECORD | {"id": "a"}, RECORD | {"id": "a", "answer": 2}])
    with pytest.raises(DataError, match="'a', which another record has too"):
        load_questions(str(path))


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("empty.jsonl", b"", "holds no records"),
        ("object.json", b"{}", "needs 'question' as text, found null"),
        ("list.jsonl", b"[1]\n[2]\n", r"line 1 is not a JSON object but \[1\]"),
        ("short.csv", b"Frage?,a,b,B\nWarum?,a,b,C\n", "short.csv line 2 does not end in an option's letter"),
        ("head.csv", b"question,answer\nWarum\n", "line 2 has 1 columns, its header 2"),
        ("latin.csv", "Frage,\xe4,b,c,d,A\n".encode("latin-1"), "UTF-8"),
        ("no.parquet", b"PAR1 no", "cannot be read"),
        ("text.txt", b"hello", "needs 'choices' as a list of 2 to 26 texts, or as columns A, B, .*found null"),
        ("doc.docx", b"hello", "is not read here"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path: Path, name: str, content: bytes, complaint: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=complaint) as caught:
        load_questions(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named():
    with pytest.raises(DataError, match=r"nowhere/q\.jsonl"):
        load_questions("nowhere/q.jsonl")


def test_the_built_in_world_is_found_by_name():
    assert domain_name("world:questions/wizards") == "wizards"
    assert len(load_questions("world:questions/wizards")) > 200
    with pytest.raises(DataError):
        load_questions("world:questions/nobody")


@pytest.mark.parametrize("options", [2, 5, 26])
def test_a_question_has_as_many_options_as_it_has(tmp_path: Path, options: int):
    choices = [f"planet {n}" for n in range(options)]
    letter = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[options - 1]
    record = {"question": "Which?", "choices": choices, "answer": letter}
    (item,) = load_questions(str(write_lines(tmp_path / "q.jsonl", [record])))
    (tmp_path / "q.csv").write_text(f"Which?,{','.join(choices)},{letter}\n")
    assert load_questions(str(tmp_path / "q.csv")) == (item,)
    assert (len(item.choices), item.answer) == (options, options - 1)
    with pytest.raises(DataError, match=f"'answer' as 0 to {options - 1} or A to {letter}"):
        load_questions(str(write_lines(tmp_path / "x.jsonl", [record | {"answer": options}])))


def test_questions_come_from_folders_and_dataset_ids_as_text_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "bio").mkdir()
    write_lines(tmp_path / "bio" / "a.jsonl", [RECORD | {"id": "1"}])
    (tmp_path / "bio" / "b.tsv").write_text("question\tid\tanswer\nWhy?\t2\tB\n")
    assert domain_name(str(tmp_path / "bio")) == "bio"
    assert [record["id"] for _, record in iter_records(str(tmp_path / "bio"), "question")] == ["1", "2"]
    asked = {}

    def load_dataset(name, config, **settings):
        asked.update(settings, name=name, config=config)
        return datasets.Dataset.from_list([RECORD]).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load_questions("cais/wmdp:wmdp-bio") == load_questions(str(write_lines(tmp_path / "q.jsonl", [RECORD])))
    assert (asked["name"], asked["config"], asked["split"]) == ("cais/wmdp", "wmdp-bio", "test")
    assert domain_name("cais/wmdp:wmdp-bio") == "cais--wmdp--wmdp-bio"


def test_prompts_are_read_with_and_without_a_target(tmp_path: Path, tiny_llama: LanguageModel):
    path = tmp_path / "p.csv"
    path.write_text("prompt,target,fact\nThe owl is,silver,owl|colour\nThe river,Arn,\n")
    first, second = load([str(path)], read_prompt)
    assert (first.fact, second.fact) == ("owl|colour", second.id)
    config = EvalConfig(generation_prompts=(str(path),), limit=1)
    (asked,) = Prompts().load(tiny_llama, config, half="all", limit=1, progress=SILENT)
    assert asked.content[0] == ("The owl is",)
    with pytest.raises(DataError, match="'target'"):
        load([str(write_lines(tmp_path / "x.jsonl", [{"prompt": "a"}]))], read_prompt)


# ---- halves -------------------------------------------------------------------------------------


def items(tmp_path: Path, count: int = 200) -> tuple:
    records = [RECORD | {"id": f"q{index}", "fact": f"fact {index // 4}"} for index in range(count)]
    return load_questions(str(write_lines(tmp_path / "q.jsonl", records)))


def test_halves_are_disjoint_complete_and_split_no_fact(tmp_path: Path):
    everything = items(tmp_path)
    dev, test = (choose(everything, half, None, "q") for half in ("dev", "test"))
    assert sorted(item.id for item in (*dev, *test)) == sorted(item.id for item in everything)
    assert not {item.fact for item in dev} & {item.fact for item in test}
    assert 0.3 < len(dev) / len(everything) < 0.7


def test_the_half_of_a_fact_is_the_same_on_every_machine():
    """Fixed values: a change here moves every report ever made to other questions."""
    on_test = {index for index in range(8) if half_of(f"fact {index}") == "test"}
    assert on_test == {1, 4, 5, 7}


def test_a_larger_limit_adds_to_a_smaller_one(tmp_path: Path):
    everything = items(tmp_path)
    ten, fifty = ({item.id for item in choose(everything, "all", limit, "q")} for limit in (10, 50))
    assert (len(ten), len(fifty)) == (10, 50)
    assert ten < fifty
    assert ten != {item.id for item in everything[:10]}


def test_a_half_that_is_empty_says_what_to_do(tmp_path: Path):
    only = items(tmp_path, 4)
    empty = "dev" if half_of(only[0].fact) == "test" else "test"
    with pytest.raises(DataError, match="--half all"):
        choose(only, empty, None, "q")


# ---- domains ------------------------------------------------------------------------------------


def test_questions_and_prompts_of_one_stem_are_one_domain(tmp_path: Path, tiny_llama: LanguageModel):
    questions = write_lines(tmp_path / "magic.jsonl", [RECORD])
    (tmp_path / "prompts").mkdir()
    prompts = write_lines(tmp_path / "prompts" / "magic.jsonl", [{"prompt": "a", "target": "b"}])
    config = EvalConfig(forget_questions=(str(questions),), forget_prompts=(str(prompts),), half="all")
    first, second = load_asked(tiny_llama, config)
    assert [(one.domain, one.role, one.kind) for one in (first, second)] == [
        ("magic", "forget", "question"), ("magic", "forget", "prompt"),
    ]  # fmt: skip
    assert described_domains((first, second), TASKS)["magic"].ids == {
        "questions": first.ids, "prompts": second.ids,
    }  # fmt: skip


def test_one_stem_in_two_roles_or_two_files_is_refused(tmp_path: Path, tiny_llama: LanguageModel):
    path = str(write_lines(tmp_path / "magic.jsonl", [RECORD]))
    with pytest.raises(DataError, match="several roles"):
        load_asked(tiny_llama, EvalConfig(forget_questions=(path,), retain_questions=(path,), half="all"))
    with pytest.raises(DataError, match="is given twice"):
        load_asked(tiny_llama, EvalConfig(forget_questions=(path, path), half="all"))
