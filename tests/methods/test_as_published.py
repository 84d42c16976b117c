"""What released code does where it differs from this package's defaults, each by the setting that asks for it.

Expected values are worked out token by token as the papers' code does, never by the functions under test.
"""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from sae_forge.errors import ConfigError
from sae_forge.hookpoint import HookPoint
from sae_forge.interventions.apply import applied, edited
from sae_forge.interventions.gates.mean import MeanRate
from sae_forge.interventions.intervention import chosen_tokens
from sae_forge.methods.edits.clamp import clamp
from sae_forge.methods.edits.dsg import dsg
from sae_forge.methods.weights import crisp
from sae_forge.methods.weights.adapters import Suppressed, adapted
from sae_forge.methods.weights.crisp import CRISP
from sae_forge.methods.weights.objectives import divergence, nats_per_token, squared_mean
from sae_forge.methods.weights.recipe import paced
from sae_forge.methods.weights.rmu import RMU
from sae_forge.methods.weights.simnpo import SimNPO
from sae_forge.methods.weights.texts import TextBatch
from sae_forge.models.hooks import capture
from sae_forge.sae.groupmax import GroupMaxSAE
from sae_forge.sae.jumprelu import JumpReLUSAE
from sae_forge.sae.topk import TopKSAE
from sae_forge.settings import parse_value
from sae_forge.study.settings import eval_config

D_IN, D_SAE = 6, 12
TARGETS = (0, 1, 2)
ATTENDED = torch.tensor([[True] * 8, [False, False] + [True] * 6])
SPECIAL = torch.tensor([[1, 0, 0, 1, 0, 0, 0, 1], [0, 0, 1, 0, 1, 0, 0, 0]], dtype=torch.bool)
"""The first attended token of each row, and turn tokens."""
REAL = ATTENDED & ~SPECIAL


@pytest.fixture(scope="module")
def sae() -> JumpReLUSAE:
    draw = torch.Generator().manual_seed(4)
    W = torch.randn(D_IN, D_SAE, generator=draw)
    return JumpReLUSAE(W, torch.zeros(D_SAE), W.T, torch.randn(D_IN, generator=draw), torch.full((D_SAE,), 0.1))


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.randn(2, 8, D_IN, generator=torch.Generator().manual_seed(9))


# ---- which tokens an edit touches ---------------------------------------------------------------


def two_decodes(sae: JumpReLUSAE, x: Tensor, value: float, *, spare_first: bool) -> Tensor:
    """A row of padding in front is no part of the text that released code would be given."""
    out = x.clone()
    for row, mask in enumerate(ATTENDED):
        text = x[row, mask].double()
        pre = text @ sae.W_enc.double() + sae.b_enc.double()
        z = torch.where(pre > sae.threshold.double(), pre, 0.0)
        if spare_first:
            z[0] = 0.0
        error = text - (z @ sae.W_dec.double() + sae.b_dec.double())
        changed = z.clone()
        for latent in TARGETS:
            changed[:, latent] = torch.where(z[:, latent] > 0, value, z[:, latent])
        out[row, mask] = (changed @ sae.W_dec.double() + sae.b_dec.double() + error).float()
    return out


@pytest.mark.parametrize(("tokens", "spare_first"), [("attended", False), ("all_but_first", True)])
def test_a_clamp_on_the_tokens_of_released_code_is_that_codes(sae, x, tokens, spare_first):
    asked = replace(clamp(TARGETS, -25.0), tokens=tokens)
    found = edited(sae, asked, x, REAL, ATTENDED)
    torch.testing.assert_close(found, two_decodes(sae, x, -25.0, spare_first=spare_first), rtol=0, atol=2e-4)
    plain = edited(sae, clamp(TARGETS, -25.0), x, REAL, ATTENDED)
    moved = [int((one != x).any(-1).sum()) for one in (plain, found)]
    hits = ((x @ sae.W_enc > 0.1)[..., list(TARGETS)]).any(-1)
    spared = torch.tensor([[spare_first] + [False] * 7, [False] * 2 + [spare_first] + [False] * 5])
    assert moved == [int((hits & REAL).sum()), int((hits & ATTENDED & ~spared).sum())]
    assert moved[1] > moved[0] == 8, "special tokens are moved too"


def test_tokens_are_masks_of_the_text_and_not_of_the_row():
    assert torch.equal(chosen_tokens("real", REAL, ATTENDED), REAL)
    assert torch.equal(chosen_tokens("attended", REAL, ATTENDED), ATTENDED)
    first = torch.tensor([[1, 0, 0, 0, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0, 0, 0]], dtype=torch.bool)
    assert torch.equal(chosen_tokens("all_but_first", REAL, ATTENDED), ATTENDED & ~first)
    assert torch.equal(chosen_tokens("all_but_first", REAL, ATTENDED, begins=False), ATTENDED)


