"""The snippets of docs/python.md, run from top to bottom on a small run."""

import re
from pathlib import Path

import pytest

from sae_forge.store.runs import Run

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "python.md"
REPORT = ROOT / "tests" / "results" / "report-0.1.json"


@pytest.fixture
def run(plugged_run, tmp_path):
    """The folder of the run, with a report beside its other artefacts."""
    for name in ("saes", "features"):
        (tmp_path / name).symlink_to(plugged_run.folder / name)
    folder = Run(tmp_path).evals(next((tmp_path / "saes").glob("*/*"))) / "0a1b2c3d"
    folder.mkdir(parents=True)
    (folder / "eval.json").symlink_to(REPORT)
    return tmp_path


def test_every_snippet_runs_and_shows_what_it_says(plugged_run, run, capsys):
    snippets = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, object] = {}
    for snippet in snippets:
        said = snippet.replace("checkpoints/tiny-llama", str(run)).replace('"tiny-llama"', f'"{plugged_run.model}"')
        exec(compile(said, str(PAGE), "exec"), names)
    shown = capsys.readouterr().out
    assert re.search(r"^[1-9]\d* of [1-9]\d* tokens were edited", shown)
    assert "torch.Size([2, " in shown and "forget.fires" in shown and "Scale -3 on 200 latents" in shown
    assert len(snippets) == 4
