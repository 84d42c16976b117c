"""A benchmark's name is what each flag means of it: a file of that name, else a dataset of the Hub."""

from pathlib import Path
from typing import Any

import pytest

from sae_forge import benchmarks
from sae_forge.config.collect import CollectConfig
from sae_forge.data.texts.records import open_source
from sae_forge.data.texts.sources import corpus_identity, corpus_name, named
from sae_forge.errors import DataError, RemoteError
from sae_forge.settings import parse_value
from sae_forge.study.settings import eval_config
from sae_forge.tasks.records import domain_name, load_questions

MEANT = [
    ("forget", "wmdp-bio", "cais/wmdp-bio-forget-corpus", None, "train", None),
    ("retain", "wmdp-cyber", "cais/wmdp-corpora", "cyber-retain-corpus", "train", None),
    ("retain_eval", "wmdp-bio", "cais/wmdp-corpora", "bio-retain-corpus", "train", None),
    ("forget_questions", "wmdp-bio", "cais/wmdp", "wmdp-bio", "test", None),
    ("neighbour_questions", "mmlu:college_biology", "cais/mmlu", "college_biology", "test", None),
    ("shot_questions", "mmlu:anatomy", "cais/mmlu", "anatomy", "dev", None),
    ("retain_questions", "mmlu-redux:anatomy", "edinburgh-dawg/mmlu-redux-2.0", "anatomy", "test", None),
    ("retain", "wikitext", "Salesforce/wikitext", "wikitext-2-raw-v1", "train", None),
    ("retain_eval", "wikitext", "Salesforce/wikitext", "wikitext-2-raw-v1", "test", None),
    ("forget", "muse-news", "muse-bench/MUSE-News", "raw", "forget", None),
    ("retain_eval", "muse-books", "muse-bench/MUSE-Books", "raw", "retain2", None),
    ("forget", "muse-news-sust-3", "muse-bench/MUSE-News", "sust", "forget_3", None),
    ("verbmem", "muse-news", "muse-bench/MUSE-News", "verbmem", "forget", None),
    ("forget", "tofu:forget10", "locuslab/TOFU", "forget10", "train", "answer"),
    ("tofu_forget", "tofu:forget10", "locuslab/TOFU", "forget10_perturbed", "train", None),
]


@pytest.mark.parametrize(("flag", "name", "place", "config", "split", "column"), MEANT)
def test_a_name_after_a_flag_is_a_place_on_the_hub(
    flag: str, name: str, place: str, config: str | None, split: str, column: str | None, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    kind = CollectConfig if flag in ("forget", "retain") else eval_config()
    given = parse_value(kind, flag, f"{name}[:100]")
    (source,) = [given] if isinstance(given, str) else given
    known = named(source)
    assert (known.place, known.config, known.split, known.column) == (place, config, split, column)
    assert known.part is not None and known.files is None


def test_a_file_of_that_name_comes_first_and_both_have_one_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert domain_name("wmdp-bio") == corpus_name("wmdp-bio") == "wmdp-bio"
    assert domain_name("mmlu:anatomy") == "anatomy"
    assert corpus_identity("wmdp-bio") == "wmdp-bio"
    record = '{"question": "Which way is up?", "choices": ["this", "that"], "answer": 1}\n'
    (tmp_path / "wmdp-bio.jsonl").write_text(record)
    (tmp_path / "anatomy.csv").write_text("Which way?,this,that,B\n")
    assert [one.answer for name in ("wmdp-bio", "mmlu:anatomy") for one in load_questions(name)] == [1, 1]
    assert domain_name("wmdp-bio") == "wmdp-bio"
    assert "xxh3" in corpus_identity("wmdp-bio")
    (tmp_path / "wmdp-cyber").mkdir()
    assert parse_value(CollectConfig, "forget", "wmdp-cyber") == "wmdp-cyber", "a folder of that very name wins"


@pytest.mark.parametrize(
    ("flag", "name", "words"),
    [
        (
            "forget_questions",
            "muse-news",
            "--forget_questions muse-news: it has no questions; those that have are wmdp-.*, mmlu:SUBJECT$",
        ),
        ("forget", "wmdp-chem", "--forget wmdp-chem: it has no text; those that have are wmdp-bio-forget.* …$"),
        ("retain_questions", "tofu:forget10", "has no questions"),
        ("retain_eval", "mmlu:anatomy", "has no text"),
    ],
)
def test_what_a_benchmark_does_not_have_is_said_before_anything_is_fetched(flag: str, name: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        benchmarks.meant(name, flag)


def test_what_cannot_be_had_says_what_to_ask_for_and_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    said: list[Exception] = [
        DatasetNotFoundError("Dataset 'x' is a gated dataset on the Hub. You must be authenticated to access it."),
        DatasetNotFoundError("Dataset 'x' doesn't exist on the Hub or cannot be accessed."),
        OSError("no route to host"),
    ]

    def load_dataset(*_: Any, **__: Any) -> Any:
        raise said[0]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.chdir(tmp_path)

    def told(source: str) -> str:
        with pytest.raises((DataError, RemoteError)) as error:
            list(open_source(source, "test").records())
        assert "\n" not in str(error.value)
        return str(error.value)

    gated = told("wmdp-bio-forget")
    assert "ask for access at huggingface.co/datasets/cais/wmdp-bio-forget-corpus" in gated
    assert "or wmdp-bio-forget.jsonl here; it is gated" in gated
    said.pop(0)
    assert "wmdp-bio is cais/wmdp:wmdp-bio@test of the Hub, or wmdp-bio.jsonl here" in told("wmdp-bio")
    assert "(did you mean wmdp-bio?)" in told("wmdp-boi")
    said.pop(0)
    assert "check the network, or give a local file; wikitext-2-test is" in told("wikitext-2-test")