def test_a_cached_continuation_has_no_first_token(tiny_llama):
    wide = TopKSAE(tiny_llama.d_model, 61, 5, seed=3).requires_grad_(False)
    spare = replace(dsg((1, 2, 7), -4.0, tau=0.2), tokens="all_but_first", counted="attended")
    ids = tiny_llama.tokenizer("The owl flew over the moor.", return_tensors="pt")["input_ids"]
    for asked in (spare, replace(spare, gate=MeanRate(0.2, policy="streaming"))):
        with torch.no_grad(), applied(tiny_llama, wide, HookPoint(1), asked) as log:
            whole = tiny_llama.model(ids).logits
            seen = log.tokens
            first = tiny_llama.model(ids[:, :4], use_cache=True)
            rest = tiny_llama.model(ids[:, 4:], past_key_values=first.past_key_values).logits
        assert seen == ids.shape[1] - 1
        assert log.tokens == 2 * seen
        if asked is not spare:  # `prompt` decides on the first call alone
            torch.testing.assert_close(rest, whole[:, 4:], rtol=0, atol=1e-4)


def test_under_a_bf16_model_the_sae_computes_in_fp32_where_saebenchs_is_bf16(sae, x):
    """About 1 % of firings differ, and with them the tokens that are edited; ours are those of float64."""
    draw = torch.Generator().manual_seed(1)
    many = torch.randn(64, 64, D_IN, generator=draw).bfloat16()
    exact = many.double() @ sae.W_enc.double() + sae.b_enc.double() > sae.threshold.double()
    theirs = many @ sae.W_enc.bfloat16() + sae.b_enc.bfloat16() > sae.threshold.bfloat16()
    pushed = edited(sae, clamp(TARGETS, -500.0), many, torch.ones(64, 64, dtype=torch.bool))
    moved = (pushed != many).any(-1)
    assert pushed.dtype == torch.bfloat16
    assert torch.equal(moved, exact[..., list(TARGETS)].any(-1))
    assert 1e-4 < float((theirs != exact).sum() / exact.sum()) < 0.02
    assert int(moved.sum()) != int(theirs[..., list(TARGETS)].any(-1).sum())


def test_dsgs_share_of_a_row_of_128_is_ours_times_127_of_128():
    """BOS is one of the 128: 26 hits are 0.2031 of the row as DSG counts, its third threshold, and 0.2047 as we do."""
    x = torch.zeros(1, 128, 2)
    x[0, 1:27, 0] = 1.0
    attended = torch.ones(1, 128, dtype=torch.bool)
    real = attended.clone()
    real[0, 0] = False
    coordinates = JumpReLUSAE(torch.eye(2), torch.zeros(2), torch.eye(2), torch.zeros(2), torch.zeros(2))
    for counted, tau, opens in (
        ("real", 0.204, True), ("attended", 0.204, False), ("attended", 0.203, True), ("real", 0.2048, False),
    ):  # fmt: skip
        asked = replace(dsg((0,), -5.0, tau), counted=counted)
        assert bool((edited(coordinates, asked, x, real, attended) != x).any()) is opens, (counted, tau)
    assert (round(26 / 128, 4), round(26 / 127, 4)) == (0.2031, 0.2047)


# ---- the guardrail's share ----------------------------------------------------------------------


def test_the_share_of_hits_is_over_all_positions_where_that_is_asked_for():
    """BOS and a turn token fire as well: 3 of 8 positions as DSG counts, 2 of 6 real tokens as we do."""
    x = torch.zeros(1, 8, 2)
    x[0, [0, 3, 4, 6], 0] = 1.0
    attended = torch.ones(1, 8, dtype=torch.bool)
    real = attended.clone()
    real[0, [0, 3]] = False
    released = replace(dsg((0,), -5.0, 0.36), tokens="all_but_first", counted="attended")
    coordinates = JumpReLUSAE(torch.eye(2), torch.zeros(2), torch.eye(2), torch.zeros(2), torch.zeros(2))
    moved = {
        name: (edited(coordinates, asked, x, real, attended) != x).any(-1).nonzero()[:, 1].tolist()
        for name, asked in {"released": released, "ours": dsg((0,), -5.0, 0.36)}.items()
    }
    assert moved == {"released": [3, 4, 6], "ours": []}
    assert (3 / 8, round(2 / 6, 4)) == (0.375, 0.3333)


