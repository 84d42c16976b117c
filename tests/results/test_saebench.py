"""SAEBench's files: frequencies by latent, and the result of its unlearning evaluation."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from reports import filled

from sae_forge.errors import DataError
from sae_forge.features.sparsity_files import frequent_and_rare, read_sparsity, write_sparsity
from sae_forge.results.report import Domain, Point, Sweep, TunedMethod
from sae_forge.results.saebench import read_saebench, saebench_result


def test_frequencies_go_through_six_decimals_and_back(tmp_path: Path) -> None:
    write_sparsity(tmp_path, [0.25, 4e-7, 1 / 3], [0.0, 0.0099999, 1.0])
    path = tmp_path / "feature_sparsity_forget.txt"
    seal, _, lines = path.read_text().partition("\n")
    assert lines == "0.250000\n0.000000\n0.333333\n" and seal.isspace()
    assert np.loadtxt(path, dtype=float).tolist() == [0.25, 0.0, 0.333333], "as SAEBench reads it"
    forget, retain = read_sparsity(tmp_path)
    assert forget.tolist() == [0.25, 0.0, 0.333333]
    assert retain.tolist() == [0.0, 0.01, 1.0], "0.0099999 is refused at 0.01 once it was written"
    np.savetxt(path, np.array([0.5, 1e-3, 0.0]), fmt="%f")
    assert read_sparsity(tmp_path)[0].tolist() == [0.5, 0.001, 0.0]


def test_a_turned_bit_in_frequencies_is_named_and_never_read(tmp_path: Path) -> None:
    write_sparsity(tmp_path, [0.25, 0.5], [0.0, 0.1])
    path = tmp_path / "feature_sparsity_retain.txt"
    whole = path.read_bytes()
    for place in range(0, 8 * len(whole), 7):
        spoilt = bytearray(whole)
        spoilt[place // 8] ^= 1 << place % 8
        path.write_bytes(spoilt)
        with pytest.raises(DataError, match=r"feature_sparsity_retain\.txt"):
            read_sparsity(tmp_path)


def test_of_equal_frequencies_the_lower_latent_comes_first() -> None:
    forget = np.array([0.2, 0.3, 0.3, 0.3, 0.1, 0.3, 0.0])
    assert frequent_and_rare(forget, np.zeros(7), 0.01, 3) == (1, 2, 3)
    assert frequent_and_rare(forget, np.array([0, 0.01, 0, 0, 0, 0.5, 0]), 0.01, 9) == (2, 3, 0, 4)


@pytest.mark.parametrize(
    ("line", "words"), [("x", r"line 2 is 'x'"), ("1.5", r"line 2 is '1\.5'"), ("nan", "line 2"), ("", "line 2 is ''")]
)
def test_a_line_that_is_no_frequency_is_named(tmp_path: Path, line: str, words: str) -> None:
    write_sparsity(tmp_path, [0.1, 0.2, 0.3], [0.1, 0.2, 0.3])
    (tmp_path / "feature_sparsity_retain.txt").write_text(f"0.1\n{line}\n0.3\n")
    with pytest.raises(DataError, match=words):
        read_sparsity(tmp_path)
    write_sparsity(tmp_path, [0.1], [0.1, 0.2])
    with pytest.raises(DataError, match="1 forget and 2 retain"):
        read_sparsity(tmp_path)


def test_a_sweep_on_filtered_questions_is_a_result_of_saebench(tmp_path: Path) -> None:
    point = Point(settings={}, forget=0.4, utility=1.0, neighbour=None, alignment=0.5)
    tuned = TunedMethod(
        configurations=16, points=(point,), front=(point,), best_at={}, saebench_score=0.6, hypervolume=0.1,
        best_alignment=0.5, chosen=point, rule="utility_99", end=None, unlearning_score=0.6,
    )  # fmt: skip
    domains: dict[str, Domain] = {}
    sweep = Sweep(half="dev", domains=domains, base=point, floors={}, methods={"clamp": tuned})
    report = replace(filled({"methods": []}), sweep=sweep)
    written = saebench_result(report, eval_id="abc")
    assert written is not None
    path = tmp_path / "result.json"
    path.write_text(json.dumps(written))
    assert read_saebench(path)[1] == 0.6
    assert saebench_result(filled({"methods": []})) is None
    unfiltered = replace(sweep, methods={"clamp": replace(tuned, saebench_score=None)})
    assert saebench_result(replace(report, sweep=unfiltered)) is None


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ([], "eval_type_id is 'list'"),
        ({"eval_type_id": "scr"}, "eval_type_id is 'scr'"),
        ({"eval_type_id": "unlearning"}, "should be between 0 and 1, not 'None'"),
        ({"eval_type_id": "unlearning", "eval_result_metrics": {"unlearning": {"unlearning_score": 3}}}, "not '3'"),
        ({"eval_type_id": "unlearning", "eval_result_metrics": {"unlearning": [0.5]}}, "not 'None'"),
        (
            {"eval_type_id": "unlearning", "eval_result_metrics": {"unlearning": {"unlearning_score": 10**400}}},
            "not '1000",
        ),
    ],
)
def test_what_is_no_result_is_refused(tmp_path: Path, record: object, words: str) -> None:
    (tmp_path / "r.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match=words):
        read_saebench(tmp_path / "r.json")
