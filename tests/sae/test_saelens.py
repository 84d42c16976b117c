"""Our SAEs in the real SAELens, and its TopK SAEs in ours: the same numbers both ways."""

import json
from typing import Any

import pytest
import torch

from sae_forge.hookpoint import HookPoint
from sae_forge.sae.store import CFG, Provenance, load_sae, save_sae
from sae_forge.sae.topk import TopKSAE

D_IN, D_SAE, K = 24, 72, 6


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def sae_lens() -> Any:
    return pytest.importorskip("sae_lens")


@pytest.fixture
def x() -> torch.Tensor:
    return draw(5, 11, D_IN, seed=0) * 3 + 1


@pytest.fixture
def sae() -> TopKSAE:
    sae = TopKSAE(D_IN, D_SAE, K, seed=3).requires_grad_(False)
    sae.W_enc.mul_(1 + 0.2 * draw(D_IN, D_SAE, seed=4))
    sae.b_enc.copy_(draw(D_SAE, seed=1) * 0.3)
    sae.b_dec.copy_(draw(D_IN, seed=2))
    return sae


def dense(sae: TopKSAE, x: torch.Tensor) -> torch.Tensor:
    return sae.latent_acts(x, torch.arange(sae.d_sae))


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((found - expected).norm() <= 1e-6 * expected.norm())


def test_saelens_loads_our_files_and_computes_the_same(sae_lens, sae, x, tmp_path):
    point = "blocks.3.hook_mlp_out"
    provenance = Provenance(
        model="google/gemma-2-2b", hook_point=point, hf_hook_name="model.layers.3.mlp", ctx_len=128, bos="row"
    )
    save_sae(tmp_path, sae, provenance)
    theirs = sae_lens.SAE.load_from_disk(str(tmp_path), device="cpu")
    assert theirs.cfg.architecture() == "topk"
    assert (theirs.cfg.d_in, theirs.cfg.d_sae, theirs.cfg.k) == (D_IN, D_SAE, K)
    assert theirs.cfg.metadata.hook_name == point
    assert theirs.cfg.metadata.model_name == "google/gemma-2-2b"
    assert theirs.cfg.metadata.prepend_bos is True
    acts = theirs.encode(x)
    assert close(acts, dense(sae, x))
    assert close(theirs.decode(acts), sae(x))


@pytest.mark.parametrize("rescaled", [True, False])
@pytest.mark.parametrize("centred", [True, False])
def test_we_load_what_saelens_saved_whatever_its_conventions(sae_lens, x, tmp_path, rescaled, centred):
    cfg = sae_lens.TopKSAEConfig(
        d_in=D_IN, d_sae=D_SAE, k=K, apply_b_dec_to_input=centred, rescale_acts_by_decoder_norm=rescaled
    )
    cfg.metadata.hook_name, cfg.metadata.model_name = "blocks.2.hook_resid_post", "gpt2"
    theirs = sae_lens.TopKSAE(cfg)
    with torch.no_grad():
        theirs.W_dec.copy_(draw(D_SAE, D_IN, seed=5) * draw(D_SAE, 1, seed=6).abs().add(0.2))
        theirs.W_enc.copy_(draw(D_IN, D_SAE, seed=7))
        theirs.b_enc.copy_(draw(D_SAE, seed=8))
        theirs.b_dec.copy_(draw(D_IN, seed=9))
        theirs.save_model(str(tmp_path))
        ours, provenance = load_sae(tmp_path, expect_model="gpt2", expect_point=HookPoint(2))
        assert provenance.hook_point == "blocks.2.hook_resid_post"
        acts = theirs.encode(x)
        assert int((acts > 0).sum()) > 0
        assert close(ours(x), theirs.decode(acts))
        assert close(dense(ours, x), acts)


@pytest.mark.parametrize("kind", ["Standard", "Gated", "JumpReLU", "AbsTopK"])
def test_every_architecture_of_saelens_gives_the_same_here(sae_lens, kind, x, tmp_path):
    cfg = getattr(sae_lens, f"{kind}SAEConfig")(d_in=D_IN, d_sae=D_SAE, **({"k": K} if "TopK" in kind else {}))
    theirs = getattr(sae_lens, f"{kind}SAE")(cfg)
    with torch.no_grad():
        for place, parameter in enumerate(theirs.parameters()):
            parameter.copy_(draw(*parameter.shape, seed=place))
        theirs.save_model(str(tmp_path))
        ours, _ = load_sae(tmp_path)
        acts, found = theirs.encode(x), ours.latent_acts(x, torch.arange(ours.d_sae))
        found = found[..., :D_SAE] - found[..., D_SAE:] if ours.d_sae == 2 * D_SAE else found
        assert close(found, acts)
        assert torch.equal(found != 0, acts != 0)
        assert close(ours(x), theirs.decode(acts))


def test_nothing_of_ours_is_lost_on_saelens(sae_lens, sae, tmp_path):
    save_sae(tmp_path, sae, Provenance(model="m", hook_point="blocks.0.hook_resid_pre", bos="none"))
    cfg = json.loads((tmp_path / CFG).read_text())
    theirs = sae_lens.SAE.load_from_disk(str(tmp_path), device="cpu").cfg.to_dict()
    for name in ("d_in", "d_sae", "k", "dtype", "apply_b_dec_to_input", "normalize_activations", "architecture"):
        assert theirs[name] == cfg[name], name
    assert theirs["metadata"]["prepend_bos"] is False
