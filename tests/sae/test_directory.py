"""Names of released SAEs: SAELens' directory as data, short forms, and an SAE fetched by its release and id."""

from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from fakehub import TOKEN, FakeHub

from sae_forge.errors import CheckpointError, ConfigError
from sae_forge.hookpoint import HookPoint
from sae_forge.pipeline.saes import saes
from sae_forge.sae import directory
from sae_forge.sae.named import load_dictionary
from sae_forge.store.runs import Run
from tests.sae.test_formats import X, agree, defined, saelens_folder

YAML = """
small-res:
  model: gpt2-small
  repo_id: someone/saes
  conversion_func: null
  config_overrides: {model_from_pretrained_kwargs: {center_writing_weights: true}}
  saes:
  - {id: blocks.3.hook_resid_post, path: v5_32k_layer_3.pt, norm_scaling_factor: 2.0}
  - {id: blocks.3.hook_resid_mid, path: mid}
heads:
  model: gpt2-small
  repo_id: someone/heads
  conversion_func: connor_rob_hook_z
  saes: [{id: blocks.0.hook_z, path: a.pt}]
rescaled:
  model: mistral-7b
  repo_id: someone/rescaled
  conversion_func: sae_lens
  config_overrides: {normalize_activations: constant_norm_rescale}
  saes: [{id: blocks.8.hook_resid_pre, path: a}]
gemma-scope-2b-pt-res-canonical:
  model: gemma-2-2b
  repo_id: google/gemma-scope-2b-pt-res
  conversion_func: gemma_2
  saes:
  - {id: layer_0/width_16k/canonical, path: layer_0/width_16k/average_l0_105}
"""


@pytest.fixture
def listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A directory of four releases in the place of SAELens'."""
    path = tmp_path / directory.YAML
    path.write_text(YAML)
    directory._releases.cache_clear()
    monkeypatch.setattr(directory, "_path", lambda: path)
    yield
    directory._releases.cache_clear()


def test_a_release_and_an_id_stand_for_a_place_on_the_hub(listed):
    del listed
    canonical = directory.named("gemma-scope-2b-pt-res-canonical:layer_0/width_16k/canonical")
    assert canonical is not None
    assert str(canonical.reference) == "google/gemma-scope-2b-pt-res:layer_0/width_16k/average_l0_105"
    assert canonical.point == HookPoint(0)
    assert directory.named("google/gemma-scope-2b-pt-res:layer_0/width_16k") is None
    assert directory.named("some/folder") is None
    for text, said in (
        ("small-res:blocks.9.hook_resid_post", r"has no SAE of that id; it has blocks\.3"),
        ("small-res:blocks.3.hook_resid_mid", "no place that can be edited"),
        ("heads:blocks.0.hook_z", "hook_z"),
        ("rescaled:blocks.8.hook_resid_pre", "constant_norm_rescale"),
    ):
        with pytest.raises(CheckpointError, match=said):
            directory.named(text)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("gemma-scope-2-1b-pt:resid_post/layer_13_width_16k_l0_small", "resid_post/layer_13_width_16k_l0_small"),
        ("gemma-scope-2-1b-pt-res-all:layer_2_width_16k_l0_big", "resid_post_all/layer_2_width_16k_l0_big"),
        ("gemma-scope-2-1b-pt-att:layer_13_width_1m_l0_big_seed_1", "attn_out/layer_13_width_1m_l0_big_seed_1"),
    ],
)
def test_short_names_of_gemma_scope_2_need_no_directory(text, place, monkeypatch):
    monkeypatch.setattr(directory, "_path", lambda: None)
    monkeypatch.setattr(directory, "_releases", dict)
    found = directory.named(text)
    assert found is not None
    assert str(found.reference) == f"google/gemma-scope-2-1b-pt:{place}"
    with pytest.raises(CheckpointError, match="transcoder"):
        directory.named("gemma-scope-2-1b-pt:transcoder/layer_2_width_16k_l0_big")
    with pytest.raises(CheckpointError, match=r"pip install sae-forge\[saelens\]"):
        directory.named("gpt2-small-res-jb:blocks.0.hook_resid_pre")


def test_an_sae_is_fetched_by_release_and_id_with_what_the_directory_adds(listed, tmp_path, monkeypatch):
    del listed
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    folder = saelens_folder(tmp_path / "made", "standard", metadata={"model_name": "gpt2-small"})
    run = Run(tmp_path / "run")
    less = (X - X.mean(dim=1, keepdim=True)) * 2
    acts, output = defined("standard", less, centred=True)
    with FakeHub() as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        files = {f"v5_32k_layer_3.pt/{path.name}": path.read_bytes() for path in folder.iterdir()}
        hub.add_repo("someone/saes", files=files)
        for name in ("small-res:blocks.3.hook_resid_post", "someone/saes:v5_32k_layer_3.pt"):
            found = load_dictionary(name, run, model="openai-community/gpt2", norms_take_mean=lambda: True)
            assert found.point == HookPoint(3)
            agree(found.sae, acts, output / 2)
        again = load_dictionary(found.folder, run, model="gpt2", norms_take_mean=lambda: True)
        assert torch.equal(again.sae.W_dec, found.sae.W_dec)


@pytest.mark.slow
def test_most_of_the_directory_opens_by_name_and_the_rest_has_a_reason():
    pytest.importorskip("sae_lens")
    directory._releases.cache_clear()
    found = list(directory.entries())
    usable = [each for each in found if not each.reason]
    assert len(usable) >= 0.6 * len(found) > 6000
    assert all(each.point is not None for each in usable)


def test_saes_lists_what_fits_and_says_how_to_go_on(listed):
    del listed
    found = saes("small-res", layer=3, site="resid_post")
    assert (found.metrics["found"], found.metrics["usable"]) == (1, 1)
    (one,) = found.metrics["saes"]
    assert one["sae"] == "small-res:blocks.3.hook_resid_post"
    assert found.then == f"sae-forge features --model {one['model']} --sae {one['sae']} --forget YOUR_TEXT"
    assert saes("rescaled").metrics["usable"] == 0
    assert saes("rescaled").then is None
    assert saes(model="nobody/at-all").metrics["found"] == 0
    assert saes(model="nobody/at-all").summary.startswith(f"none of {len(list(directory.entries()))} SAEs fits")
    with pytest.raises(ConfigError, match="--site resid_psot is unknown; choose one of resid_pre"):
        saes(site="resid_psot")
