"""Fixtures every room shares. What imports torch is imported by the fixture that needs it: some rooms know none."""

from __future__ import annotations

import os

os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"  # a test that needs the network fails at once, everywhere
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"  # tests run side by side; read when torch is imported, here and by what they start

import gc
import logging
import pkgutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from checked_types import install
from interpreted import pytest_pyfunc_call as pytest_pyfunc_call
from shared import made_once

if TYPE_CHECKING:
    from tiny_run import TinyRun

    from sae_forge.models.loading import LanguageModel

# Types and shapes are checked; not in kernels, whose Triton functions compile from source.
_ROOMS = [room.name for room in pkgutil.iter_modules([str(Path(__file__).parents[1] / "sae_forge")])]
install([f"sae_forge.{room}" for room in _ROOMS if room != "kernels"])

# No test cuts the power, so none waits for a disk; those of the order of calls start processes (tests/acceptance).
os.fsync = lambda handle: None

# A library that is first imported while a command is run in this process logs to that command's stderr ever after.
logging.raiseExceptions = False
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts its background jobs with it ignored

gc.disable()  # until all is imported, of which nothing is garbage

FAMILIES = ("llama", "gemma", "gemma2")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin either half with files whose tests take long: two workers begin with a half each, and steal from its end.

    So what a worker steals of another, in need of what the file's tests share, is of a file that makes it soon.
    """
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    slow = {file: sum(item.get_closest_marker("slow") is not None for item in files[file]) for file in files}
    long = sorted(filter(slow.get, files), key=lambda file: (not file.match("tasks/test_numbers.py"), -slow[file]))
    one, other = ([item for file in half for item in files[file]] for half in (long[::2], long[1::2]))
    quick = [item for file in files if not slow[file] for item in files[file]]
    here = max(0, len(items) // 2 - len(one))
    items[:] = [*one, *quick[:here], *other, *quick[here:]]


def pytest_collection_finish() -> None:
    """What was imported stays: no search for garbage has to look through it again (0.4 s each)."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def cache_of_its_own(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing is kept in the user's cache but by the tests on real weights, which are unpacked into it once."""
    if request.config.option.markexpr != "real":
        os.environ["SAE_FORGE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A saved tiny model of each family the tests run on, by family."""
    from tiny_models import save_model

    def save(root: Path) -> None:
        for family in FAMILIES:
            save_model(root / f"tiny-{family}", family)

    root = made_once(tmp_path_factory, "models", save)
    return {family: root / f"tiny-{family}" for family in FAMILIES}


@pytest.fixture(scope="session", params=FAMILIES)
def tiny_model(request: pytest.FixtureRequest, model_folders: dict[str, Path]) -> LanguageModel:
    """A tiny random model, once for each family; 4 layers, d_model 56, fp32 on the CPU."""
    from sae_forge.models.loading import load_model

    return load_model(str(model_folders[request.param]), device="cpu")


@pytest.fixture(scope="session")
def tiny_llama(model_folders: dict[str, Path]) -> LanguageModel:
    """The Llama among the tiny models, for tests where the family does not matter."""
    from sae_forge.models.loading import load_model

    return load_model(str(model_folders["llama"]), device="cpu")


@pytest.fixture(scope="session")
def new_run(model_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[], TinyRun]:
    """A copy of one small run, for whoever writes into it."""
    from tiny_run import make_run, open_run

    model = model_folders["llama"]
    made = made_once(tmp_path_factory, "run", lambda folder: make_run(folder, model))
    return lambda: open_run(made, tmp_path_factory.mktemp("run"), model)


@pytest.fixture(scope="session")
def plugged_run(new_run: Callable[[], TinyRun]) -> TinyRun:
    """One small run for everything that a plug-in brings."""
    return new_run()


@pytest.fixture(scope="session")
def command() -> Callable[..., str]:
    """What a command prints, its plug-ins among its flags as in a process of its own."""
    from typer.testing import CliRunner

    from cli.app import build, named_plugins

    def run(*arguments: str) -> str:
        done = CliRunner().invoke(build(named_plugins(arguments), only=arguments[0]), list(arguments))
        assert done.exit_code == 0, f"{done.output[-2000:]}{done.exception!r}"
        return done.stdout

    return run


@pytest.fixture(scope="module")
def unpainted() -> Iterator[None]:
    """Pictures are composed and not painted, which takes 0.3 s each: for tests that look at none."""
    from matplotlib.figure import Figure
    from PIL import Image

    def save(figure: Figure, held: Any, **how: Any) -> None:
        if how["format"] == "png":
            Image.new("L", (1, 1)).save(held, "png")
        else:
            held.write(b'<svg viewBox="0 0 1 1"></svg>')

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", save)
        yield


@pytest.fixture
def unreachable_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub, which is not there, is asked as often as ever, without 23 seconds of waiting in between."""
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda seconds: None))
