"""What a source's name may say, and every form in which people keep text: read right, or refused with the question."""

import bz2
import gzip
import json
import lzma
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sae_forge.config.collect import CollectConfig
from sae_forge.data.texts.corpus import Tally, iter_texts
from sae_forge.data.texts.sources import corpus_identity, corpus_name, first_tenth_apart, named, split_of, told_apart
from sae_forge.errors import DataError
from sae_forge.settings import parse_value

OWLS = [f"Owl number {number} flew home." for number in range(40)]


def write_lines(path: Path, records: list) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def texts(source: str | Path, **how) -> list:
    return list(iter_texts(str(source), **how))


# ---- names --------------------------------------------------------------------------------------


def test_a_column_and_a_part_stand_behind_the_file(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"n": 1, "story": owl, "title": "t"} for owl in OWLS])
    assert texts(f"{path}:story") == OWLS
    assert texts(f"{path}:story[:10%]") == OWLS[:4]
    assert texts(f"{path}:story[:1000]") == OWLS
    assert texts(f"{path}:story[5:7]", text_field="title") == OWLS[5:7]
    assert texts(f"{path}:story[95%:]") == OWLS[38:]
    with pytest.raises(DataError, match="column 'tale' does not exist; its columns are n, story, title"):
        texts(f"{path}:tale")
    with pytest.raises(DataError, match=r"several columns of text.*or as FILE:COLUMN"):
        texts(path)
    odd = write_lines(tmp_path / "odd:b[:3].jsonl", [{"text": "there"}])  # what exists is meant
    assert texts(odd) == ["there"]
    names = [corpus_name(f"{path}{said}") for said in ("", ":story", ":story[:10%]", "[3:]")]
    assert names == ["a", "a--story", "a--story--0-10pct", "a--3-end"]
    assert len({corpus_identity(f"{path}{said}") for said in ("", ":story", ":story[:10%]", "[3:]")}) == 4


def test_a_book_is_cut_after_a_word_and_a_tenth_of_it_is_set_apart(tmp_path: Path) -> None:
    book = tmp_path / "book.txt"
    book.write_text(" ".join(OWLS))
    first, rest = first_tenth_apart(str(book))
    assert (first, rest) == (f"{book}[:10%]", f"{book}[10%:]")
    assert texts(first)[0] + texts(rest)[0] == " ".join(OWLS) and texts(first)[0].startswith(OWLS[0])
    assert 0.08 < len(texts(first)[0]) / len(" ".join(OWLS)) < 0.12 and texts(first)[0][-1] == " "
    path = write_lines(tmp_path / "three.jsonl", [{"text": text} for text in ("a " * 40, "b " * 40, "c " * 40)])
    assert texts(f"{path}[:50%]") == ["a " * 40, "b " * 20] and texts(f"{path}[50%:]") == ["b " * 20, "c " * 40]
    assert texts(f"{path}[1:2]") == ["b " * 40], "numbers still count records"
    talk = write_lines(tmp_path / "talk.jsonl", [{"messages": [{"role": "user", "content": "Hi"}]}] * 2)
    assert len(texts(f"{talk}[:50%]", converse=list)) == 1 == len(texts(f"{talk}[50%:]", converse=list))


@pytest.mark.parametrize(
    ("given", "first", "rest"),
    [("", "[:10%]", "[10%:]"), ("[:1000]", "[:100]", "[100:1000]"), ("[20%:50%]", "[20%:23%]", "[23%:50%]")],
)  # fmt: skip
def test_a_stretch_is_divided_by_its_own_bounds(given: str, first: str, rest: str) -> None:
    assert first_tenth_apart(f"some/owls@train{given}") == (f"some/owls@train{first}", f"some/owls@train{rest}")
    for undivided in ("[:1%]", "[5:]"):
        with pytest.raises(DataError, match="no tenth"):
            first_tenth_apart(f"some/owls{undivided}")