# ---- retraining ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mean", "value"),
    [("real", 2084 / 186), ("texts", 11.5), ("open_unlearning", 521.0 * (1 / 63 + 1 / 52 + 1 / 41 + 1 / 30) / 4)],
)
def test_rmu_averages_over_what_is_named(mean, value):
    """Texts of 63, 52, 41 and 30 tokens whose squared distance to the target is 10, 11, 12 and 13 on each token."""
    lengths, squares = (63, 52, 41, 30), (10.0, 11.0, 12.0, 13.0)
    counted = torch.arange(63)[None] < torch.tensor(lengths)[:, None]
    x = torch.tensor(squares).sqrt()[:, None, None].expand(4, 63, 5)
    assert float(squared_mean(x, torch.zeros(5), counted, mean)) == pytest.approx(value, rel=1e-6)
    alike = torch.ones(4, 63, dtype=torch.bool)
    same = [float(squared_mean(x, torch.zeros(5), alike, each)) for each in ("real", "texts", "open_unlearning")]
    assert same == pytest.approx([11.5] * 3)


@pytest.fixture(scope="module")
def batch(tiny_llama) -> TextBatch:
    """Three texts, one with EOS and another text after it, padded on the right."""
    end = tiny_llama.tokenizer.eos_token_id
    texts = [tiny_llama.tokenizer(text)["input_ids"] for text in ("An owl and a mole.", "Mica", "Wind over the river")]
    texts[1] += [end, *tiny_llama.tokenizer("gneiss", add_special_tokens=False)["input_ids"], end]
    longest = max(map(len, texts))
    ids = torch.tensor([text + [tiny_llama.pad_id] * (longest - len(text)) for text in texts])
    return TextBatch(ids, torch.arange(longest)[None] < torch.tensor([len(text) for text in texts])[:, None])


def slow_targets(lm, batch: TextBatch, *, eos: bool) -> list[list[float]]:
    found = []
    for ids, mask in zip(*batch, strict=True):
        row = ids[mask]
        with torch.no_grad():
            table = lm.model(row[None]).logits[0].double().log_softmax(-1)
        wanted = [n for n in range(1, len(row)) if int(row[n]) not in lm.special_ids or (eos and int(row[n]) == 2)]
        found.append([float(table[n - 1, row[n]]) for n in wanted])
    return found


def test_eos_is_a_target_where_that_is_asked_for(tiny_llama, batch):
    assert tiny_llama.tokenizer.eos_token_id == 2
    for eos in (False, True):
        rows = slow_targets(tiny_llama, batch, eos=eos)
        every = [value for row in rows for value in row]
        found = float(nats_per_token(tiny_llama, batch, eos=eos))
        assert found == pytest.approx(-sum(every) / len(every), rel=1e-5)
        # SimNPO's length is that of its targets: the first label, which nothing predicts, is none
        recipe = SimNPO(alpha=0.0, beta=2.0, gamma=1.0, eos=eos)
        margins = torch.tensor([-2.0 * sum(row) / len(row) for row in rows], dtype=torch.float64)
        expected = float(-torch.nn.functional.logsigmoid(margins).mean())
        assert float(recipe.loss(tiny_llama, tiny_llama, cast("Any", None), 0)(batch, batch)) == pytest.approx(expected)
    counts = [sum(map(len, slow_targets(tiny_llama, batch, eos=eos))) for eos in (False, True)]
    assert counts[1] == counts[0] + 2


def test_the_retain_divergence_is_over_targets_and_not_over_all_places(tiny_llama, batch):
    other = replace(tiny_llama, model=_moved(tiny_llama))
    found, theirs, places, total = float(divergence(other, tiny_llama, batch)), 0.0, 0, 0
    for ids, mask in zip(*batch, strict=True):
        row = ids[mask]
        with torch.no_grad():
            p, q = (lm.model(row[None]).logits[0].double().log_softmax(-1) for lm in (tiny_llama, other))
        kl = (p.exp() * (p - q)).sum(-1)
        wanted = [n for n in range(1, len(row)) if int(row[n]) not in tiny_llama.special_ids]
        theirs += sum(float(kl[n - 1]) for n in wanted)
        places, total = places + len(wanted), total + len(ids)
    assert found == pytest.approx(theirs / places, rel=1e-4)
    assert places < total


def _moved(lm) -> Any:
    import copy

    model = copy.deepcopy(lm.model)
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.02 * torch.randn(weight.shape, generator=draw))
    return model


