"""Rows as open-unlearning's summaries, and its summaries beside them."""

import json
from pathlib import Path

import pytest
from reports import estimate, filled

from sae_forge.errors import DataError
from sae_forge.results.open_unlearning import beside, read_summary, summaries

TOFU = {"forget_quality": 1e-9, "model_utility": 0.61, "forget_probability": 0.2, "real_authors_truth_ratio": 0.5}


def test_a_row_is_written_as_its_summaries_and_read_again(tmp_path: Path) -> None:
    edit = {
        "name": "clamp",
        "title": "Clamp",
        "tofu": {name: estimate(value, 0.0) for name, value in TOFU.items()},
        "memorisation": {"extraction_strength": estimate(0.3, 0.1), "mia_zlib": estimate(0.7, 0.1)},
        "muse": {
            "verbmem_forget_open_unlearning": estimate(24.0, 1.0),
            "privleak_open_unlearning": estimate(-90.0, 1.0),
        },
    }
    report = filled({"methods": [edit]})
    told = summaries(report.rows[1])
    assert told == {
        "TOFU_SUMMARY.json": {
            "extraction_strength": 0.3,
            "forget_Q_A_Prob": 0.2,
            "forget_quality": 1e-9,
            "mia_zlib": 0.7,
            "model_utility": 0.61,
            "ra_Truth_Ratio": 0.5,
        },
        "MUSE_SUMMARY.json": {"forget_verbmem_ROUGE": 0.24, "privleak": -90.0},
    }
    path = tmp_path / "NPO" / "TOFU_SUMMARY.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"forget_quality": 0.02, "model_utility": 0.5, "own": 1}))
    sheet = beside(report, [path])
    assert sheet.columns == (
        "method", "forget_quality", "model_utility", "forget_Q_A_Prob", "ra_Truth_Ratio", "extraction_strength",
        "mia_zlib", "forget_verbmem_ROUGE", "privleak",
    )  # fmt: skip
    assert sheet.rows[2] == ("open-unlearning: NPO", "0.02", "0.5", "", "", "", "", "", "")
    assert sheet.rows[1][1:3] == ("1e-09", "0.61")
    assert read_summary(path)["own"] == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1]", "is no summary of open-unlearning"),
        ("{}", "is no summary"),
        ('{\n"a": 1,\n}', r"line 3 is not JSON"),
        ('{"forget_quality": {"agg_value": 1}}', "'forget_quality' should be a number or null"),
        ('{"a": NaN}', "'a' should be a number or null"),
        (f'{{"a": 1{"0" * 400}}}', "'a' should be a number or null, not '1000"),
        ('{"a": true}', "'a' should be a number or null"),
    ],
)
def test_what_is_no_summary_is_refused_in_one_line(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(DataError, match=words) as error:
        read_summary(tmp_path / "s.json")
    assert "\n" not in str(error.value)
    with pytest.raises(DataError, match="cannot be read"):
        read_summary(tmp_path / "none.json")
