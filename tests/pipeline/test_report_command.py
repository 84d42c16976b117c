"""What ``report`` puts into a page: which SAEs, whose text, which marks, and the commands that make it again."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sae_forge.config.report import ReportConfig
from sae_forge.errors import CheckpointError
from sae_forge.live.session import Fired, Token
from sae_forge.pipeline.bench import Bench
from sae_forge.pipeline.report import _may_show, _saes
from sae_forge.pipeline.texts import _marked

SAES = [Path(f"run/saes/blocks.{layer}.hook_resid_post/k{k}-d8-s0") for layer, k in ((1, 4), (2, 4), (2, 8))]


def bench_of(saes: list[Path]) -> Any:
    return SimpleNamespace(run=SimpleNamespace(saes=lambda: saes, folder=Path("run")))


@pytest.mark.parametrize(("layers", "places"), [(None, [2, 1, 0]), ((2,), [2, 1]), ((1, 2), [2, 1, 0]), ((1,), [0])])
def test_a_page_is_about_the_layers_named_the_newest_first(layers: tuple[int, ...] | None, places: list[int]):
    chosen = _saes(ReportConfig(model="tiny-llama", layer=layers), bench_of(SAES))
    assert chosen == [SAES[place] for place in places]


def test_a_layer_without_an_sae_names_those_that_have_one():
    found = r"no SAE at blocks.7.hook_resid_post in run \(found: blocks.1.hook_resid_post, blocks.2.hook_resid_post\)"
    with pytest.raises(CheckpointError, match=found):
        _saes(ReportConfig(model="tiny-llama", layer=(7,)), bench_of(SAES))
    assert _saes(ReportConfig(model="tiny-llama", layer=(7,)), bench_of([])) == []


@pytest.mark.parametrize(
    ("sources", "shown"),
    [
        (["world:corpora/wizards xxh3:00"], True),
        (["world:generation/wizards", "world:generation/magic"], True),
        (["world:generation/wizards", "mine.jsonl"], False),
        (["mine.txt"], False),
        ([], False),
    ],
)
def test_text_is_shown_of_the_built_in_world_alone_unless_asked(sources: list[str], shown: bool):
    assert _may_show(sources, ReportConfig(model="tiny-llama")) is shown
    assert _may_show(sources, ReportConfig(model="tiny-llama", include_contexts=True))


def test_edited_tokens_are_marked_where_the_text_is_the_one_that_was_measured():
    weaker, stronger = Fired(0, 12, 1.0), Fired(0, 55, 2.0)
    tokens = [
        Token(0, 5, "Once", written=False, fired=(weaker,), edited=True),
        Token(0, 6, " upon", written=True, fired=(weaker,)),
        Token(0, 7, " a", written=True, fired=(weaker, stronger), edited=True),
        Token(0, 8, " time", written=True),
    ]
    marked = _marked(" upon a time", tokens)
    assert marked.edited == ((5, 7, "55, 12"),) and marked.text[5:7] == " a"
    assert _marked(" upon a hill", tokens).edited == () == _marked(" upon a time", None).edited


def test_the_commands_to_make_it_again_say_what_is_no_default(tmp_path: Path):
    bench = Bench(ReportConfig(model="tiny-llama", run_dir=tmp_path))
    said = bench.again("eval", {"model": "tiny-llama", "ablation_scale": [-2.0, -4.0], "keep_error": False, "other": 1})
    assert said == "sae-forge eval --model tiny-llama --no_keep_error --ablation_scale=-2.0,-4.0"
    plain = bench.again("eval", {"generation_prompts": ["world:generation/wizards"], "bootstrap": 2000})
    assert plain == "sae-forge eval --model tiny-llama", "what the preset of the model says is not repeated"
    folder = Bench(ReportConfig(model=str(tmp_path), run_dir=tmp_path)).again("train", {"k": 7})
    assert folder == "sae-forge train --model YOUR_MODEL --k 7", "no path of this machine"
