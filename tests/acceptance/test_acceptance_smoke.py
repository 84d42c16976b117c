"""The smoke subset of the acceptance protocol, run as it is run by hand; its full run is docs/reliability.md's."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CASES = "A1,A3,A4,A8,B1,B2,B3,B5,B7"
"""What fits beside a suite: some kills, the order of calls, a flip in every file, some lengths and foreign shards."""


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    log = tmp_path_factory.mktemp("acceptance") / "log.jsonl"
    command = [sys.executable, "-m", "tests.acceptance", "--smoke", "--cases", CASES, "--keep_going", "--log", str(log)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert log.exists(), done.stderr[-2000:]
    return [json.loads(line) for line in log.read_text().splitlines()]


@pytest.mark.parametrize("kind", CASES.split(","))
def test_every_case_that_ran_passed(records: list[dict], kind: str) -> None:
    found = [record for record in records if record["case"].startswith(kind)]
    assert found, [record for record in records if record["result"] == "failed"] or "the kind did not run"
    assert [record for record in found if record["result"] == "failed"] == []
    for record in found:
        assert record["result"] == "passed" or record["reason"], "what is skipped says why"


def test_kills_and_flips_were_not_in_vain(records: list[dict]) -> None:
    totals = {record["case"]: record for record in records}
    assert totals["A1 total"]["kills"] >= 4
    assert totals["A4 total"]["kills"] >= 2
    assert totals["B2"]["flips"] == 40
    assert sum(record["case"].startswith("B1.verify") for record in records) > 25


def test_the_protocol_itself_did_not_stop(records: list[dict]) -> None:
    assert [record["reason"] for record in records if record["case"].endswith("?")] == []
