"""What ``report`` puts into a page: which SAEs, whose text, which marks, and the commands that make it again."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sae_forge.config.report import ReportConfig
from sae_forge.errors import CheckpointError
from sae_forge.live.session import Fired, Token
from sae_forge.pipeline.bench import Bench
from sae_forge.pipeline.report import _may_show, _saes
from sae_forge.pipeline.texts import _marked

MADE = ("blocks.2.hook_resid_post/k8-d8-s0", "blocks.1.hook_resid_post/k4-d8-s0", "blocks.2.hook_resid_post/k4-d8-s0")
"""In this order, which is not that of their names."""


def bench_of(folder: Path, made: Sequence[str], layers: tuple[int, ...] | None) -> Bench:
    """A run that holds these SAEs, as far as their place is concerned."""
    bench = Bench(ReportConfig(model="tiny-llama", run_dir=folder, layer=layers))
    for name in made:
        sae = folder / "saes" / name
        sae.mkdir(parents=True)
        (sae / "cfg.json").touch()
        bench.run.note(sae)
    return bench


@pytest.mark.parametrize(("layers", "places"), [(None, [2, 1, 0]), ((2,), [2, 0]), ((1, 2), [2, 1, 0]), ((1,), [1])])
def test_a_page_is_about_the_layers_named_the_newest_first(tmp_path: Path, layers: Any, places: list[int]):
    bench = bench_of(tmp_path, MADE, layers)
    config = ReportConfig(model="tiny-llama", layer=layers)
    assert _saes(config, bench) == [tmp_path / "saes" / MADE[place] for place in places]


def test_a_layer_without_an_sae_names_those_that_have_one(tmp_path: Path):
    config = ReportConfig(model="tiny-llama", layer=(7,))
    with pytest.raises(
        CheckpointError, match=r"no SAE at blocks.7.hook_resid_post .*\(found: blocks.1\S+, blocks.2\S+\)"
    ):
        _saes(config, bench_of(tmp_path / "run", MADE, (7,)))
    assert _saes(config, bench_of(tmp_path / "other", (), (7,))) == []


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
