"""The invariants of a family on weights that the world uses; ``make real`` installs them and runs this.

Numbers of a real stream reach tens of thousands where those of a tiny model are about 1, so rounding is measured
against the largest number there is.
"""

from contextlib import ExitStack

import pytest
import torch
from torch import Tensor

from sae_forge.hookpoint import SITES, HookPoint
from sae_forge.interventions.ablation import NegativeScaling
from sae_forge.interventions.apply import Intervention, applied
from sae_forge.models.gguf import packaged
from sae_forge.models.hooks import capture, splice
from sae_forge.models.loading import LanguageModel, load_model
from sae_forge.sae.topk import TopKSAE
from sae_forge.tasks.engines.passes import forward, pad

pytestmark = pytest.mark.real

TEXTS = (
    "The capital of France is Paris, and the capital of Italy is Rome; the river that runs through Rome is the Tiber.",
    "Granite is a rock of quartz, feldspar and mica that cools slowly",
    "In 1969 two men",
)
RELATIVE = 2e-5
"""Largest difference to be owed to rounding, as a share of the largest number of its kind."""


@pytest.fixture(scope="module", params=list(packaged.MODELS))
def lm(request) -> LanguageModel:
    if (why := packaged.missing_of(request.param)) is not None:
        pytest.skip(f"{why}; then: make real")
    return load_model(request.param, device="cpu")


def places(lm: LanguageModel) -> list[HookPoint]:
    return [HookPoint(layer, site) for layer in (0, lm.n_layers // 2, lm.n_layers - 1) for site in SITES]


def batch(lm: LanguageModel, side: str) -> tuple[Tensor, Tensor]:
    return pad([lm.tokenizer(text)["input_ids"] for text in TEXTS], lm.pad_id, left=side == "left")


def logits(lm: LanguageModel, token_ids: Tensor, mask: Tensor, **more) -> Tensor:
    with torch.inference_mode():
        return forward(lm, token_ids, mask, **more).logits


def assert_near(found: Tensor, expected: Tensor, times: float = 1) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=times * RELATIVE * float(expected.abs().max()))


def test_the_parts_of_a_layer_add_up(lm):
    token_ids, mask = batch(lm, "left")
    taken = capture(lm, places(lm), token_ids, mask)
    for layer in (0, lm.n_layers // 2, lm.n_layers - 1):
        pre, attn, mlp, post = (
            taken[HookPoint(layer, site)][mask.bool()] for site in ("resid_pre", "attn_out", "mlp_out", "resid_post")
        )
        assert_near(pre + attn + mlp, post)


def test_a_pass_cut_short_is_the_full_pass_to_the_bit(lm):
    token_ids, mask = batch(lm, "left")
    whole = {}
    with ExitStack() as everywhere:
        for point in places(lm):
            everywhere.enter_context(splice(lm, point, lambda x, real, point=point: whole.setdefault(point, x)))
        logits(lm, token_ids, mask)
    for point in places(lm):
        assert torch.equal(capture(lm, [point], token_ids, mask)[point], whole[point]), str(point)


def test_an_untouched_splice_leaves_every_bit(lm):
    token_ids, mask = batch(lm, "left")
    plain = logits(lm, token_ids, mask)
    with ExitStack() as everywhere:
        for point in places(lm):
            everywhere.enter_context(splice(lm, point, lambda x, real: x.clone()))
        assert torch.equal(logits(lm, token_ids, mask), plain)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_row_is_the_same_alone_and_padded(lm, side):
    token_ids, mask = batch(lm, side)
    together = logits(lm, token_ids, mask)
    for row in range(len(TEXTS)):
        ids = token_ids[row : row + 1, mask[row].bool()]
        assert_near(together[row, mask[row].bool()], logits(lm, ids, torch.ones_like(ids))[0])


def test_cached_generation_with_an_edit_is_one_full_pass_with_it(lm):
    torch.manual_seed(0)
    point, sae = HookPoint(lm.n_layers // 2), TopKSAE(lm.d_model, 256, 16)
    edit = Intervention("scale", tuple(range(64)), NegativeScaling(-3.0))
    ids = torch.tensor([lm.tokenizer(TEXTS[0])["input_ids"]])
    cut = ids.shape[1] - 8
    with applied(lm, sae, point, edit) as log, torch.inference_mode():
        output = forward(lm, ids[:, :cut], torch.ones_like(ids[:, :cut]), use_cache=True)
        found = [output.logits[:, -1]]
        for at in range(cut, ids.shape[1]):
            mask = torch.ones_like(ids[:, : at + 1])
            output = forward(lm, ids[:, at : at + 1], mask, cache=output.past_key_values)
            found.append(output.logits[:, -1])
        full = forward(lm, ids, torch.ones_like(ids)).logits
        assert log.edited > 0
    assert_near(torch.stack(found, 1), full[:, cut - 1 :], times=5)
    assert (full - logits(lm, ids, torch.ones_like(ids))).abs().max() > 0.01  # the edit does something
