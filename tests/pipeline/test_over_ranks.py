"""Several processes give the numbers of one, to the last digit: ``features``, ``eval``, ``eval --sweep``, and parts."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_ranks import over_ranks
from tiny_run import SMALL, TinyRun

from sae_forge import ranks
from sae_forge.errors import ConfigError, PeerError
from sae_forge.features import stats
from sae_forge.outcome import Outcome
from sae_forge.pipeline.bench import Bench
from sae_forge.pipeline.evaluate import evaluate
from sae_forge.pipeline.features import features
from sae_forge.settings import resolve
from sae_forge.study import run as study
from sae_forge.study import sweep
from sae_forge.study.settings import eval_config, features_config
from sae_forge.study.shares import Share
from sae_forge.tasks.engines import multiple_choice, orders

SELECTING: dict[str, Any] = {
    "method": ("inlp", "crisp"), "num_features": (5,), "min_target_fires": 1, "max_freq": 1.0, "max_neutral_freq": 0.03,
    "min_ratio": 1.0, "snippets": 2,
}  # fmt: skip
PLAIN: dict[str, Any] = {
    "methods": ("scale", "rmu", "random"), "controls": ("places",), "limit": 2, "question_filter": "correct",
}  # fmt: skip
SWEPT: dict[str, Any] = {"methods": ("project", "zero"), "sweep": True, "configurations": 8, "limit": 2}


def asked(run: TinyRun, **settings: Any) -> tuple[Any, Bench]:
    given = {"model": str(run.model), "run_dir": run.folder, **SMALL, **run.questions, **settings}
    config = resolve(eval_config(), given)
    return config, Bench(config)


def evaluated(run: TinyRun, **settings: Any) -> Outcome:
    return evaluate(*asked(run, **settings))


def selected(run: TinyRun) -> Outcome:
    config = resolve(features_config(), {"model": str(run.model), "run_dir": run.folder, **SELECTING})
    return features(config, Bench(config))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but logs, locks and pictures' times."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock" and "logs" not in path.parts
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Text and prompts that a report is asked beside questions."""
    folder = tmp_path_factory.mktemp("texts")
    (folder / "prompts.jsonl").write_text('{"prompt": "The grey"}\n{"prompt": "A silver owl"}\n')
    (folder / "kept.txt").write_text("Granite is grey.\n\nThe river runs past.\n")
    return {
        "generation_prompts": (str(folder / "prompts.jsonl"),), "retain_eval": (str(folder / "kept.txt"),),
        "temperature": 1.0,
    }  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def small_pieces() -> Iterator[None]:
    """So that of little text and few questions there are pieces for everybody."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stats, "ROWS", 256)
        patch.setattr(orders, "CHUNK", 5)
        yield


def require_same(one: TinyRun, other: TinyRun) -> None:
    of_one, of_other = contents(one.folder), contents(other.folder)
    assert set(of_one) == set(of_other)
    assert [name for name, content in of_one.items() if of_other[name] != content] == []


@pytest.mark.slow
def test_two_ranks_leave_the_bytes_of_one(
    new_run: Callable[[], TinyRun], written: dict[str, Any], tmp_path: Path
) -> None:
    alone, two = new_run(), new_run()
    seen, real = [], multiple_choice.answer

    def counting(lm: Any, questions: Any, *rest: Any, **how: Any) -> Any:
        seen.extend(questions)
        return real(lm, questions, *rest, **how)

    def work(run: TinyRun, said: str) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(multiple_choice, "answer", counting)
            told = [selected(run), evaluated(run, **PLAIN, **written)]
        (tmp_path / said).write_text(json.dumps([len(seen), [one.metrics for one in told]]))

    assert over_ranks(2, lambda rank: work(two, str(rank)), tmp_path / "said", limit=60) == [0, 0]
    work(alone, "alone")
    require_same(alone, two)
    (whole, told), *shares = (json.loads((tmp_path / name).read_bytes()) for name in ("alone", "0", "1"))
    assert [its for _, its in shares] == [told, told]
    assert sum(count for count, _ in shares) == whole


@pytest.mark.slow
def test_parts_merge_whoever_measures_them_and_a_rank_that_dies_costs_what_it_was_at(
    new_run: Callable[[], TinyRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, parts = new_run(), new_run()
    evaluated(alone, **SWEPT)
    told = evaluated(parts, **SWEPT, part="1/2")
    assert told.metrics == {"part": "1/2", "measured": "5 of 10 points of the sweep are measured by now"}
    measured = parts.folder.glob("eval/*/*/*/measured")
    (folder,) = measured
    real, calls = sweep.measure, []

    def dying(*given: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == 3 and ranks.here().rank == 1:  # the model as it is, a point, and now
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*given, **named)

    monkeypatch.setattr(sweep, "measure", dying)
    codes = over_ranks(2, lambda rank: evaluated(parts, **SWEPT, part="2/2"), tmp_path / "said")
    assert codes == [PeerError.exit_code, -signal.SIGKILL]
    assert "rank 1 is gone, at a setting of project" in (tmp_path / "said").read_text()
    monkeypatch.setattr(sweep, "measure", real)
    there = len(list(folder.glob(f"{sweep.POINTS}/*.json")))
    assert there >= 5
    assert evaluated(parts, **SWEPT, part="2/2").metrics["measured"] == "its share of all rows is measured"
    asked_again = []
    monkeypatch.setattr(sweep, "measure", lambda *given, **named: asked_again.append(1) or real(*given, **named))
    evaluated(parts, **SWEPT)
    assert asked_again == [1], "the model as it is, whose answers are read"
    require_same(alone, parts)


@pytest.mark.slow
def test_a_rank_that_freezes_in_an_eval_is_named_and_waited_for_no_longer(
    new_run: Callable[[], TinyRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, real = new_run(), study.measure

    def freezing(*given: Any, **named: Any) -> Any:
        if ranks.here().rank == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        return real(*given, **named)

    monkeypatch.setattr(study, "measure", freezing)
    work = lambda rank: evaluated(asked, methods=("zero",), limit=1)  # noqa: E731
    codes = over_ranks(2, work, tmp_path / "said", limit=2)
    assert codes == [PeerError.exit_code, -signal.SIGKILL]
    assert "rank 1 has been silent for 2 s, at " in (tmp_path / "said").read_text()


def test_a_share_is_one_of_equal_ones() -> None:
    costs = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]
    for of in (1, 2, 3, 7, 20):
        cut = [Share(number, of).cut(costs) for number in range(of)]
        assert [piece for mine in cut for piece in mine] == list(range(len(costs)))
        if of < 4:
            assert all(abs(sum(costs[piece] for piece in mine) - sum(costs) / of) <= max(costs) for mine in cut)
        assert sorted(n for number in range(of) for n in Share(number, of).dealt(10)) == list(range(10))


@pytest.mark.parametrize("part", ["0/2", "3/2", "2", "a/b", "-1/2"])
def test_a_part_that_is_none_is_refused(part: str) -> None:
    with pytest.raises(ConfigError, match="give one part of several, from 1/8 to 8/8"):
        eval_config()(part=part)


def test_parts_do_not_start_over() -> None:
    with pytest.raises(ConfigError, match="--part adds to what the other parts have measured"):
        eval_config()(part="1/2", fresh=True)