def test_a_percentage_of_rows_is_known_from_a_parquet_without_reading_it(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": OWLS}), tmp_path / "a.parquet")
    assert texts(f"{tmp_path}/*.parquet[50%:60%]") == OWLS[20:24]


def test_an_id_takes_a_configuration_a_split_a_column_and_a_part() -> None:
    found = named("some/owls:raw@train:story[:1%]")
    assert (found.place, found.config, found.split, found.column) == ("some/owls", "raw", "train", "story")
    assert str(found.part) == "[:1%]"
    assert found.files is None
    assert (named("owls@train").split, named("some/owls:raw").config) == ("train", "raw")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("https://somewhere/a.jsonl", "is a URL.*download it"),
        ("nowhere/*.jsonl", "does not exist; give a file, a folder, a glob"),
        ("world:corpora/nobody", "not in the built-in world"),
        ("missing.jsonl:text[:1%]", "does not exist"),
        (f"{__file__}[%:5]", "does not exist"),
        (f"{'x' * 300}.jsonl", "does not exist"),
    ],
)
def test_what_is_not_there_is_refused_with_what_could_be(source: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        texts(source)


def test_a_kind_before_a_file_is_told_away(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"text": "a"}])
    with pytest.raises(DataError, match=f"give {path} alone"):
        texts(f"json:{path}")


def test_globs_give_their_files_in_order(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        write_lines(tmp_path / name / "x.jsonl", [{"text": name}])
    (tmp_path / "a" / "notes.md").write_text("no text")
    assert texts(tmp_path / "*" / "*") == ["a", "b", "c"]
    assert texts(tmp_path / "[ab]" / "x.*") == ["a", "b"]
    assert corpus_identity(f"{tmp_path}/*/x.jsonl") != corpus_identity(f"{tmp_path}/[ab]/x.jsonl")


def test_commas_part_names_unless_they_stand_in_a_path_that_is_there(tmp_path: Path) -> None:
    odd = write_lines(tmp_path / "a,b" / "x,y.jsonl", [{"text": "a"}])
    plain = write_lines(tmp_path / "z.jsonl", [{"text": "b"}])
    given = f"{plain},{odd}:text, {tmp_path}/a,b/*.jsonl,some/owls"
    found = parse_value(CollectConfig, "retain", given)
    assert found == (plain, f"{odd}:text", f"{tmp_path}/a,b/*.jsonl", "some/owls")
    assert parse_value(CollectConfig, "layer", "1,2") == (1, 2)


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    paths = [write_lines(tmp_path / folder / "x.jsonl", [{"text": folder}]) for folder in ("a", "b", "c/b")]
    assert told_apart(paths) == ["x", "b-x", "c-b-x"]
    with pytest.raises(DataError, match="is given twice"):
        told_apart([paths[0], paths[0]])


# ---- splits -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("train.jsonl", "train"),
        ("test-00000-of-00002.parquet", "test"),
        ("data/validation/part.jsonl", "validation"),
        ("data/dev.csv", "validation"),
        ("college_computer_science_test.csv", "test"),
        ("retain1-00000-of-00001.parquet", "retain1"),
        ("held_out.txt", "test"),
        ("wiki.train.tokens.txt", "train"),
        ("latest/contest-stories.txt", None),
        ("brains/0001.jsonl", None),
        ("forget10.json", None),
    ],
)
def test_a_path_names_its_split(path: str, split: str | None) -> None:
    assert split_of(Path(path)) == split


