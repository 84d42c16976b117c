"""Trackers: what reaches the client, that a resumed training goes on in the same run, and that none ends training."""

import importlib.util
import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from sae_forge.config.train import TrainConfig
from sae_forge.errors import BackendError, ConfigError
from sae_forge.progress import Silent
from sae_forge.training import tracking
from sae_forge.training.tracking import require_tracker, serve, tracked

FAKE = """
import json, pathlib
place = pathlib.Path(__file__).with_name("seen.jsonl")
def keep(*said):
    with place.open("a") as file: file.write(json.dumps(said) + "\\n")
def init(**said):
    print("on stdout")
    keep("init", said)
    {after}
    return Run()
class Run:
    def log(self, figures, step): keep("log", step, figures)
    def finish(self): keep("finish")
"""


class Heard(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def plan(steps: int = 6, track: str = "trackio:owls") -> Any:
    return SimpleNamespace(config=TrainConfig(track=track), steps=steps, decided={"k": 4, "steps": steps})


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path that holds a trackio of one's own."""
    (tmp_path / "packages").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    monkeypatch.delitem(sys.modules, "trackio", raising=False)
    return tmp_path / "packages"


def train(folder: Path, *, done: int, heard: Heard, steps: int = 6) -> None:
    """The steps after ``done``, as a training hands them over."""
    log = folder / "tiny/logs/train-point-sae.jsonl"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file, ExitStack() as stack:
        tracker = tracked(plan(steps), file, done, stack, heard)
        for step in range(done + 1, steps + 1):
            tracker.add(step, {"step": step, "loss": 1 / step})


def seen(client: Path) -> list[list[Any]]:
    return [json.loads(line) for line in (client / "seen.jsonl").read_text().splitlines()]


def test_a_resumed_training_goes_on_in_the_run_and_another_gets_its_own(client: Path, tmp_path: Path, capfd: Any):
    (client / "trackio.py").write_text(FAKE.format(after=""))
    heard = Heard()
    train(tmp_path, done=0, heard=heard)
    train(tmp_path, done=4, heard=heard)
    train(tmp_path, done=0, heard=heard)
    first, again, anew = (said for what, *said in seen(client) if what == "init")
    assert first == again and anew[0]["name"] != first[0]["name"]
    assert first[0] == {"project": "owls", "name": first[0]["name"], "resume": "allow", "config": {"k": 4, "steps": 6}}
    assert first[0]["name"].startswith("tiny-point-sae-")
    steps = [said[0] for what, *said in seen(client) if what == "log"]
    assert steps == [*range(1, 7), 5, 6, *range(1, 7)]
    assert [line for line in heard.lines if "it " in line] == []
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    "after", ["raise RuntimeError('no login; key=hf_abcdefghijklmnopqrstuvwx')", "import os; os._exit(7)"]
)
def test_a_tracker_that_fails_is_one_warning(client: Path, tmp_path: Path, after: str):
    (client / "trackio.py").write_text(FAKE.format(after=after))
    heard = Heard()
    train(tmp_path, done=0, heard=heard, steps=20_000)
    assert sum("training goes on" in line for line in heard.lines) == 1
    assert "hf_abc" not in " ".join(heard.lines)


def test_a_tracker_that_hangs_is_not_waited_for(client: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (client / "trackio.py").write_text(FAKE.format(after="import time; time.sleep(4)"))
    monkeypatch.setattr(tracking, "PATIENCE", 0.1)
    monkeypatch.setattr(tracking, "POINTS", 10**6)
    heard = Heard()
    train(tmp_path, done=0, heard=heard, steps=20_000)  # more than the pipe has room for
    assert "still sending" in heard.lines[-1]


def test_wandb_gets_an_id_and_a_folder(monkeypatch: pytest.MonkeyPatch):
    told: list[Any] = []
    run = SimpleNamespace(log=lambda figures, step: told.append((step, figures)), finish=lambda: told.append("finish"))
    module = ModuleType("wandb")
    module.init = lambda **said: (told.append(said), run)[1]  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "wandb", module)
    opened = {"project": "p", "name": "n", "identity": "i", "folder": "f", "settings": {"k": 1}}
    serve("wandb", [json.dumps(opened), json.dumps({"step": 3, "figures": {"loss": 1.0}})])
    said = {"project": "p", "name": "n", "id": "i", "resume": "allow", "dir": "f", "config": {"k": 1}}
    assert told == [said, (3, {"loss": 1.0}), "finish"]


def test_what_is_unknown_or_missing_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ConfigError, match="did you mean wandb"):
        require_tracker("wandbb")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    (tmp_path / "wandb").mkdir()  # which the client leaves where it runs
    with pytest.raises(BackendError, match=r"sae-forge\[wandb\]"):
        require_tracker("wandb:owls")


@pytest.mark.parametrize("client", ["trackio", "wandb"])
@pytest.mark.real
def test_the_real_client_takes_it_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, client: str):
    if importlib.util.find_spec(client) is None:
        pytest.skip(f"{client} is not installed")
    where = os.environ | {"TRACKIO_DIR": str(tmp_path / "trackio"), "WANDB_MODE": "offline"}
    opened = {"project": "p", "name": "n", "identity": "abcd1234", "folder": str(tmp_path), "settings": {"k": 1}}
    lines = [opened, *({"step": step, "figures": {"loss": 1.0 / step}} for step in (1, 2))]
    for _ in range(2):
        subprocess.run(
            [sys.executable, "-m", "sae_forge.training.tracking", client],
            input="".join(json.dumps(line) + "\n" for line in lines), text=True, check=True, env=where,
        )  # fmt: skip
    kept = [path for path in tmp_path.rglob("*") if path.suffix in (".db", ".wandb")]
    assert len(kept) == {"trackio": 1, "wandb": 2}[client]
