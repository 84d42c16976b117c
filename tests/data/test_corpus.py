"""Corpora: every kind of source gives the same documents, bad ones are refused in a line, packing loses no token."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets.exceptions import DatasetNotFoundError
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_forge.data.texts import formats, packing
from sae_forge.data.texts.corpus import iter_texts
from sae_forge.data.texts.packing import iter_packed
from sae_forge.data.texts.sources import corpus_identity, corpus_name
from sae_forge.errors import ConfigError, DataError, RemoteError

DOCUMENTS = ['The owl, it said "hoo".', "Zwölf\nGnome", "7", "日本の本 🦉"]


def write(path: Path, documents: list[str]) -> Path:
    """The documents as a file of the kind its name says."""
    records = [{"id": number, "text": text, "flag": None} for number, text in enumerate(documents)]
    match path.suffix:
        case ".jsonl":
            path.write_text("".join(json.dumps(record) + "\n\n" for record in records))
        case ".json":
            path.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8-sig")
        case ".txt":
            path.write_text("\n \n\n".join(documents), encoding="utf-8")
        case ".csv" | ".tsv":
            join = "\t" if path.suffix == ".tsv" else ","
            quoted = [text.replace('"', '""') for text in documents]
            path.write_text(f"id{join}text\n" + "".join(f'{n}{join}"{text}"\n' for n, text in enumerate(quoted)))
        case ".parquet":
            pq.write_table(pa.Table.from_pylist(records), path)
    return path


# ---- sources ------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", formats.PLAIN)
def test_every_kind_of_file_gives_its_documents_in_order(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"owls{suffix}", DOCUMENTS)
    assert list(iter_texts(str(path))) == DOCUMENTS
    assert list(iter_texts(str(path), limit=2)) == DOCUMENTS[:2]


def test_a_folder_gives_its_files_in_order_of_name_and_skips_what_is_no_corpus(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / ".cache").mkdir()
    write(tmp_path / "deep" / "b.txt", ["third"])
    write(tmp_path / "b.jsonl", ["second"])
    write(tmp_path / "a.parquet", ["first"])
    write(tmp_path / ".cache" / "a.jsonl", ["hidden"])
    (tmp_path / "README.md").write_text("no corpus")
    assert list(iter_texts(str(tmp_path))) == ["first", "second", "third"]


def test_folders_that_datasets_saved_are_read_split_by_split(tmp_path: Path) -> None:
    data = datasets.Dataset.from_dict({"n": [0, 1, 2, 3], "text": DOCUMENTS})
    data.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": data, "test": data.select([2])}).save_to_disk(tmp_path / "two")
    assert list(iter_texts(str(tmp_path / "one"))) == DOCUMENTS
    assert list(iter_texts(str(tmp_path / "two"), split="test")) == ["7"]
    with pytest.raises(DataError, match="no split 'dev'; choose one of train, test"):
        iter_texts(str(tmp_path / "two"), split="dev")
    next((tmp_path / "one").glob("*.arrow")).write_bytes(b"damaged")
    with pytest.raises(DataError, match="one cannot be read as a saved dataset"):
        iter_texts(str(tmp_path / "one"))


def test_json_may_hold_lines_or_plain_strings_and_null_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"text": "one"}\n{"text": null}\n{"text": "two", "more": 1}\n')
    (tmp_path / "b.jsonl").write_text('"three"\n{"text": null}\n"  "\n"four"\n')
    assert list(iter_texts(str(tmp_path))) == ["one", "two", "three", "four"]


def test_a_long_text_without_blank_lines_comes_in_documents_of_bounded_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "MAX_PARAGRAPH", 100)
    lines = [f"line {number}\n" for number in range(100)]
    (tmp_path / "a.txt").write_text("".join(lines))
    documents = list(iter_texts(str(tmp_path / "a.txt")))
    assert "\n".join(documents) + "\n" == "".join(lines)
    assert max(map(len, documents)) <= 110


def test_reading_streams_and_does_not_run_ahead(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "good"}\n' * 3 + "broken\n")
    texts = iter_texts(str(path))
    assert [next(texts) for _ in range(3)] == ["good"] * 3
    with pytest.raises(DataError, match=r"a\.jsonl line 4 is not JSON"):
        next(texts)


# ---- columns ------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_the_text_column_is_the_one_asked_for_else_text_else_the_only_one(tmp_path: Path, suffix: str) -> None:
    def corpus(name: str, **row) -> str:
        path = tmp_path / f"{name}{suffix}"
        match suffix:
            case ".jsonl":
                path.write_text(json.dumps(row) + "\n")
            case ".csv":
                path.write_text(",".join(row) + "\n" + ",".join(map(str, row.values())) + "\n")
            case ".parquet":
                pq.write_table(pa.Table.from_pylist([row]), path)
        return str(path)

    both = corpus("both", n=1, title="t", text="body")
    assert list(iter_texts(both)) == ["body"]
    assert list(iter_texts(both, text_field="title")) == ["t"]
    assert list(iter_texts(corpus("single", n=1, story="once"))) == ["once"]
    with pytest.raises(
        DataError, match=r"column 'body' does not exist; its columns are n, title, text; .*--text_field"
    ):
        next(iter_texts(both, text_field="body"))
    with pytest.raises(DataError, match=r"several columns of text.*n, title, abstract"):
        iter_texts(corpus("two", n=1, title="t", abstract="a"))
    with pytest.raises(DataError, match="no column of text and none named 'text'; its columns are n, m"):
        iter_texts(corpus("none", n=1, m=2))


def test_a_csv_column_that_starts_like_numbers_is_still_text(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,n\n12,1\nand words,2\n")
    assert list(iter_texts(str(tmp_path / "a.csv"))) == ["12", "and words"]


# ---- bad sources --------------------------------------------------------------------------------

BAD = {
    "line.jsonl": (b'{"text": "a"}\n{"text": \n', "line 2 is not JSON"),
    "deep.jsonl": (b"[" * 100_000 + b"\n", "line 1 is not JSON"),
    "type.jsonl": (b'{"text": "a"}\n{"text": 7}\n', "line 2 'text' holds int, neither text nor"),
    "key.jsonl": (b'{"text": "a"}\n{"body": "b"}\n', "line 2 has no 'text'; it has body"),
    "list.jsonl": (b'{"text": "a"}\n[1]\n', "line 2 is list, neither text nor"),
    "half.jsonl": (b'{"text": "\\ud83e"}\n', "line 1 holds half a surrogate pair"),
    "utf8.txt": ("fine\n\nübel".encode("latin-1"), "line 3 is not UTF-8"),
    "nul.txt": (b"text\nwith \0 inside\n", "line 2 holds a NUL byte"),
    "utf8.csv": (b"text\nfine\n\xfcbel\n", "line 3 is not UTF-8"),
    "ragged.csv": (b"a,text\n1,b\n1,2,3\n", "line 3 has 3 columns, its header 2"),
    "empty.csv": (b"", "is empty"),
    "header.csv": (b"a,text\n", "is empty"),
    "empty.jsonl": (b"", "is empty"),
    "blank.txt": (b"\n \n\t\n", "is empty"),
    "nulls.jsonl": (b'{"text": null}\n', "is empty"),
    "object.json": (b'{\n "text": "a"\n', "line 3 is not JSON"),
    "cut.json": (b'[{"text": "a"}', "is not JSON"),
    "bad.parquet": (b"PAR1 no table PAR1", "cannot be read"),
    "word.docx": (b"x", "is not read here: give files that end in .jsonl"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_in_one_line_that_names_it(tmp_path: Path, name: str) -> None:
    content, said = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        list(iter_texts(str(tmp_path / name)))
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_source_that_is_not_there_is_refused_without_asking_the_hub(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda *given, **named: pytest.fail("asked the Hub"))
    for source in ("missing.jsonl", str(tmp_path / "missing"), "./owls", "a/b/c", "../owls", "world-famous owls", ""):
        if source:
            with pytest.raises(DataError, match="does not exist"):
                iter_texts(source)
    with pytest.raises(DataError, match="holds nothing that is read here"):
        iter_texts(str(tmp_path))


def test_a_line_without_an_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "MAX_LINE", 1000)
    (tmp_path / "a.txt").write_text("fine\n" + "x" * 2000)
    with pytest.raises(DataError, match="line 2 is longer than 1000 characters"):
        list(iter_texts(str(tmp_path / "a.txt")))


# ---- the Hub ------------------------------------------------------------------------------------


def test_an_id_is_streamed_with_its_configuration_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def load_dataset(name, config, **settings):
        asked.update(settings, name=name, config=config)
        return datasets.Dataset.from_dict({"n": [1, 2], "text": ["a", "b"]}).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert list(iter_texts("Salesforce/wikitext:wikitext-2-raw-v1", split="test")) == ["a", "b"]
    assert asked == {"name": "Salesforce/wikitext", "config": "wikitext-2-raw-v1", "split": "test", "streaming": True}
    assert list(iter_texts("squad", limit=1)) == ["a"]
    assert asked["config"] is None
    assert list(iter_texts("muse-bench/MUSE-News:raw@retain1", split="test", limit=1)) == ["a"]
    assert (asked["name"], asked["config"], asked["split"]) == ("muse-bench/MUSE-News", "raw", "retain1")
    assert list(iter_texts("squad@dev", limit=1)) == ["a"]
    assert (asked["name"], asked["config"], asked["split"]) == ("squad", None, "dev")
    assert corpus_name("muse-bench/MUSE-News:raw@retain1") == "muse-bench--MUSE-News--raw--retain1"
    with pytest.raises(DataError, match="squad: column 'n' holds no text; its columns are n, text"):
        iter_texts("squad", text_field="n")


def test_rows_without_declared_columns_are_read_as_records(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows() -> Iterator[dict]:
        yield {"n": 1, "text": "a"}

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.IterableDataset.from_generator(rows))
    assert list(iter_texts("some/owls")) == ["a"]


@pytest.mark.parametrize(
    ("raised", "kind", "said"),
    [
        (
            DatasetNotFoundError("Dataset 'some/owls' doesn't exist"),
            DataError,
            "neither a file or folder here nor on the Hub",
        ),
        (DatasetNotFoundError("Dataset 'some/owls' is a gated dataset"), RemoteError, "log in with `hf auth login`"),
        (ValueError("Config name is missing.\nPlease pick one: ['a']"), DataError, "missing. Please pick one: "),
        (RuntimeError("Dataset scripts are no longer supported"), DataError, "scripts are no longer supported"),
        (
            ConnectionError("Couldn't reach 'some/owls' on the Hub"),
            RemoteError,
            "check the network, or give a local file",
        ),
        (TimeoutError("slow"), RemoteError, "slow"),
    ],
)
def test_what_the_hub_says_is_told_in_one_line_with_the_right_exit_code(monkeypatch, raised, kind, said: str) -> None:
    def load_dataset(*_, **__):
        raise raised

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(kind, match="some/owls") as caught:
        iter_texts("some/owls")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == (5 if kind is RemoteError else 2)


def test_a_connection_lost_on_the_way_is_remote_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows() -> Iterator[dict]:
        yield {"text": "a"}
        raise ConnectionError("reset by peer")

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.IterableDataset.from_generator(rows))
    texts = iter_texts("some/owls")
    with pytest.raises(RemoteError, match="reset by peer"):
        list(texts)


def test_what_exists_here_wins_over_an_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some" / "owls").mkdir(parents=True)
    write(tmp_path / "some" / "owls" / "a.txt", ["local"])
    assert list(iter_texts("some/owls")) == ["local"]


# ---- names and identities -----------------------------------------------------------------------


def test_names_are_safe_for_folders(tmp_path: Path) -> None:
    write(tmp_path / "old owls.jsonl", ["a"])
    assert corpus_name(str(tmp_path / "old owls.jsonl")) == "old-owls"
    assert corpus_name(f"{tmp_path}/") == tmp_path.name
    assert corpus_name("world:corpora/wizards") == "wizards"
    assert corpus_name("Salesforce/wikitext:wikitext-2-raw-v1") == "Salesforce--wikitext--wikitext-2-raw-v1"
    assert corpus_name("roneneldan/TinyStories") == "roneneldan--TinyStories"


@settings(deadline=None)
@given(
    st.text(min_size=1, max_size=300).filter(
        lambda text: "\0" not in text and len(text.encode("utf-8", "ignore")) < 200
    )
)
def test_no_source_makes_a_name_that_leaves_its_folder(source: str) -> None:
    name = corpus_name(source)
    assert name
    assert not set(name) - set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
    assert not name.startswith(".")
    assert len(name) <= 100


def test_an_identity_follows_the_content_and_not_the_place(tmp_path: Path) -> None:
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "owls.jsonl", DOCUMENTS)
    here, there = (tmp_path / folder / "owls.jsonl" for folder in ("here", "there"))
    assert corpus_identity(str(here)) == corpus_identity(str(there))
    assert str(tmp_path) not in corpus_identity(str(here))
    whole = corpus_identity(str(tmp_path))
    write(there, [*DOCUMENTS, "more"])
    assert corpus_identity(str(here)) != corpus_identity(str(there))
    assert corpus_identity(str(tmp_path)) != whole
    assert corpus_identity("roneneldan/TinyStories") == "roneneldan/TinyStories"


# ---- packing ------------------------------------------------------------------------------------

BOS, EOS, PAD = 1, 2, 0


class Letters:
    """A tokenizer of one token a character."""

    bos_token_id: int | None = BOS
    eos_token_id: int | None = EOS
    pad_token_id: int | None = PAD

    def __call__(self, texts: list[str], *, add_special_tokens: bool) -> dict[str, list[list[int]]]:
        assert not add_special_tokens
        return {"input_ids": [[ord(letter) for letter in text] for text in texts]}

    def decode(self, token_ids) -> str:
        return "".join(map(chr, token_ids))


words = st.lists(st.text("abc ", min_size=1, max_size=40), min_size=1, max_size=12)
shapes = {"ctx_len": st.integers(2, 17), "batch_size": st.integers(1, 5)}


@settings(deadline=None)
@given(words, st.sampled_from(["row", "document", "none"]), *shapes.values(), st.none() | st.integers(1, 200))
def test_packing_keeps_every_token_in_order(texts, bos, ctx_len: int, batch_size: int, max_tokens: int | None) -> None:
    batches = list(
        iter_packed(texts, Letters(), ctx_len=ctx_len, batch_size=batch_size, bos=bos, max_tokens=max_tokens)
    )
    rows, masks = (torch.cat([getattr(batch, name) for batch in batches]) for name in ("token_ids", "attention_mask"))
    assert rows.shape == masks.shape == (len(batches) * batch_size, ctx_len)
    assert torch.equal(torch.cat([batch.seq_ids for batch in batches]), torch.arange(len(rows)))
    assert (rows[~masks] == PAD).all()
    used = masks.flatten().nonzero().max() + 1
    assert masks.flatten()[:used].all()  # padding only at the very end
    if bos == "row":
        assert (rows[masks.any(1), 0] == BOS).all()
        rows, masks = rows[:, 1:], masks[:, 1:]
    packed = rows[masks].tolist()
    real = [token for token in packed if token > EOS]
    letters = [ord(letter) for letter in "".join(texts)]
    assert real == letters[:max_tokens]
    if max_tokens is None:
        opening = [BOS] if bos == "document" else []
        documents = [opening + [ord(letter) for letter in text] for text in texts]
        assert packed == [token for number, one in enumerate(documents) for token in [EOS] * (number > 0) + one]


@settings(deadline=None)
@given(words, *shapes.values(), st.integers(0, 6))
def test_a_batch_depends_on_its_index_only(texts, ctx_len: int, batch_size: int, start: int) -> None:
    shape = {"ctx_len": ctx_len, "batch_size": batch_size, "bos": "row"}
    every = list(iter_packed(texts, Letters(), **shape))
    later = list(iter_packed(iter(texts), Letters(), **shape, start=start))
    assert [batch.index for batch in every] == list(range(len(every)))
    assert len(later) == max(0, len(every) - start)
    for one, other in zip(every[start:], later, strict=True):
        assert one.index == other.index
        assert torch.equal(one.token_ids, other.token_ids)
        assert torch.equal(one.attention_mask, other.attention_mask)


def test_special_tokens_in_the_text_do_not_count_as_corpus_tokens() -> None:
    texts = [f"a{chr(EOS)}b{chr(BOS)}c", "def"]
    (batch,) = iter_packed(texts, Letters(), ctx_len=16, batch_size=1, bos="none", max_tokens=4)
    assert batch.token_ids[batch.attention_mask].tolist() == [97, EOS, 98, BOS, 99, EOS, 100]


def test_a_long_document_goes_in_pieces_and_stays_one_document(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    class Watched(Letters):
        def __call__(self, texts: list[str], *, add_special_tokens: bool) -> dict[str, list[list[int]]]:
            sizes.append(sum(map(len, texts)))
            return super().__call__(texts, add_special_tokens=add_special_tokens)

    monkeypatch.setattr(packing, "_PIECE", 50)
    texts = ["short", "a b " * 100 + "c" * 130 + " end", "last"]
    (batch,) = iter_packed(texts, Watched(), ctx_len=1000, batch_size=1, bos="document")
    packed = batch.token_ids[batch.attention_mask].tolist()
    assert "".join(map(chr, packed)) == chr(EOS).join(chr(BOS) + text for text in texts)
    assert max(sizes) <= 100


def test_only_what_is_needed_of_an_endless_corpus_is_read() -> None:
    taken = 0

    def endless() -> Iterator[str]:
        nonlocal taken
        while True:
            taken += 1
            yield "some words"

    batches = list(iter_packed(endless(), Letters(), ctx_len=11, batch_size=2, bos="row", max_tokens=100))
    assert sum(int((batch.token_ids > EOS).sum()) for batch in batches) == 100
    assert taken <= 256


def test_a_tokenizer_without_bos_or_eos_is_handled_or_refused() -> None:
    bare = Letters()
    bare.bos_token_id = bare.eos_token_id = bare.pad_token_id = None
    (batch,) = iter_packed(["ab", "c"], bare, ctx_len=5, batch_size=1, bos="none")
    assert batch.token_ids.tolist() == [[97, 98, 99, 0, 0]]
    for bos in ("row", "document"):
        with pytest.raises(ConfigError, match=f"--bos {bos}.*no BOS token; give --bos none"):
            next(iter_packed(["ab"], bare, ctx_len=5, batch_size=1, bos=bos))


@pytest.mark.slow
def test_packing_needs_neither_a_model_nor_transformers() -> None:
    program = "import sys, sae_forge.data.texts.corpus, sae_forge.data.stream; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2], check=False).returncode == 0