def test_splits_of_a_folder_never_mix(tmp_path: Path) -> None:
    write_lines(tmp_path / "data" / "train-00000-of-00002.jsonl", [{"text": "one"}])
    write_lines(tmp_path / "data" / "train-00001-of-00002.jsonl", [{"text": "two"}])
    write_lines(tmp_path / "data" / "test-00000-of-00001.jsonl", [{"text": "held out"}])
    write_lines(tmp_path / "data" / "notes.jsonl", [{"text": "stray"}])
    tally = Tally()
    assert texts(tmp_path, tally=tally) == ["one", "two"]
    assert "the split train, 2 of 4 files; left out: " in tally.lines("x")[0]
    assert texts(tmp_path, split="test") == texts(f"{tmp_path}@test") == texts(f"{tmp_path}/data/test*") == ["held out"]
    assert texts(f"{tmp_path}/data/*", split="test") == ["held out"]
    assert len(texts(f"{tmp_path}@all")) == 4
    with pytest.raises(DataError, match=r"holds test and train text .*and no dev; say which is meant: .*@test"):
        texts(tmp_path, split="dev")
    (tmp_path / "data" / "train-00000-of-00002.jsonl").unlink()
    (tmp_path / "data" / "train-00001-of-00002.jsonl").unlink()
    with pytest.raises(DataError, match="holds test text"):  # one split, and not the one that is asked for
        texts(tmp_path)


def test_a_split_that_a_source_names_is_there_or_refused(tmp_path: Path) -> None:
    train, plain = (write_lines(tmp_path / name / f"{name}.jsonl", [{"text": name}]) for name in ("train", "a"))
    assert texts(f"{train}@train") == texts(f"{train}@all") == texts(f"{tmp_path}/train/*@train") == ["train"]
    for named_otherwise in (train, f"{tmp_path}/train/t*"):
        with pytest.raises(DataError, match=r"holds train text .*and no test"):
            texts(f"{named_otherwise}@test")
    for unnamed in (plain, tmp_path / "a"):  # both @train and @test would be all of it
        with pytest.raises(DataError, match=f"no file there names a split; give {unnamed} alone"):
            texts(f"{unnamed}@test")
        assert texts(unnamed, split="test") == ["a"]


# ---- encodings ----------------------------------------------------------------------------------


