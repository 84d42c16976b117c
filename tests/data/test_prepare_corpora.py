"""Benchmarks prepared from local copies and from a stand-in for ``datasets``; records here are the project's own."""

import json
from pathlib import Path
from typing import Any

import pytest

from data_scripts.prepare_corpora import main, needed_by
from sae_forge.benchmarks import BENCHMARKS, parts_of
from sae_forge.settings import presets

QUESTION = {"question": "Which way is up?", "choices": ["this", "that", "both", "none"], "answer": 1}


def write(folder: Path, name: str, records: list[Any]) -> None:
    (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records))


def test_local_copies_are_checked_and_written_where_presets_look(tmp_path: Path, capsys) -> None:
    write(tmp_path, "wmdp-bio.jsonl", [QUESTION] * 2)
    write(tmp_path, "anatomy.json", [QUESTION])
    write(tmp_path, "anatomy_dev.jsonl", [QUESTION])
    out = tmp_path / "out"
    assert main(["wmdp-bio", "mmlu:anatomy", "--local", str(tmp_path), "--out", str(out)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].endswith("wmdp-bio.jsonl: 2 records, where 1,273 are published")
    assert json.loads((out / "anatomy.jsonl").read_text()) == QUESTION
    assert sorted(path.name for path in out.iterdir()) == ["anatomy.jsonl", "anatomy_dev.jsonl", "wmdp-bio.jsonl"]


@pytest.mark.parametrize(
    ("name", "record", "words"),
    [
        ("wmdp-cyber", {"question": "Which?", "choices": ["one"], "answer": 0}, "line 2 needs 'choices'"),
        ("tinystories", {"story": "x"}, "line 2 needs 'text' as text"),
    ],
)
def test_a_malformed_record_is_one_line_and_leaves_no_file(name, record, words, tmp_path: Path, capsys) -> None:
    good = QUESTION if name.startswith("wmdp") else {"text": "Once."}
    write(tmp_path, f"{name}.jsonl", [good, record])
    assert main([name, "--local", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert words in error and f"{name}.jsonl" in error
    assert error.count("\n") == 1
    assert not list((tmp_path / "out").iterdir())


def test_what_is_not_there_says_what_to_make_it_of_and_the_rest_goes_on(tmp_path: Path, capsys) -> None:
    write(tmp_path, "wmdp-bio-retain.jsonl", [{"text": "Of moss."}])
    assert main(["wmdp-bio-corpora", "--local", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr()
    assert "make it of cais/wmdp-bio-forget-corpus@train; it is gated: ask at huggingface.co/datasets/" in told.err
    assert "wmdp-bio-retain.jsonl: 1 records" in told.out
    assert main(["wmdp-boi"]) == 2
    assert "wmdp-boi is no benchmark here (did you mean wmdp-bio?)" in capsys.readouterr().err


def test_the_hub_is_asked_through_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    import datasets

    asked = []

    class Rows(list):
        features = None

    def load_dataset(name: str, config: str | None, *, split: str, streaming: bool) -> Rows:
        asked.append((name, config, split, streaming))
        kinds = {"knowmem": {"question": "Who?", "answer": "Me."}, "verbmem": {"prompt": "Once", "gt": "upon."}}
        return Rows([kinds.get(str(config), {"text": "Words."})] * 3)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert main(["muse-news", "openwebtext", "--rows", "2", "--out", str(tmp_path)]) == 0
    assert ("muse-bench/MUSE-News", "verbmem", "forget", True) in asked
    assert ("muse-bench/MUSE-News", "sust", "forget_4", True) in asked
    assert len((tmp_path / "openwebtext.jsonl").read_text().splitlines()) == 2
    assert "muse-news-knowmem-retain-shots.jsonl: 3 records" in capsys.readouterr().out


def test_only_what_nothing_is_wrong_with_is_taken_of_mmlu_redux(tmp_path: Path) -> None:
    write(tmp_path, "anatomy_redux.jsonl", [QUESTION | {"error_type": kind} for kind in ("ok", "wrong_groundtruth")])
    assert main(["mmlu-redux:anatomy", "--local", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    assert len((tmp_path / "out" / "anatomy_redux.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize("name", [name for name, preset in presets().items() if preset.get("needs")])
def test_every_preset_finds_each_file_it_needs(name: str) -> None:
    needs = presets()[name]["needs"]
    found = {part.file: part.source for part in needed_by(name)}
    assert list(found) == list(needs)
    for file, source in found.items():
        hub, config, split = needs[file].split(", ")
        assert source == f"{hub}:{config}@{split.removeprefix('split ')}"


def test_the_list_names_all_and_fetches_nothing(capsys) -> None:
    assert main(["--list"]) == 0
    said = capsys.readouterr().out
    assert all(f"{name}: " in said for name in BENCHMARKS)
    assert "mmlu:SUBJECT" in said
    assert len(parts_of("tofu")) == 16