@pytest.mark.parametrize("kind", ["jumprelu", "topk"])
def test_crisp_is_the_loss_of_its_released_code(tiny_llama, batch, kind):
    """Pre-acts of pairs that fired are lifted, then the activation function, then the mean of all that is above 0."""
    width, latents, alpha = 40, (0, 3, 4, 9, 17), 3.0
    draw = torch.Generator().manual_seed(6)
    W = torch.randn(tiny_llama.d_model, width, generator=draw)
    threshold = torch.full((width,), 0.5)
    sae: Any = JumpReLUSAE(W, -0.3 * torch.ones(width), W.T, torch.zeros(tiny_llama.d_model), threshold)
    if kind == "topk":
        sae = TopKSAE.from_weights(W, torch.zeros(width), W.T, torch.zeros(tiny_llama.d_model), 6).requires_grad_(False)
    point, other = HookPoint(1), replace(tiny_llama, model=_moved(tiny_llama))
    recipe = CRISP(suppressed=(Suppressed(point, sae, latents),), alpha=alpha, gamma=0.0)
    x, y = (capture(lm, [point], *batch)[point].double() for lm in (tiny_llama, other))

    def acts(pre: Tensor) -> Tensor:
        if kind == "topk":
            return torch.where(pre >= pre.sort(descending=True).values[5], pre, 0.0).relu()
        return torch.where(pre > 0.5, pre, 0.0)

    def pre_acts(h: Tensor) -> Tensor:
        return h @ sae.W_enc.detach().double() + sae.b_enc.detach().double()

    kept, drifts = [], []
    for row in range(3):
        for place in range(batch.token_ids.shape[1]):
            valid = bool(batch.attention_mask[row, place]) and place > 0
            drifts.append(float(((x[row, place] - y[row, place]) ** 2).mean()) if valid else 0.0)
            if not valid:
                continue
            fired, pre = acts(pre_acts(x[row, place])) > 0, pre_acts(y[row, place])
            lifted = pre.clone()
            for latent in latents:
                if fired[latent]:
                    lifted[latent] += abs(alpha * pre.mean())
            kept += [float(act) for act in acts(lifted)[list(latents)] if act > 0]
    assert len(kept) > 10
    unlearn, retain = sum(kept) / len(kept), sum(drifts) / len(drifts)
    assert float(crisp.unlearning(other, tiny_llama, recipe, batch)) == pytest.approx(unlearn, rel=1e-4)
    assert float(crisp.retaining(other, tiny_llama, recipe, batch)) == pytest.approx(retain, rel=1e-4)
    total = recipe.loss(other, tiny_llama, cast("Any", None), 0)(batch, batch)
    assert float(total) == pytest.approx(0.01 * unlearn + 0.99 * retain, rel=1e-4)
    coherence = recipe.beta * 0.01
    assert (round(1 - recipe.beta, 4), coherence) == (0.01, pytest.approx(0.0099))


def test_crisp_takes_sentences_that_are_given(tiny_llama):
    wide = TopKSAE(tiny_llama.d_model, 16, 2, seed=3).requires_grad_(False)
    given = ("The owl sleeps.", "Granite is a rock of quartz.", "Wind")
    recipe = CRISP(suppressed=(Suppressed(HookPoint(1), wide, (1,)),), fixed=given, batch_size=2)
    sentences = recipe.sentences(tiny_llama, cast("Any", None), 0)
    assert sentences is not None
    first, second, third = (next(sentences) for _ in range(3))
    whole = [row[mask].tolist() for part in (first, second) for row, mask in zip(*part, strict=True)]
    assert whole == [tiny_llama.tokenizer(text)["input_ids"] for text in given]
    assert torch.equal(first.token_ids, third.token_ids), "over and over"
    assert replace(recipe, gamma=0.0).sentences(tiny_llama, cast("Any", None), 0) is None


def test_crisp_adapts_the_layers_that_are_named(tiny_llama):
    wide = TopKSAE(tiny_llama.d_model, 16, 2, seed=3).requires_grad_(False)
    suppressed = (Suppressed(HookPoint(1), wide, (1,)),)
    for named, expected in (((2, 3), {"2", "3"}), (None, {"0", "1"})):
        found = adapted(tiny_llama, suppressed, named)
        assert {one.weight.split(".")[2] for one in found} == expected
        assert len(found) == 7 * len(expected), "all seven projections of each"
    assert parse_value(eval_config(), "crisp_layers", "3-9") == (3, 4, 5, 6, 7, 8, 9)


def test_rmu_takes_the_eps_and_decay_of_transformers_4():
    config = eval_config()(baseline_eps=1e-6, baseline_weight_decay=0.0)
    given = paced(RMU, cast("Any", SimpleNamespace(setting=lambda kind: config)))
    assert (given["eps"], given["weight_decay"]) == (1e-6, 0.0)
    assert (RMU(layer=1).eps, RMU(layer=1).weight_decay) == (1e-8, 0.01)


def test_crisp_needs_pre_acts_to_lift(tiny_llama):
    flat = GroupMaxSAE(torch.zeros(8, 4), torch.zeros(8), torch.zeros(8, 4), torch.zeros(4), 2)
    with pytest.raises(ConfigError, match="a GroupMaxSAE has none to add to; suppress trains"):
        CRISP(suppressed=(Suppressed(HookPoint(1), flat, (1,)),))
