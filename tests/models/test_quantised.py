"""What holds of a model in 4 and 8 bits on a CPU, with bitsandbytes itself; ``make real`` installs it and runs this."""

import pytest
import torch
from test_hooks import PROMPTS, tokens

from sae_forge.hookpoint import SITES, HookPoint
from sae_forge.models.hooks import capture, splice
from sae_forge.models.loading import LanguageModel, load_model
from sae_forge.tasks.engines.passes import forward

pytestmark = pytest.mark.real


@pytest.fixture(scope="module", params=["4bit", "8bit"])
def lm(request, model_folders) -> LanguageModel:
    pytest.importorskip("bitsandbytes", reason="needs the extra quant: make real, or pip install sae-forge[quant]")
    return load_model(str(model_folders["llama"]), device="cpu", quantize=request.param)


def test_it_is_rounded_computes_in_float32_and_takes_no_gradient(lm, model_folders, capfd):
    whole = load_model(str(model_folders["llama"]), device="cpu")
    point, (token_ids, mask) = HookPoint(2), tokens(lm)
    x, exact = (capture(one, [point], token_ids, mask)[point][mask.bool()] for one in (lm, whole))
    assert x.dtype == torch.float32
    assert 0 < (x - exact).pow(2).mean() / exact.var() < {"4bit": 0.3, "8bit": 0.05}[lm.quantize]
    assert not any(parameter.requires_grad for parameter in lm.model.parameters()), "norms and embeddings either"
    assert lm.fingerprint()["weights"] == whole.fingerprint()["weights"], "the same model, loaded otherwise"
    assert lm.precision == {"4bit": "4-bit (nf4)", "8bit": "8-bit (int8)"}[lm.quantize]
    assert capfd.readouterr() == ("", "")


def test_a_row_hangs_on_no_other_and_not_on_its_padding(lm):
    point = HookPoint(lm.n_layers - 1)
    for side in ("left", "right"):
        token_ids, mask = tokens(lm, side)
        together = capture(lm, [point], token_ids, mask)[point]
        for row in range(len(PROMPTS)):
            ids = token_ids[row : row + 1, mask[row].bool()]
            alone = capture(lm, [point], ids, torch.ones_like(ids))[point]
            torch.testing.assert_close(together[row, mask[row].bool()], alone[0], rtol=0, atol=2e-2)
        other = capture(lm, [point], torch.where(mask.bool(), token_ids, 9), mask)[point]
        torch.testing.assert_close(other[mask.bool()], together[mask.bool()], rtol=0, atol=1e-5)


def test_sums_cut_passes_and_untouched_splices_hold_as_in_full(lm):
    token_ids, mask = tokens(lm, "left")
    points = [HookPoint(layer, site) for layer in range(lm.n_layers) for site in SITES]
    taken = capture(lm, points, token_ids, mask)
    for layer in range(lm.n_layers):
        pre, attn, mlp, post = (
            taken[HookPoint(layer, site)] for site in ("resid_pre", "attn_out", "mlp_out", "resid_post")
        )
        torch.testing.assert_close(pre + attn + mlp, post, rtol=1e-5, atol=1e-5)
    with torch.inference_mode():
        plain = forward(lm, token_ids, mask).logits
        with splice(lm, HookPoint(1), lambda x, real: x.clone()):
            assert torch.equal(forward(lm, token_ids, mask).logits, plain)
    assert torch.equal(capture(lm, [HookPoint(1)], token_ids, mask)[HookPoint(1)], taken[HookPoint(1)])
