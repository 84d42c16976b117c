"""What CONTRIBUTING says of where a thing goes: taken out of a copied package, an entry is its file and its line."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import sae_forge

PACKAGE = Path(sae_forge.__file__).parent
ROOT = PACKAGE.parent
ENTRIES = {
    "tasks/muse.py": ("tasks/table.py", r"from sae_forge\.tasks\.muse import Muse\n|    Muse\(\),\n"),
    "methods/weights/crisp.py": ("methods/table.py", r"crisp, (?=grad_diff)|    crisp\.METHOD,\n"),
    "features/methods/crisp.py": ("features/methods/table.py", r"from \S+\.crisp import CRISP\n|(?<= )CRISP, "),
    "interventions/gates/cusum.py": ("interventions/gates/table.py", r"from \S+\.cusum import CUSUM\n|CUSUM, "),
}
"""Files, and the table that names each, with what is taken out of it."""
PRESET = 'description = "Mine."\nmodels = ["a/b"]\n[settings]\nk = [5]\n'
ASKED = """
import contextlib, io, sys
from cli.app import main

for arguments in sys.argv[1:]:
    sys.argv = ["sae-forge", *arguments.split()]
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            main()
    except SystemExit as end:
        print(f"=== {end.code}")
    print(said.getvalue())
"""


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package without these entries, and with one more preset."""
    root = tmp_path_factory.mktemp("package")
    for name in ("sae_forge", "cli"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("world", "__pycache__"))
    for file, (table, line) in ENTRIES.items():
        (root / "sae_forge" / file).unlink()
        path = root / "sae_forge" / table
        left, taken = re.subn(line, "", path.read_text())
        assert taken == 2, f"{table} names {file} other than in an import and a line"
        path.write_text(left)
    (root / "sae_forge/presets/mine.toml").write_text(PRESET)
    return root


def test_what_is_taken_out_is_two_files(without: Path) -> None:
    """No other file imports it: the package is as whole without it."""
    for file in ENTRIES:
        room, name = file.removesuffix(".py").rsplit("/", 1)
        dotted = re.escape(f"sae_forge.{room.replace('/', '.')}")
        named = re.compile(rf"from {dotted}\.{name} import|import {dotted}\.{name}\b|from {dotted} import .*\b{name}\b")
        assert not [path for path in (without / "sae_forge").rglob("*.py") if named.search(path.read_text())], file


def test_commands_go_on_without_it_and_a_preset_that_names_it_ends_in_one_line(without: Path) -> None:
    commands = ("eval --help", "features --help", "run --preset dsg-muse-books --forget x", "eval --methods crisp",
                "run --preset mine --forget x --gate cusum")  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", ASKED, *commands], cwd=without, capture_output=True, text=True, check=True,
        env={"PYTHONPATH": str(without), "PATH": ""},
    )  # fmt: skip
    of_eval, of_features, muse, crisp, mine = re.split(r"=== (?=\d)", done.stdout)[1:]
    assert of_eval.startswith("0") and "--theta" in of_eval and "simnpo" in of_eval
    assert not [word for word in ("verbmem", "privleak", "crisp", "cusum") if word in of_eval]
    assert of_features.startswith("0") and "|crisp" not in of_features
    for told, words in (
        (muse, "preset dsg-muse-books sets --knowmem_forget, which no task or method here has"),
        (crisp, "--methods crisp"),
        (mine, "--gate cusum"),
    ):
        assert told.startswith("2\n") and words in told, told
        assert len(told.strip().splitlines()) == 2


def test_each_recipe_is_followed_by_a_test_and_names_files_that_are_there() -> None:
    recipes = (ROOT / "CONTRIBUTING.md").read_text().partition("## Where to put a thing")[2].partition("\n## ")[0]
    bullets = [bullet for bullet in re.split(r"\n- ", recipes) if bullet.startswith(("**A ", "**An "))]
    assert len(bullets) >= 15
    for bullet in bullets:
        assert "tests/" in bullet, bullet
    for name in re.findall(r"`([\w/]+\.(?:py|txt))`", recipes):
        folder, _, file = name.rpartition("/")
        places = [ROOT, PACKAGE] if folder else [ROOT / "tests"]
        where = [path for place in places for path in (place / folder).glob(f"**/{file}" if not folder else file)]
        assert where or "NAME" in file, name
