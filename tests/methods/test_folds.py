"""MUSE's series: each fold by itself from the given model, or one after the other."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import TinyRun

from sae_forge.errors import ConfigError
from sae_forge.methods.subjects import Retrained
from sae_forge.methods.table import methods_of
from sae_forge.methods.weights.training import unlearn
from sae_forge.methods.wrappers.folds import InTurn, folds_of
from sae_forge.study.settings import eval_config

WORDS = ("The wizard keeps an owl.", "Granite is a rock of mica.", "The river Arn runs past Bel.")


@pytest.fixture(scope="module")
def run(new_run: Callable[[], TinyRun]) -> TinyRun:
    return new_run()


def test_folds_go_alone_or_in_turn(run: TinyRun, tmp_path: Path) -> None:
    files = []
    for number, text in enumerate(WORDS, 1):
        files.append(str(tmp_path / f"{number}.txt"))
        Path(files[-1]).write_text(f"{text} " * 30)
    names, settings = ("scale", "npo", "scal", "sust"), {"scal": tuple(files), "sust": tuple(files[:2])}
    materials = run.materials(methods=names, baseline_steps=1, baseline_batch=2, **settings)
    plain, edit, *series = methods_of(names)[1], methods_of(names)[0], *methods_of(names)[2:]
    assert [edit.name, plain.name, *(one.name for one in series)] == ["scale", "npo", "npo+scal", "npo+sust"]
    scal, sust = (method.from_flags(8, materials) for method in series)
    assert [one["scal_fold"] for one in scal] == [1, 2, 3]
    assert [one["sust_fold"] for one in sust] == [1, 2]
    assert series[0].said(scal[1]).endswith("fold 2 alone")
    assert series[1].said(sust[1]).endswith("folds 1 to 2 in turn")
    inner = plain.build(plain.from_flags(8, materials)[0], materials)
    assert isinstance(inner, Retrained)
    alone = series[0].build(scal[1], materials)
    in_turn = series[1].build(sust[1], materials)
    assert isinstance(alone, InTurn) and isinstance(in_turn, InTurn)
    assert alone.requests[0] is not inner.forget
    decoded = run.lm.tokenizer.decode(alone.requests[0].token_ids[0], skip_special_tokens=True)
    assert "Granite is a rock" in decoded and "wizard" not in decoded
    how: dict[str, Any] = {"seed": inner.seed}
    first = unlearn(run.lm, inner.recipe, in_turn.requests[0], inner.retain, **how)
    second = unlearn(first, inner.recipe, in_turn.requests[1], inner.retain, **how)
    assert weight(in_turn.weights(run.lm)).equal(weight(second)), "the second is forgotten by what forgot the first"
    assert not weight(second).equal(weight(alone.weights(run.lm)))


def weight(lm: Any) -> torch.Tensor:
    return lm.model.model.layers[1].mlp.down_proj.weight


def test_a_benchmark_stands_for_its_folds_and_edits_have_none(run: TinyRun) -> None:
    config = eval_config()(scal=("muse-news",), sust=("mine.txt",))
    assert folds_of("scal", config) == [f"muse-news-scal-{fold}" for fold in range(1, 5)]
    assert folds_of("sust", config) == ["mine.txt"]
    with pytest.raises(ConfigError, match="none it can be done to"):
        methods_of(("scale", "scal"))
    (_, folded) = methods_of(("npo", "sust"))
    assert "needs the texts of its folds: --sust muse-news" in str(folded.needs(run.materials()))
