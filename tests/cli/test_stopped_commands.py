"""A command that is stopped in its middle says that the same one continues, and that ends as if never stopped."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_run import TinyRun
from typer.testing import CliRunner

from cli.app import build
from sae_forge.store import files

pytestmark = pytest.mark.slow

TRAIN = ["--batch_size", "64", "--k", "2", "--expansion_factor", "1", "--max_steps", "4", "--loss_tokens", "60"]
TRAIN += ["--checkpoint_every", "1"]
CHOOSE = ["--num_features", "3", "--method", "frequency,top_mean", "--retain_threshold", "1", "--snippets", "0"]
ASK = ["--methods", "zero", "--num_features", "3", "--bootstrap", "100", "--limit", "4", "--scoring", "cloze"]


@pytest.fixture
def lines(plugged_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """A command of each kind, with what it takes."""
    monkeypatch.chdir(tmp_path)
    for name in ("forget", "retain"):
        (tmp_path / f"{name}.txt").write_text("\n\n".join(f"The {name} stone of hill {n} is grey." for n in range(40)))
    texts = ["--forget", "forget.txt", "--retain", "retain.txt", "--ctx_len", "24"]
    asked = [*ASK, *(f"--{name}={','.join(paths)}" for name, paths in plugged_run.questions.items())]
    return {
        "collect": ["--layer", "2", "--fresh", *texts],
        "train": TRAIN,
        "features": CHOOSE,
        "eval": asked,
        "generate": ["The grey stone", "--max_new_tokens", "2"],
        "report": [],
        "push": ["me/it", "--dry_run"],
        "run": [*texts, *TRAIN, *CHOOSE, *(flag for flag in asked if flag not in CHOOSE)],
    }


def stopped_at(monkeypatch: pytest.MonkeyPatch, at: int | None) -> list[Any]:
    """Have the publishing of so many files end the command as Ctrl-C does; the list counts them."""
    seen: list[Any] = []
    publish = files.publish

    def counted(path: Any) -> Any:
        seen.append(path)
        if len(seen) == at:
            raise KeyboardInterrupt
        return publish(path)

    monkeypatch.setattr(files, "publish", counted)
    return seen


def tree(folder: Path) -> dict[str, str]:
    """Every file of a run but its logs, by a hash of its bytes."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"]
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in names.items()
        if not name.startswith("logs/")
    }


@pytest.mark.parametrize("command", ["collect", "train", "features", "eval", "generate", "report", "push", "run"])
def test_a_stopped_command_continues_to_the_same_run(
    plugged_run: TinyRun, lines: dict[str, list[str]], command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def call(folder: str, code: int) -> str:
        place = ["--model", str(plugged_run.model), "--run_dir", folder, "--layer", "1"]
        line = [command, *place, *lines[command]]
        result = CliRunner().invoke(build(only=command), line)
        assert result.exit_code == code, f"{result.output}{result.exception!r}"
        return result.output

    for folder in ("a", "b") if command != "run" else ():
        shutil.copytree(plugged_run.folder, folder)
    with monkeypatch.context() as patch:
        published = stopped_at(patch, None)
        call("a", 0)
    if published:  # else nothing is written, so nothing can be left half-done
        with monkeypatch.context() as patch:
            stopped_at(patch, (len(published) + 1) // 2)
            assert "the same command continues from here" in call("b", 130)
    call("b", 0)
    assert tree(Path("a")) == tree(Path("b"))
