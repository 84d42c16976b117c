"""An eval that is stopped anywhere keeps what it measured, and the same call goes on to the same numbers."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tiny_run import TinyRun

from sae_forge.errors import DataError
from sae_forge.progress import Silent
from sae_forge.study.kept import FOLDER, discard
from sae_forge.tasks.engines import generation, multiple_choice


class Stopped(BaseException):
    """What a signal raises."""


class StopAt(Silent):
    """Progress that ends the work when so many items were answered; and counts them."""

    def __init__(self, at: float = float("inf")) -> None:
        self.at, self.done = at, 0

    @contextmanager
    def task(self, title: str, total: int | None, unit: str) -> Iterator[Any]:
        del title, total, unit
        yield self

    def advance(self, amount: int, **facts: float | str) -> None:
        del facts
        self.done += amount
        if self.done >= self.at:
            raise Stopped


@pytest.fixture
def asked(plugged_run: TinyRun, tmp_path: Path) -> dict[str, Any]:
    """What a report is asked: questions, text and prompts to continue."""
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "The grey"}\n{"prompt": "A silver owl"}\n')
    (tmp_path / "kept.txt").write_text("Granite is grey.\n\nThe river runs past.\n")
    return {
        "generation_prompts": (str(tmp_path / "prompts.jsonl"),),
        "retain_eval": (str(tmp_path / "kept.txt"),),
        "controls": ("isotropic",),
        "methods": ("scale", "zero", "random", "rmu"),
    }


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.02, 0.3, 0.97])
def test_a_stopped_eval_goes_on_to_equal_numbers(
    plugged_run: TinyRun, asked: dict[str, Any], tmp_path: Path, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = StopAt()
    whole = plugged_run.evaluate(progress=counted, folder=tmp_path / "whole", **asked)
    with pytest.raises(Stopped):
        plugged_run.evaluate(progress=StopAt(share * counted.done), folder=tmp_path / "stopped", **asked)
    kept = sorted((tmp_path / "stopped" / FOLDER).rglob("*.json"))
    assert share < 0.1 or kept
    passes = []
    answer = multiple_choice.answer
    monkeypatch.setattr(multiple_choice, "answer", lambda *args, **how: passes.append(1) or answer(*args, **how))
    again = plugged_run.evaluate(folder=tmp_path / "stopped", **asked)
    assert again.report == whole.report and again.items == whole.items
    passes.clear()
    monkeypatch.setattr(generation, "write", None)
    last = plugged_run.evaluate(folder=tmp_path / "stopped", **asked)  # killed before the report was written
    assert last.report == whole.report and last.items == whole.items and not passes, "nothing is asked twice"


def test_what_is_kept_is_checked_and_goes_with_fresh(plugged_run: TinyRun, tmp_path: Path) -> None:
    few = {"methods": ("zero",), "limit": 2}
    whole = plugged_run.evaluate(folder=tmp_path, **few)
    path = min((tmp_path / FOLDER).rglob("*.json"))
    path.write_text("{}")
    with pytest.raises(DataError, match=r"is not answers of an eval.*run the same command again"):
        plugged_run.evaluate(folder=tmp_path, **few)
    assert plugged_run.evaluate(folder=tmp_path, fresh=True, **few).report == whole.report
    discard(tmp_path)
    assert not list(tmp_path.iterdir())
    shutil.rmtree(tmp_path)
