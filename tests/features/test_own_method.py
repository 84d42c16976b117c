"""A way of selecting latents of one's own: this file is all it takes, and ``features`` treats it as one that ships."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pytest
import torch
from tiny_run import RETAIN, TinyRun

from sae_forge.config.fields import Artefact, Setting
from sae_forge.config.model import ModelConfig
from sae_forge.features.methods.method import Found, Ranking, SelectionMethod
from sae_forge.features.selection import Selection

pytestmark = pytest.mark.usefixtures("unpainted")


@dataclass(frozen=True, kw_only=True)
class SteadySettings(ModelConfig):
    """Its one flag."""

    heading: ClassVar[str] = "Steady"
    decides: ClassVar[tuple[Artefact, ...]] = ("selection",)

    steady_fires: Annotated[int, "steady: least forget tokens it fires on.", Setting(at_least=1)] = 3


def rank(measured: Any, config: Any, n: int) -> Ranking:
    """Latents whose activation varies least where they fire."""
    del n
    forget = measured.forget
    spread = forget.squares / forget.fires.clamp(min=1) - (forget.sums / forget.fires.clamp(min=1)) ** 2
    return Ranking({"steady_fires": forget.fires >= config.steady_fires}, -spread)


def ask_for_even(ask: Any, sae: Any, config: Any, progress: Any) -> Found:
    """Every other latent, however the model answers."""
    del config, progress
    latents = range(0, sae.d_sae, 2)
    return Found(scores=dict.fromkeys(latents, float(ask.questions)), removed={"odd": sae.d_sae // 2}, settings={})


SELECTIONS = (
    SelectionMethod(
        name="steady",
        words="vary least where they fire",
        rank=rank,
        settings=SteadySettings,
        thresholds=lambda config: {"steady_share": 0.5},
    ),
    SelectionMethod(name="even", words="every other", find=ask_for_even, rival=False, in_all=False),
)


@pytest.fixture(scope="module")
def run(new_run: Callable[[], TinyRun]) -> TinyRun:
    return new_run()


Features = Callable[..., dict[str, Any]]


@pytest.fixture
def features(run: TinyRun, command: Callable[..., str]) -> Features:
    """What ``features --json`` prints, told of this file."""

    def printed(*flags: str) -> dict[str, Any]:
        line = ["features", "--plugin", __file__, *run.where, "--snippets", "0", *flags, "--json"]
        return json.loads(command(*line))

    return printed


@pytest.mark.slow
def test_it_is_chosen_analysed_drawn_and_saved_beside_those_that_ship(features: Features) -> None:
    told = features("--method", "steady,top_mean,random_matched", "--steady_fires", "9", "--num_features", "4")
    chosen = {name: Selection.load(Path(told["outputs"][name])) for name in ("steady", "top_mean", "random_matched")}
    steady = chosen["steady"]
    assert len(steady.latents) == 4
    assert min(latent.forget.fires for latent in steady.latents) >= 9
    assert sum(steady.filtered.values()) + steady.candidates == steady.d_sae
    variances = torch.tensor([latent.score for latent in steady.latents])
    assert (variances.diff() <= 0).all(), "best first, by its own score"
    assert (steady.settings["steady_fires"], chosen["random_matched"].settings["matched_to"]) == (9, "steady")
    assert chosen["top_mean"].analysis is not None and steady.analysis is not None
    assert "steady" in chosen["top_mean"].analysis.overlap
    assert "steady" not in steady.analysis.overlap
    assert Path(told["outputs"]["steady"]).with_suffix(".png").is_file()
    again = features("--method", "steady", "--steady_fires", "10", "--num_features", "4")
    assert again["outputs"]["selection"] != told["outputs"]["steady"], "its flag decides its file"


def test_one_that_asks_a_model_is_handed_what_asks(run: TinyRun, features: Features) -> None:
    asked = [f"--{role}_questions={run.questions[f'{role}_questions'][0]}" for role in ("forget", "retain")]
    texts = ",".join(str(run.texts / f"{name}.jsonl") for name in RETAIN)
    told = features("--method", "even", *asked, "--retain", texts, "--scoring", "cloze", "--num_features", "3")
    made = Selection.load(Path(told["outputs"]["selection"]))
    assert (made.method, made.indices, made.candidates, made.filtered) == ("even", (0, 2, 4), 140, {"odd": 140})
    assert made.latents[0].score > 0, "as many questions as the model is sure of"


def test_it_stands_on_the_help_page(command: Callable[..., str]) -> None:
    page = command("features", "--plugin", __file__, "--help")
    assert "Steady:\n  --steady_fires INT" in page
    assert "|steady|even|all" in "".join(page.split())
