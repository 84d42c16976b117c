"""Edits: what they promise on paper, and that a live model keeps every bit they do not mean to change."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizer import TEXT
from torch import Tensor

from sae_forge.errors import CheckpointError, ConfigError
from sae_forge.hookpoint import HookPoint
from sae_forge.interventions.ablation import NegativeScaling, ZeroAblation
from sae_forge.interventions.apply import EditLog, Intervention, applied, delta, edited
from sae_forge.interventions.controls import Control, RandomDirections, RandomPlaces
from sae_forge.interventions.protocol import AlongRows, LatentEdit, ResidualEdit, RowEdit
from sae_forge.interventions.steering import RemoveProjection
from sae_forge.models.hooks import capture
from sae_forge.models.loading import LanguageModel
from sae_forge.models.tokens import real_token_mask
from sae_forge.sae.topk import TopKSAE

POINT = HookPoint(1)
D_IN, D_SAE, K = 56, 113, 7
PROMPTS = (TEXT[0][:24], "Granite", TEXT[2][:57], "mica, mica!")
EDITS = [
    NegativeScaling(-3.0),
    ZeroAblation(),
    RandomDirections(NegativeScaling(-3.0), 5),
    RandomDirections(ZeroAblation(), 5, "latents"),
]


@pytest.fixture(scope="module")
def sae() -> TopKSAE:
    """A random SAE whose decoder rows are no unit vectors, as after folding an input scale in."""
    sae = TopKSAE(D_IN, D_SAE, K, seed=3).requires_grad_(False)
    sae.W_dec.mul_(torch.linspace(0.5, 2, D_SAE)[:, None])
    sae.b_dec.normal_(generator=torch.Generator().manual_seed(0))
    return sae


def tokens(lm: LanguageModel, side: str = "right") -> tuple[Tensor, Tensor]:
    batch = lm.tokenizer(list(PROMPTS), padding=True, padding_side=side, return_tensors="pt")
    return batch["input_ids"], batch["attention_mask"]


def activations(lm: LanguageModel, side: str = "right") -> tuple[Tensor, Tensor]:
    """The activation of the prompts at POINT, and their real tokens."""
    token_ids, mask = tokens(lm, side)
    return capture(lm, [POINT], token_ids, mask)[POINT], real_token_mask(token_ids, mask, lm.special_ids)


def sometimes_firing(lm: LanguageModel, sae: TopKSAE, n: int = 5) -> tuple[int, ...]:
    """Latents that fire on some of the real tokens, together on fewer than all of them."""
    x, real = activations(lm)
    fires = sae.latent_acts(x, torch.arange(D_SAE))[real] > 0
    count = fires.sum(0)
    order = sorted((index for index in range(D_SAE) if count[index]), key=lambda index: int(count[index]))
    chosen = tuple(order[:n])
    share = fires[:, list(chosen)].any(1).float().mean()
    assert 0 < share < 1
    return chosen


def bits(x: Tensor) -> Tensor:
    """The bit pattern, so that 0.0 and -0.0 differ and NaN equals itself."""
    return x.contiguous().view({4: torch.int32, 8: torch.int64, 2: torch.int16}[x.element_size()])


def made_up(seed: int, shape: tuple[int, ...] = (3, 5, D_IN), dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# ---- edits of acts ------------------------------------------------------------------------------


@given(st.integers(0, 2**32), st.floats(-20, 20))
@settings(max_examples=25, deadline=None)
def test_scaling_touches_only_what_fires(seed, scale):
    acts = made_up(seed, (2, 3, 4)).relu()
    after = NegativeScaling(scale).edit(acts)
    assert torch.equal(bits(after[acts == 0]), bits(acts[acts == 0]))
    torch.testing.assert_close(after, scale * acts, rtol=0, atol=0, equal_nan=True)


def test_scaling_by_one_is_identity_and_by_zero_is_ablation():
    acts = made_up(0, (2, 3, 4)).relu()
    assert torch.equal(bits(NegativeScaling(1.0).edit(acts)), bits(acts))
    assert torch.equal(NegativeScaling(0.0).edit(acts), ZeroAblation().edit(acts))
    assert not ZeroAblation().edit(acts).any()


def test_edits_are_values_that_follow_the_protocol():
    assert all(isinstance(edit, LatentEdit) for edit in EDITS[:2])
    assert isinstance(RemoveProjection(), RowEdit)
    projection = RemoveProjection().bind(torch.eye(5), torch.zeros(5))
    assert isinstance(projection, ResidualEdit)
    assert isinstance(projection, AlongRows)
    assert isinstance(RandomPlaces(0), Control)
    assert NegativeScaling(-3) == NegativeScaling(-3)
    assert len({NegativeScaling(-3), NegativeScaling(-3), ZeroAblation()}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        NegativeScaling().scale = 0  # pyright: ignore[reportAttributeAccessIssue]


# ---- the difference -----------------------------------------------------------------------------


@pytest.mark.parametrize("edit", EDITS[:2])
def test_difference_equals_decoding_the_edited_latents_and_adding_the_error_back(edit):
    sae = TopKSAE(D_IN, D_SAE, K, seed=3).double().requires_grad_(False)
    x = made_up(1, dtype=torch.float64)
    latents = tuple(range(0, D_SAE, 3))
    z = sae.encode(x)
    dense = torch.zeros(*x.shape[:-1], D_SAE, dtype=torch.float64).scatter(-1, z.indices, z.values)
    after = dense.clone()
    after[..., list(latents)] = edit.edit(dense[..., list(latents)])
    error = x - (dense @ sae.W_dec + sae.b_dec)
    expected = (after @ sae.W_dec + sae.b_dec) + error
    result = edited(sae, Intervention("test", latents, edit), x, torch.ones(3, 5, dtype=torch.bool))
    assert not torch.allclose(result, x)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_untouched_in_untouched_out(sae, edit, dtype):
    """Negative zeros, NaN in padding, and tokens on which no targeted latent fires all keep their bits."""
    x = made_up(2, (4, 9, D_IN), dtype)
    x[0, 0, :10] = -0.0
    x[:, -1] = float("nan")
    real = torch.ones(4, 9, dtype=torch.bool)
    real[:, -1] = real[1, :3] = False
    intervention = Intervention("test", (3, 50, 112), edit)
    fires = (sae.latent_acts(x.float().nan_to_num(), torch.tensor(intervention.latents)) > 0).any(-1)
    kept = ~(fires & real)
    assert kept[real].any()
    assert not kept.all()
    result = edited(sae, intervention, x, real)
    assert result.dtype == dtype
    assert torch.equal(bits(result[kept]), bits(x[kept]))
    assert (result[~kept] != x[~kept]).any(-1).all()
    assert not delta(sae, intervention, x, real)[kept].any()


def test_scaling_by_one_changes_no_bit(sae):
    x = made_up(3)
    real = torch.ones(3, 5, dtype=torch.bool)
    for edit in (NegativeScaling(1.0), RandomDirections(NegativeScaling(1.0), 0)):
        result = edited(sae, Intervention("same", tuple(range(D_SAE // 2)), edit), x, real)
        assert torch.equal(bits(result), bits(x))


def test_scaling_subtracts_so_many_times_what_the_latents_wrote(sae):
    x, real, latents = made_up(4), torch.ones(3, 5, dtype=torch.bool), tuple(range(40))
    acts = sae.latent_acts(x, torch.tensor(latents))
    written = acts @ sae.W_dec[:40]
    difference = delta(sae, Intervention("scale", latents, NegativeScaling(-3.0)), x, real)
    torch.testing.assert_close(difference, -4 * written, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["isotropic", "latents"])
def test_control_has_the_norm_of_the_edit_on_every_token(sae, kind):
    x, real, latents = made_up(5, (4, 33, D_IN)), torch.ones(4, 33, dtype=torch.bool), tuple(range(0, 60, 2))
    edit = NegativeScaling(-3.0)
    real_delta = delta(sae, Intervention("scale", latents, edit), x, real)
    norms = real_delta.norm(dim=-1)
    seen = []
    for seed in range(3):
        control = delta(sae, Intervention("random", latents, RandomDirections(edit, seed, kind)), x, real)
        torch.testing.assert_close(control.norm(dim=-1), norms, rtol=1e-6, atol=0)
        again = delta(sae, Intervention("random", latents, RandomDirections(edit, seed, kind)), x, real)
        assert torch.equal(control, again)
        moved = norms > 0
        cosine = torch.cosine_similarity(control[moved], real_delta[moved], dim=-1)
        assert cosine.abs().mean() < 0.5
        assert not any(torch.allclose(control, other) for other in seen)
        seen.append(control)


def test_control_of_one_latent_runs_along_one_drawn_direction():
    sae = TopKSAE(D_IN, D_SAE, D_SAE, seed=1).requires_grad_(False)
    x, real = made_up(6), torch.ones(3, 5, dtype=torch.bool)
    control = RandomDirections(ZeroAblation(), 9, "latents", alive=(4, 17))
    difference = delta(sae, Intervention("random", (17,), control), x, real)
    acts = sae.latent_acts(x, torch.tensor([17]))
    torch.testing.assert_close(difference, -acts * sae.W_dec[4], rtol=1e-5, atol=1e-6)


def test_controls_that_cannot_be_drawn_are_refused(sae):
    x, real = made_up(7), torch.ones(3, 5, dtype=torch.bool)
    control = RandomDirections(ZeroAblation(), 0, "latents")
    with pytest.raises(ConfigError, match=rf"needs {D_SAE} other latents and has 0"):
        delta(sae, Intervention("random", tuple(range(D_SAE)), control), x, real)
    with pytest.raises(ConfigError, match=f"latent {D_SAE} is beyond"):
        delta(sae, Intervention("zero", (0, D_SAE), ZeroAblation()), x, real)
    for latents in ((), (1, 1), (-1, 2)):
        with pytest.raises(ConfigError, match="distinct latents"):
            Intervention("zero", latents, ZeroAblation())
    with pytest.raises(ConfigError, match="finite"):
        NegativeScaling(float("nan"))


# ---- on a live model ----------------------------------------------------------------------------


def logits(lm: LanguageModel, side: str = "right") -> Tensor:
    token_ids, mask = tokens(lm, side)
    with torch.no_grad():
        return lm.model(token_ids, attention_mask=mask).logits


def test_an_edit_that_changes_nothing_leaves_the_logits_bit_identical(tiny_model, sae):
    latents = sometimes_firing(tiny_model, sae)
    plain = logits(tiny_model)
    with applied(tiny_model, sae, POINT, Intervention("same", latents, NegativeScaling(1.0))) as log:
        same = logits(tiny_model)
    assert torch.equal(bits(plain), bits(same))
    assert (log.edited, log.share) == (0, 0.0)
    assert log.tokens == int(activations(tiny_model)[1].sum())


@pytest.mark.parametrize("edit", EDITS)
def test_logits_are_bit_identical_up_to_the_first_edited_token(tiny_model, sae, edit):
    latents = sometimes_firing(tiny_model, sae)
    x, real = activations(tiny_model)
    touched = (sae.latent_acts(x, torch.tensor(latents)) > 0).any(-1) & real
    before_any = ~touched.cummax(dim=1).values
    plain = logits(tiny_model)
    with applied(tiny_model, sae, POINT, Intervention("test", latents, edit)) as log:
        after = logits(tiny_model)
    assert torch.equal(bits(plain[before_any]), bits(after[before_any]))
    assert (plain[touched] != after[touched]).any(-1).all()
    assert (log.tokens, log.edited) == (int(real.sum()), int(touched.sum()))
    assert torch.equal(bits(plain), bits(logits(tiny_model)))


@pytest.mark.parametrize("edit", EDITS)
def test_padding_on_either_side_moves_no_edit(tiny_model, sae, edit):
    latents = sometimes_firing(tiny_model, sae)
    found = {}
    for side in ("left", "right"):
        token_ids, mask = tokens(tiny_model, side)
        with applied(tiny_model, sae, POINT, Intervention("test", latents, edit)) as log:
            x = capture(tiny_model, [POINT], token_ids, mask)[POINT]
        found[side] = (x[mask.bool()], log.edited)
        plain, real = activations(tiny_model, side)
        assert torch.equal(bits(x[~real]), bits(plain[~real]))
    torch.testing.assert_close(found["left"][0], found["right"][0], rtol=1e-4, atol=1e-4)
    assert found["left"][1] == found["right"][1] > 0


def test_a_prompt_alone_and_in_a_padded_batch_is_edited_alike(tiny_model, sae):
    latents = sometimes_firing(tiny_model, sae)
    intervention = Intervention("scale", latents, NegativeScaling(-3.0))
    token_ids, mask = tokens(tiny_model, "left")
    alone = EditLog()
    with applied(tiny_model, sae, POINT, intervention) as together:
        tiny_model.model(token_ids, attention_mask=mask)
    for row, kept in zip(token_ids, mask.bool(), strict=True):
        with applied(tiny_model, sae, POINT, intervention) as log:
            tiny_model.model(row[kept][None])
        alone.tokens += log.tokens
        alone.edited += log.edited
    assert (together.tokens, together.edited) == (alone.tokens, alone.edited)


@pytest.mark.slow
@pytest.mark.parametrize("edit", EDITS)
def test_cached_generation_equals_recomputing_everything(tiny_model, sae, edit):
    latents = sometimes_firing(tiny_model, sae)
    token_ids, mask = tokens(tiny_model, "left")
    greedy = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with torch.no_grad(), applied(tiny_model, sae, POINT, Intervention("test", latents, edit)) as log:
        cached = tiny_model.model.generate(token_ids, **greedy)
        seen_cached = dataclasses.replace(log)
        full = tiny_model.model.generate(token_ids, **greedy, use_cache=False)
    assert torch.equal(cached, full)
    real = real_token_mask(cached[:, :-1], torch.cat([mask, torch.ones(4, 11)], 1).long(), tiny_model.special_ids)
    assert seen_cached.tokens == int(real.sum())
    assert log.tokens > 5 * seen_cached.tokens
    assert 0 < seen_cached.edited < seen_cached.tokens


def test_nothing_is_left_after_an_exception(tiny_model, sae):
    plain = logits(tiny_model)
    with (
        pytest.raises(KeyboardInterrupt),
        applied(tiny_model, sae, POINT, Intervention("zero", sometimes_firing(tiny_model, sae), ZeroAblation())),
    ):
        assert not torch.equal(logits(tiny_model), plain)
        raise KeyboardInterrupt
    assert torch.equal(bits(logits(tiny_model)), bits(plain))


def test_an_sae_of_another_width_is_refused(tiny_llama):
    intervention = Intervention("zero", (0,), ZeroAblation())
    narrow = TopKSAE(40, 80, 4)
    with pytest.raises(CheckpointError, match="40 wide"), applied(tiny_llama, narrow, POINT, intervention):
        pass


def test_edits_of_two_layers_nest(tiny_model, sae):
    latents = sometimes_firing(tiny_model, sae)
    low, high = Intervention("zero", latents, ZeroAblation()), Intervention("scale", latents, NegativeScaling(-3.0))
    with applied(tiny_model, sae, POINT, low), applied(tiny_model, sae, HookPoint(2), high):
        one_way = logits(tiny_model)
    with applied(tiny_model, sae, HookPoint(2), high), applied(tiny_model, sae, POINT, low):
        other_way = logits(tiny_model)
    assert torch.equal(bits(one_way), bits(other_way))
    with applied(tiny_model, sae, POINT, low):
        assert not torch.equal(one_way, logits(tiny_model))
