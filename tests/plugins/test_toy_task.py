"""A task of one's own in one file: this one. Two options, guessing at a half, and one graded measure.

Named with ``--plugin`` it goes through eval, the sweep, the terminal, the page, the card, the items and the claims
without another line anywhere.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pyarrow.parquet
import pytest

from sae_forge.config.fields import Setting
from sae_forge.config.model import ModelConfig
from sae_forge.results.measure import Measure
from sae_forge.tasks.item import Item
from sae_forge.tasks.task import Asked

pytestmark = pytest.mark.usefixtures("unpainted")

# ---- the task: all there is to write ------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RiddleSettings(ModelConfig):
    """Flags of the task."""

    heading: ClassVar[str] = "Riddles"
    decides: ClassVar[tuple[str, ...]] = ("report",)
    riddles: Annotated[int, "Riddles to ask of each side.", Setting(at_least=1)] = 16


@dataclass(frozen=True, kw_only=True)
class Riddles:
    """Is the next word this one or that one? Sure answers count more."""

    name: str = "riddles"
    title: str = "Riddles"
    group: str | None = None
    measures: tuple[Measure, ...] = (
        Measure(name="correct", words="riddles solved", better="up", chance=0.5),
        Measure(name="sureness", words="sureness of the solution", unit="share", better="up", digits=3),
    )
    settings: type | None = RiddleSettings
    tuned_on: bool = True
    writes: bool = False

    def load(self, lm: Any, config: Any, *, half: str, limit: int | None, progress: Any) -> tuple[Asked, ...]:
        from sae_forge.tasks.engines.continuations import encode
        from sae_forge.tasks.records import half_of

        asked = []
        for role, topic in (("forget", "wizards"), ("retain", "stones")):
            facts = [f"{topic} {n}" for n in range(4 * config.riddles) if half in ("all", half_of(f"{topic} {n}"))]
            facts = facts[: min(config.riddles, limit or config.riddles)]
            encoded = encode(lm, [(f"Of {fact} it is", (" owl", " rock")) for fact in facts])
            asked.append(Asked(
                task=self, domain=topic, role=role, kind="riddle", units=len(facts),
                ids=tuple(facts), facts=tuple(facts), content=encoded,
            ))  # fmt: skip
        return tuple(asked)

    def ask(self, lm: Any, asked: Asked, *, batch_size: int, done: Any) -> list[Item]:
        from math import exp

        from sae_forge.tasks.engines.continuations import score

        items = []
        for owl, rock in score(lm, asked.content, batch_size=batch_size, done=done):
            sure = 1 / (1 + exp(rock.logprob - owl.logprob))
            values = {"correct": float(sure > 0.5), "sureness": sure, "chance": 0.5}
            items.append(asked.answered(len(items), values))
        return items


TASKS = (Riddles(),)

# ---- what is made of it -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(new_run: Callable[[], Any]) -> Any:
    """A run of its own: a page draws every report of its run."""
    return new_run()


@pytest.fixture(scope="module")
def told(run: Any, command: Callable[..., str]) -> tuple[str, Path]:
    """The terminal's words and the folder of the report."""
    small = ["--num_features=8", "--bootstrap=100", "--eval_batch_size=64", "--configurations=8", "--riddles=12"]
    asked = ["--tasks", "riddles", "--methods", "scale,random", "--sweep", *small]
    words = command("eval", "--plugin", __file__, *run.where, *asked)
    (report,) = run.folder.glob("eval/*/*/*/eval.json")
    return words, report.parent


def test_help_lists_its_flag_under_its_heading(command: Callable[..., str]) -> None:
    page = command("eval", "--plugin", __file__, "--help")
    assert "Riddles:\n  --riddles INT" in page
    assert "--riddles" not in command("eval", "--help")


@pytest.mark.slow
def test_terminal_and_claims_say_its_measures(told: tuple[str, Path]) -> None:
    words, folder = told
    report = json.loads((folder / "eval.json").read_text())
    assert "riddles solved" in words
    assert any("riddles solved" in line for line in report["claims"])
    assert any("sureness of the solution" in line for line in report["claims"])
    assert {task["name"]: [each["name"] for each in task["measures"]] for task in report["tasks"]}["riddles"] == [
        "correct", "sureness",
    ]  # fmt: skip


@pytest.mark.slow
def test_estimates_are_the_means_of_its_items(told: tuple[str, Path]) -> None:
    _, folder = told
    report = json.loads((folder / "eval.json").read_text())
    rows = pyarrow.parquet.read_table(folder / "items.parquet").to_pylist()
    base = [row for row in rows if row["method"] == "baseline" and row["domain"] == "wizards"]
    assert len(base) == 12
    assert {row["task"] for row in rows} == {"riddles"}
    for name in ("correct", "sureness"):
        mean = sum(row[name] for row in base) / len(base)
        assert report["methods"][0]["domains"]["wizards"][name]["value"] == pytest.approx(mean, abs=1e-12)
        assert report["methods"][1]["change"]["roles"]["forget"][name]["low"] <= 0.0


@pytest.mark.slow
def test_sweep_tunes_on_it_on_the_dev_half_and_controls_stand_beside(told: tuple[str, Path]) -> None:
    from sae_forge.tasks.records import half_of

    report = json.loads((told[1] / "eval.json").read_text())
    dev = report["sweep"]["domains"]["wizards"]
    assert report["sweep"]["methods"]["scale"]["configurations"] == 8
    assert dev["role"] == "forget"
    rows = pyarrow.parquet.read_table(told[1] / "items.parquet").to_pylist()
    assert {half_of(row["fact"]) for row in rows} == {"test"}
    kinds = {control["settings"]["kind"] for control in report["controls"]}
    assert kinds == {"latents", "isotropic", "places", "direction"}
    for control in report["controls"]:
        assert {"correct", "sureness"} <= set(control["edit_minus_control"]["forget"])


@pytest.mark.slow
def test_page_and_card_print_it(told: tuple[str, Path], run: Any, command: Callable[..., str]) -> None:
    command("report", *run.where)  # without the plug-in: a report describes itself
    page = (run.folder / "report.html").read_text()
    assert "iddles solved" in page
    assert "ureness of the solution" in page
    card = command("push", "you/riddles", "--dry_run", *run.where)
    assert "iddles solved" in card
