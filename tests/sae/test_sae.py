"""A TopK SAE: its arithmetic, its losses, and files that load as they were saved or not at all."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from sae_forge.errors import CheckpointError, ConfigError
from sae_forge.hookpoint import HookPoint
from sae_forge.sae.dictionary import LatentActs
from sae_forge.sae.losses import FvuMeter, fvu
from sae_forge.sae.store import CFG, WEIGHTS, Provenance, load_sae, save_sae
from sae_forge.sae.topk import TopKSAE
from sae_forge.store import files

D_IN, D_SAE, K = 13, 41, 5
PROVENANCE = Provenance(
    model="tiny-llama",
    hook_point="blocks.1.hook_resid_post",
    hf_hook_name="model.layers.1",
    ctx_len=64,
    bos="row",
    datasets=("wizards", "minerals"),
    tokenizer="t" * 64,
    weights="w" * 64,
    shards=("a" * 64, "b" * 64),
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def sae() -> TopKSAE:
    sae = TopKSAE(D_IN, D_SAE, K, seed=3).requires_grad_(False)
    sae.b_enc.copy_(draw(D_SAE, seed=1) * 0.3)
    sae.b_dec.copy_(draw(D_IN, seed=2))
    return sae


def dense_acts(sae: TopKSAE, x: Tensor) -> Tensor:
    """The code written out, d_sae numbers a token."""
    pre_acts = sae.pre_acts(x)
    top = pre_acts.topk(sae.k, dim=-1)
    return torch.zeros_like(pre_acts).scatter(-1, top.indices, top.values.relu())


# ---- arithmetic ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (7,), (2, 3)])
def test_reconstruction_is_the_dense_formula_for_any_batch_shape(sae, shape):
    x = draw(*shape, D_IN) * 3
    exact = dense_acts(sae, x) @ sae.W_dec + sae.b_dec
    assert torch.allclose(sae(x), exact, atol=1e-5)
    acts = sae.encode(x)
    assert acts.values.shape == acts.indices.shape == (*shape, K)
    assert torch.equal(sae.decode(acts), sae(x))


def test_acts_of_chosen_latents_are_those_of_the_full_code(sae):
    x, latents = draw(4, 9, D_IN) * 3, torch.tensor([40, 0, 17, 3])
    found = sae.latent_acts(x, latents)
    assert torch.allclose(found, dense_acts(sae, x)[..., latents], atol=1e-5)
    assert 0 < int((found > 0).sum()) < found.numel()
    assert sae.latent_acts(x, latents[:0]).shape == (4, 9, 0)


@pytest.mark.parametrize("scale", [0.03, 41.0])
def test_folding_a_scale_moves_acts_and_output_to_the_units_of_the_input(sae, scale):
    x = draw(50, D_IN) / scale
    folded = sae.folded(scale)
    assert torch.allclose(folded(x), sae(x * scale) / scale, rtol=1e-4, atol=1e-5 / scale)
    assert torch.equal(folded.W_dec, sae.W_dec)
    latents = torch.arange(D_SAE)
    expected = sae.latent_acts(x * scale, latents) / scale
    assert torch.allclose(folded.latent_acts(x, latents), expected, rtol=1e-4, atol=1e-5 / scale)


def test_it_starts_tied_with_unit_rows_the_same_for_a_seed():
    first, again, other = (TopKSAE(D_IN, D_SAE, K, seed=seed) for seed in (4, 4, 5))
    assert torch.equal(first.W_enc, first.W_dec.T)
    assert torch.allclose(first.W_dec.norm(dim=1), torch.ones(D_SAE))
    assert torch.equal(first.W_dec, again.W_dec)
    assert not torch.equal(first.W_dec, other.W_dec)


def test_the_encoder_gradient_arrives_in_the_memory_order_of_the_weights():
    sae = TopKSAE(D_IN, D_SAE, K)
    sae(draw(7, D_IN)).square().sum().backward()
    assert sae.W_enc.grad is not None
    assert sae.W_enc.stride() == sae.W_enc.grad.stride() == (1, D_IN)


def test_product_precision_changes_rounding_and_no_more(sae):
    x = draw(64, D_IN) * 3
    half = sae.folded(1.0).requires_grad_(False)
    half.product_dtype = torch.bfloat16
    assert half(x).dtype == torch.float32
    assert 0 < float(fvu(x, half(x)) - fvu(x, sae(x))) + 0.02 < 0.04
    assert not torch.equal(half(x), sae(x))


@pytest.mark.parametrize("k", [0, D_SAE + 1])
def test_k_must_be_a_number_of_latents(k):
    with pytest.raises(ConfigError, match=f"k={k} latents per token, but the SAE has only d_sae={D_SAE}"):
        TopKSAE(D_IN, D_SAE, k)


def test_activations_of_another_width_are_refused(sae):
    with pytest.raises(ConfigError, match="activations are 12 wide, but the SAE reads 13"):
        sae(draw(2, 12))


def test_acts_that_name_no_latent_are_refused(sae):
    with pytest.raises(ConfigError, match="index 41 names no latent"):
        sae.decode(LatentActs(torch.ones(1, 1), torch.tensor([[41]])))


# ---- losses -------------------------------------------------------------------------------------


def test_fvu_is_zero_for_the_input_and_one_for_its_mean():
    x = draw(31, D_IN) + 5
    assert float(fvu(x, x)) == 0.0
    assert float(fvu(x, x.mean(dim=0).expand_as(x))) == pytest.approx(1.0, abs=1e-5)


def test_fvu_and_l0_over_batches_are_those_of_all_tokens_together(sae):
    x = draw(97, D_IN) * 2 + 40
    meter = FvuMeter(D_IN)
    for part in x.split(20):
        meter.add(part, sae(part), sae.encode(part).values)
    assert meter.tokens == 97
    assert meter.fvu == pytest.approx(float(fvu(x.double(), sae(x).double())), rel=1e-9)
    assert meter.l0 == pytest.approx(float((dense_acts(sae, x) > 0).sum(dim=1).float().mean()))


# ---- files --------------------------------------------------------------------------------------


def test_a_saved_sae_comes_back_to_the_bit_with_where_it_is_from(sae, tmp_path):
    save_sae(tmp_path / "sae", sae, PROVENANCE)
    loaded, provenance = load_sae(tmp_path / "sae", expect_model="tiny-llama", expect_point=HookPoint(1))
    assert provenance == PROVENANCE
    assert (loaded.d_in, loaded.d_sae, loaded.k) == (D_IN, D_SAE, K)
    for name, weight in sae.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name
    x = draw(9, D_IN)
    assert torch.equal(loaded(x), sae(x))
    assert not loaded(x).requires_grad


def test_saving_the_same_sae_twice_gives_the_same_bytes(sae, tmp_path):
    for name in ("one", "two"):
        save_sae(tmp_path / name, sae, PROVENANCE)
    for file in (CFG, WEIGHTS):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_a_missing_sae_names_the_command_that_makes_it(tmp_path):
    with pytest.raises(CheckpointError, match="sae-forge train --model tiny-llama --layer 3 --site mlp_out"):
        load_sae(tmp_path / "nothing", expect_model="tiny-llama", expect_point=HookPoint(3, "mlp_out"))


def test_an_sae_of_another_model_or_place_is_refused_with_both_names(sae, tmp_path):
    save_sae(tmp_path, sae, PROVENANCE)
    with pytest.raises(CheckpointError, match="expected google/gemma-2-2b, found tiny-llama"):
        load_sae(tmp_path, expect_model="google/gemma-2-2b")
    with pytest.raises(CheckpointError, match=r"expected blocks\.2\.hook_resid_post, found blocks\.1\.hook_resid_post"):
        load_sae(tmp_path, expect_point=HookPoint(2))


@settings(max_examples=60, deadline=None)
@given(place=st.integers(min_value=0), bit=st.integers(0, 7))
def test_one_flipped_bit_in_the_weights_is_noticed(tmp_path_factory, place, bit):
    folder = tmp_path_factory.mktemp("sae")
    save_sae(folder, TopKSAE(3, 4, 2), PROVENANCE)
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[place % len(content)] ^= 1 << bit
    (folder / WEIGHTS).write_bytes(content)
    with pytest.raises(CheckpointError, match=WEIGHTS):
        load_sae(folder)


@settings(max_examples=30, deadline=None)
@given(cut=st.integers(2, 400))  # the last byte of cfg.json is a newline
def test_a_file_cut_short_is_noticed(tmp_path_factory, cut):
    folder = tmp_path_factory.mktemp("sae")
    save_sae(folder, TopKSAE(3, 4, 2), PROVENANCE)
    for file in (WEIGHTS, CFG):
        whole = (folder / file).read_bytes()
        (folder / file).write_bytes(whole[: -min(cut, len(whole))])
        with pytest.raises(CheckpointError, match=file):
            load_sae(folder)
        (folder / file).write_bytes(whole)


def edit_cfg(folder: Path, **changes: object) -> None:
    cfg = json.loads((folder / CFG).read_text())
    (folder / CFG).write_text(json.dumps({**cfg, **changes}))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architecture": "jumprelu"}, "it lacks threshold"),
        ({"architecture": "lorsa"}, "'lorsa' SAE; usable are topk"),
        ({"k": D_SAE + 1}, f"k={D_SAE + 1} latents per token of only d_sae={D_SAE}"),
        ({"k": None}, "gives k=None"),
        ({"k": True}, "gives k=True"),
        ({"d_in": D_IN + 1}, "expected W_enc of shape"),
        ({"d_sae": 10**30}, "gives d_sae=1000"),
        ({"normalize_activations": "layer_norm"}, "layer_norm"),
        ({"sae_forge": [1]}, "no JSON object"),
        ({"sae_forge": {"provenance": {"planet": "Mars"}}}, "cannot be read"),
    ],
)
def test_settings_that_describe_no_usable_sae_are_refused(sae, tmp_path, changes, said):
    save_sae(tmp_path, sae, PROVENANCE)
    edit_cfg(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=said):
        load_sae(tmp_path)


@pytest.mark.parametrize("content", [b"", b"[1, 2]", b'{"a": NaN}', b'{"k": 1, "k": 2}', b"\xff\xfe", b"[" * 9000])
def test_a_foreign_file_in_place_of_the_settings_is_refused(sae, tmp_path, content):
    save_sae(tmp_path, sae, PROVENANCE)
    (tmp_path / CFG).write_bytes(content)
    with pytest.raises(CheckpointError, match=CFG):
        load_sae(tmp_path)


def replace_weights(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Other weights, vouched for by a fresh hash, so that only what they hold is at fault."""
    save_file(tensors, folder / WEIGHTS)
    cfg = json.loads((folder / CFG).read_text())
    edit_cfg(folder, sae_forge={**cfg["sae_forge"], "weights_sha256": files.file_sha256(folder / WEIGHTS)})


def test_weights_that_are_not_finite_or_not_the_four_are_refused(sae, tmp_path):
    save_sae(tmp_path, sae, PROVENANCE)
    weights = load_file(tmp_path / WEIGHTS)
    replace_weights(tmp_path, {**weights, "b_enc": torch.full((D_SAE,), float("inf"))})
    with pytest.raises(CheckpointError, match="b_enc holds numbers that are not finite"):
        load_sae(tmp_path)
    replace_weights(tmp_path, {**weights, "threshold": torch.zeros(D_SAE)})
    with pytest.raises(CheckpointError, match=r"found .*threshold"):
        load_sae(tmp_path)