@pytest.mark.parametrize("pack", [gzip.open, bz2.open, lzma.open, None], ids=["gz", "bz2", "xz", "zst"])
def test_compressed_files_are_read_as_they_are(tmp_path: Path, pack, request: pytest.FixtureRequest) -> None:
    path = tmp_path / f"a.jsonl.{request.node.callspec.id}"
    content = "".join(json.dumps({"text": owl}) + "\n" for owl in OWLS).encode()
    with pack(path, "wb") if pack else pa.output_stream(str(path), compression="zstd") as file:
        file.write(content)
    assert texts(path) == OWLS
    assert corpus_name(str(path)) == "a"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match="cannot be read"):
        texts(path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_encodings_that_announce_themselves_and_any_line_end_give_the_same_text(
    tmp_path: Path, encoding: str, newline: str
) -> None:
    path = tmp_path / "a.txt"
    with path.open("w", encoding=encoding, newline=newline) as file:
        file.write("Zwölf\nGnome 🦉\n\nfive\n")
    assert texts(path) == ["Zwölf\nGnome 🦉", "five"]
    with (tmp_path / "a.csv").open("w", encoding=encoding, newline=newline) as file:
        file.write('n,text\n1,"Zwölf\nGnome"\n')
    assert texts(tmp_path / "a.csv") == ["Zwölf\nGnome"]


# ---- forms --------------------------------------------------------------------------------------

CHAT = [{"role": "user", "content": "Hoo?"}, {"role": "assistant", "content": "Hoo!"}]
SHARED = [{"from": "human", "value": "Hoo?"}, {"from": "gpt", "value": "Hoo!"}]
PARTS = [{"role": "user", "content": [{"type": "text", "text": "Hoo?"}, {"type": "image"}]}, CHAT[1]]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
@pytest.mark.parametrize(
    "record",
    [
        {"id": "a", "messages": CHAT},
        {"id": "a", "conversations": SHARED},
        {"messages": PARTS},
        {"prompt": CHAT[:1], "completion": CHAT[1:]},
    ],
)
def test_conversations_are_handed_to_who_can_write_them(tmp_path: Path, record: dict, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    if suffix == ".parquet":
        if record.get("messages") == PARTS:
            pytest.skip("a column of a table has one type")
        pq.write_table(pa.Table.from_pylist([record] * 3), path)
    else:
        path.write_text(json.dumps([record] * 3) if suffix == ".json" else (json.dumps(record) + "\n") * 3)
    tally = Tally()
    assert texts(path, converse=list, tally=tally) == [CHAT] * 3
    assert (tally.conversations, tally.read) == (3, 3)
    assert texts(path) == ["user: Hoo?\n\nassistant: Hoo!"] * 3


def test_lists_of_texts_are_a_document_each_and_prompt_and_completion_are_one(tmp_path: Path) -> None:
    assert texts(write_lines(tmp_path / "a.jsonl", [{"text": ["a", "b"]}, {"text": "c"}, ["d", "e"]])) == list("abcde")
    assert texts(write_lines(tmp_path / "b.jsonl", [{"id": "1", "paragraphs": ["a", "b"]}] * 2)) == ["1", "1"]
    pq.write_table(pa.table({"n": [1], "paragraphs": [["a", "b"]]}), tmp_path / "c.parquet")
    assert texts(tmp_path / "c.parquet") == ["a", "b"]
    both = write_lines(tmp_path / "d.jsonl", [{"prompt": "Once", "completion": " upon", "id": "7"}] * 2)
    assert texts(both) == ["Once upon"] * 2
    assert texts(f"{both}:completion") == [" upon"] * 2


@pytest.mark.parametrize(
    "value",
    [
        [{"text": "a"}, {"text": "b"}],
        {"version": "1.0", "data": [{"text": "a"}, {"text": "b"}]},
        {"text": ["a", "b"]},
        {"text": {"0": "a", "1": "b"}, "n": {"0": 1, "1": 2}},
        {"text": ["a", "b"], "n": [1, 2]},
        ["a", "b"],
    ],
)
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_one_value_of_json_gives_its_records_however_it_is_laid_out(
    tmp_path: Path, value, indent: int | None, suffix: str
) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_text(json.dumps(value, indent=indent))
    assert texts(path, text_field="text" if isinstance(value, dict) else None) == ["a", "b"]


def test_objects_one_after_the_other_may_go_over_many_lines(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("".join(json.dumps({"text": one}, indent=1) + "\n" for one in "ab"))
    assert texts(tmp_path / "a.json") == ["a", "b"]
    (tmp_path / "b.json").write_text(json.dumps({name: [{"text": name}] for name in ("train", "test")}, indent=1))
    with pytest.raises(DataError, match="one object with records under 'train' and 'test'; which is meant"):
        texts(tmp_path / "b.json")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('"Once the mole had a kite. It flew."\n"Once the owl had one."\n', "reads like text.*no header"),
        ("Once the mole had a kite and the owl had none at all\nsecond\n", "reads like text.*no header"),
        ('1,"Once the mole had a kite. It flew."\n2,"Once, the owl."\n', "reads like text.*no header"),
        ('id;text\n1;"a story"\n', "'id;text': another delimiter, ';'"),
        ("id\ttext\n1\ta\n", "another delimiter"),
        ("id|text\n1|a, b\n", "another delimiter"),
        ("text,text\na,b\n", "names the column 'text' twice"),
    ],
)
def test_a_table_whose_only_column_is_an_accident_is_refused(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(DataError, match=said):
        texts(tmp_path / "a.csv")
    (tmp_path / "a.tsv").write_text("id,text\n1,a\n")
    with pytest.raises(DataError, match=r"another delimiter, ','.*tabs between columns"):
        texts(tmp_path / "a.tsv")


# ---- documents that cannot be read --------------------------------------------------------------

BAD = {
    "half": ('{"text": "half \\ud83e"}', "holds half a surrogate pair"),
    "bytes": (b'{"text": "\xfcbel"}', r"is not UTF-8 \(byte 0xFC\)"),
    "number": ('{"text": 7}', "'text' holds int"),
    "missing": ('{"body": "a"}', "has no 'text'; it has body"),
    "broken": ('{"text": ', "is not JSON"),
    "twice": ('{"text": "a", "text": "b"}', "is not JSON: the key 'text' appears twice"),
    "turn": ('{"text": [{"role": "user", "content": null}]}', "has a turn of str that says NoneType"),
}


@pytest.mark.parametrize("kind", BAD)
def test_one_unreadable_document_in_a_thousand_is_skipped_counted_and_named(tmp_path: Path, kind: str) -> None:
    bad, why = BAD[kind]
    line = bad if isinstance(bad, bytes) else bad.encode()
    good = [json.dumps({"text": owl}).encode() for owl in OWLS]
    path = tmp_path / "a.jsonl"

    def read(lines: list[bytes]) -> Tally:
        path.write_bytes(b"\n".join(lines))
        tally = Tally()
        assert texts(path, tally=tally) == OWLS * ((len(lines) - tally.skipped) // 40)
        return tally

    tally = read([good[0], line, *good[1:]])
    assert (tally.read, tally.skipped) == (40, 1)
    (told,) = tally.lines("retain-a")
    assert told.startswith(f"retain-a: 1 of 41 documents skipped: {path} line 2 ")
    assert read([*good * 50, line, line]).skipped == 2
    for lines in ([*good, line, line], [*good[:18], line], [*good, *[line] * 12]):
        with pytest.raises(DataError, match=rf"a\.jsonl line \d+ {why}") as caught:
            read(lines)
        assert "\n" not in str(caught.value)


def test_a_conversation_that_the_template_refuses_is_such_a_document(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"messages": CHAT}] * 30 + [{"messages": CHAT[:1]}])

    def converse(turns):
        if len(turns) < 2:
            raise DataError("no answer")
        return turns

    tally = Tally()
    assert len(texts(path, converse=converse, tally=tally)) == 30
    assert tally.named == [f"{path} line 31 no answer"]


def test_records_of_null_are_counted_and_blank_ones_are_not(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"text": "a"}, {"text": None}, {"text": " "}, None])
    tally = Tally()
    assert texts(path, tally=tally) == ["a"]
    assert tally.lines("x") == ["x: 2 records hold null and no text"]


