"""Tests of Triton's kernels, shown as themselves where no GPU is: run in the interpreter, in a process of their own.

Triton decides when it is imported whether its kernels are interpreted, so all tests of a file that need it run in one
process where they are; what became of each is handed to the test of its name here.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from shared import made_once

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
SKIPPED = "skipped: "


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Take the verdict of the interpreter's process in place of running the test here."""
    if INTERPRETED or pyfuncitem.get_closest_marker("interpreted") is None:
        return None
    import torch

    if torch.cuda.is_available():
        return None
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    said = verdicts(pyfuncitem.path, pyfuncitem.config)[pyfuncitem.name]
    if said.startswith(SKIPPED):
        pytest.skip(said.removeprefix(SKIPPED))
    if said:
        pytest.fail(said, pytrace=False)
    return True


_VERDICTS: dict[Path, dict[str, str]] = {}


def verdicts(file: Path, config: pytest.Config) -> dict[str, str]:
    """What the interpreter's process said of each test of a file that needs it; nothing: it passed."""
    if file not in _VERDICTS:
        factory = config._tmp_path_factory  # type: ignore[attr-defined]
        report = made_once(factory, file.stem, lambda folder: interpret(file, folder / "report.xml")) / "report.xml"
        _VERDICTS[file] = {case.get("name", ""): said_of(case) for case in ElementTree.parse(report).iter("testcase")}
    return _VERDICTS[file]


def said_of(case: ElementTree.Element) -> str:
    for end in case:
        if end.tag == "skipped":
            return SKIPPED + end.get("message", "")
        if end.tag in ("failure", "error"):
            return end.text or "failed"
    return ""


def interpret(file: Path, report: Path) -> None:
    """Run the tests of a file that need Triton where its kernels are interpreted."""
    command = [sys.executable, "-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider", "-m", "interpreted"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    tests = Path(__file__).parent
    paths = os.pathsep.join(filter(None, (str(tests), os.environ.get("PYTHONPATH"))))
    environment |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    command += ["-p", "quick_interpreter", str(file), f"--junitxml={report}"]
    done = subprocess.run(command, env=environment, cwd=tests.parent, capture_output=True, text=True)
    assert report.exists(), done.stdout[-4000:] + done.stderr[-4000:]