@pytest.mark.parametrize("part", ["", "[:10%]"])
def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path, part: str) -> None:
    packed = bytearray(gzip.compress("".join(f'{{"text": "{hash(n * n)}"}}\n' for n in range(5000)).encode()))
    packed[2000:2040] = b"\xff" * 40
    for name, content in (("a.jsonl.gz", packed), ("a.parquet", b"PAR1 is no table PAR1")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match="cannot be read"):
            texts(f"{tmp_path / name}{part}")


def test_a_bad_first_line_is_skipped_in_packed_lines_too(tmp_path: Path) -> None:
    lines = '{"text": "cut off\n' + "".join(json.dumps({"text": owl}) + "\n" for owl in OWLS)
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    assert texts(tmp_path / "a.jsonl") == texts(tmp_path / "a.jsonl.gz") == OWLS


def test_a_first_completion_that_is_null_does_not_cost_all_others(tmp_path: Path) -> None:
    pairs = [{"prompt": "Who?", "completion": None}, {"prompt": "Who?", "completion": " An owl."}]
    assert texts(write_lines(tmp_path / "a.jsonl", pairs)) == ["Who? An owl."]


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "a.jsonl.gz"
    with gzip.open(path, "wt", compresslevel=1) as file:
        file.writelines(json.dumps({"text": f"{number} " + "owl " * 4000}) + "\n" for number in range(400))
    tracemalloc.start()
    assert sum(len(text) for text in iter_texts(str(path))) > 6_000_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000
    assert path.stat().st_size < 1_000_000
