"""Every published edit against a slow reading of its formula: decode, edit, decode, add the error back, by token."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from tiny_tokenizer import TEXT
from torch import Tensor

from sae_forge.errors import ConfigError, DataError
from sae_forge.hookpoint import HookPoint
from sae_forge.interventions.apply import EditLog, Intervention, applied, delta, edited
from sae_forge.interventions.clamping import ClampFiring, MeanAblation, SetTo, Split
from sae_forge.interventions.gates.all import AllFire
from sae_forge.interventions.gates.any import AnyFires
from sae_forge.interventions.gates.mean import MeanRate
from sae_forge.interventions.steering import AddConstant, RemoveProjection, SetProjection
from sae_forge.interventions.values import median_norm, relative_to_norm, relative_to_peaks
from sae_forge.methods.edits.clamp import clamp, clamp_max
from sae_forge.methods.edits.clamp_prime import clamp_prime
from sae_forge.methods.edits.conditional_clamp import conditional_clamp
from sae_forge.methods.edits.dsg import dsg
from sae_forge.methods.edits.mean_ablate import mean_ablate
from sae_forge.methods.edits.project import project
from sae_forge.methods.edits.refusal_clamp import clamp_and_refusal, refusal_clamp
from sae_forge.methods.edits.scale import scale, scale_anthropic
from sae_forge.methods.edits.steer import steer
from sae_forge.methods.edits.zero import zero
from sae_forge.models.loading import LanguageModel
from sae_forge.sae.topk import TopKSAE

D_IN, D_SAE, K = 24, 61, 5
BATCH, SEQ = 4, 11
S = (7, 3, 22, 40, 11)
REFUSAL = 50
MEANS = (0.1, 0.0, -0.3, 0.25, 1.5)
VALUES = (-1.0, 2.0, 0.0, -4.0, -5.0)
PEAKS = (2.0, 0.5, 1.0, 3.0, 0.25)
Rule = Callable[[list[list[float]], list[bool]], None]
"""Edits the dense acts of one text in place, given which of its tokens are real."""


@pytest.fixture(scope="module")
def sae() -> TopKSAE:
    sae = TopKSAE(D_IN, D_SAE, K, seed=3).double().requires_grad_(False)
    sae.W_dec.mul_(torch.linspace(0.5, 2, D_SAE)[:, None])
    sae.b_dec.normal_(generator=torch.Generator().manual_seed(0))
    return sae


@pytest.fixture(scope="module")
def x(sae: TopKSAE) -> Tensor:
    """Texts of rising density: the first never fires a latent of S, the last on most tokens; some fire several."""
    drawn = torch.randn(BATCH, SEQ, D_IN, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    pull = sae.W_enc[:, list(S)]
    hot = (
        torch.rand(BATCH, SEQ, len(S), generator=torch.Generator().manual_seed(2))
        < torch.tensor([0, 0.05, 0.1, 0.3])[:, None, None]
    )
    x = drawn + 3 * hot.double() @ pull.T
    fires = sae.latent_acts(x, torch.tensor(S)) > 0
    x[0] = torch.where(fires[0].any(-1, keepdim=True), sae.W_dec[55] * 5, x[0])
    fires = sae.latent_acts(x, torch.tensor(S)) > 0
    assert not fires[0].any()
    assert (fires.sum(-1) > 1).any()
    return x


REAL = torch.ones(BATCH, SEQ, dtype=torch.bool)
REAL[:, 0] = REAL[1, 8:] = REAL[2, 5] = REAL[3, :3] = False


def dense(sae: TopKSAE, x: Tensor) -> Tensor:
    acts = sae.encode(x)
    return torch.zeros(*x.shape[:-1], D_SAE, dtype=torch.float64).scatter(-1, acts.indices, acts.values)


def slowly(sae: TopKSAE, x: Tensor, rule: Rule) -> Tensor:
    """Decode the edited acts and add the error, where the token is real."""
    z = dense(sae, x)
    error = x - (z @ sae.W_dec + sae.b_dec)
    after = []
    for text, real in zip(z.tolist(), REAL.tolist(), strict=True):
        new = [list(token) for token in text]
        rule(new, real)
        after.append(new)
    result = (torch.tensor(after, dtype=torch.float64) @ sae.W_dec + sae.b_dec) + error
    return torch.where(REAL[..., None], result, x)


def each(change: Callable[[float, int], float], latents: tuple[int, ...] = S) -> Rule:
    """Every latent of every token by itself; ``change(z, place in latents)``."""

    def rule(text: list[list[float]], real: list[bool]) -> None:
        for token in text:
            for place, latent in enumerate(latents):
                token[latent] = change(token[latent], place)

    return rule


def on_hot(theta: float, write: Callable[[list[float]], None], tau: float = -1.0) -> Rule:
    """Something done once to each token on which any of S exceeds theta, in texts with enough of them."""

    def rule(text: list[list[float]], real: list[bool]) -> None:
        hot = [any(token[latent] > theta for latent in S) for token in text]
        counted = [is_hot for is_hot, is_real in zip(hot, real, strict=True) if is_real]
        if sum(counted) / len(counted) > tau:
            for token, is_hot in zip(text, hot, strict=True):
                if is_hot:
                    write(token)

    return rule


def refuse(token: list[float]) -> None:
    token[REFUSAL] = -6.5


def set_all(token: list[float]) -> None:
    for latent in S:
        token[latent] = -2.5


def clamp_then_refuse(token: list[float]) -> None:
    for latent in S:
        if token[latent] > 0.4:
            token[latent] = -1.25
    refuse(token)


PUBLISHED: dict[str, tuple[Intervention, Rule]] = {
    "scale": (scale(S, -3.0), each(lambda z, _: -3.0 * z if z > 0 else 0.0)),
    "scale_anthropic": (scale_anthropic(S, 4.5), each(lambda z, _: (1 - 4.5) * z)),
    "zero": (zero(S), each(lambda z, _: 0.0)),
    "clamp": (clamp(S, -20.0), each(lambda z, _: -20.0 if z > 0 else z)),
    "clamp per latent": (clamp(S, VALUES), each(lambda z, j: VALUES[j] if z > 0 else z)),
    "clamp_max": (clamp_max(S, 3.0, PEAKS), each(lambda z, j: -3.0 * PEAKS[j] if z > 0 else z)),
    "clamp_prime": (clamp_prime(S), each(lambda z, _: -300.0 if z > 0 else z)),
    "conditional_clamp": (conditional_clamp(S, -7.0, 0.6), each(lambda z, _: -7.0 if z > 0.6 else z)),
    "refusal_clamp": (refusal_clamp(S, REFUSAL, -6.5, 0.4), on_hot(0.4, refuse)),
    "clamp_and_refusal": (clamp_and_refusal(S, REFUSAL, -1.25, -6.5, 0.4), on_hot(0.4, clamp_then_refuse)),
    "dsg": (dsg(S, -2.5, 0.3), on_hot(0.0, set_all, 0.3)),
    "mean_ablate": (mean_ablate(S, MEANS), each(lambda z, j: MEANS[j])),
    "steer": (steer(S, 0.75), each(lambda z, _: z + 0.75)),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_edit_is_its_formula(sae, x, name):
    intervention, rule = PUBLISHED[name]
    result = edited(sae, intervention, x, REAL)
    expected = slowly(sae, x, rule)
    assert not torch.equal(expected[REAL], x[REAL])
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-9)
    assert torch.equal(result[~REAL], x[~REAL])


@pytest.mark.parametrize("name", PUBLISHED)
def test_without_the_error_a_real_token_is_what_its_edited_acts_decode_to(sae, x, name):
    intervention, rule = PUBLISHED[name]
    z = dense(sae, x)
    error = x - (z @ sae.W_dec + sae.b_dec)
    expected = slowly(sae, x, rule) - torch.where(REAL[..., None], error, 0.0)
    result = edited(sae, replace(intervention, keep_error=False), x, REAL)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-9)
    assert torch.equal(result[~REAL], x[~REAL])


@pytest.mark.parametrize("strength", [1.0, 0.4, 2.0])
def test_projections_are_removed_one_after_the_other(sae, x, strength):
    result = edited(sae, project(S, strength), x, REAL)
    expected = x.clone()
    for row, token in REAL.nonzero().tolist():
        work = x[row, token] - sae.b_dec
        for latent in S:
            unit = sae.W_dec[latent] / sae.W_dec[latent].norm()
            along = float(work @ unit)
            expected[row, token] -= strength * along * unit
            work = work - along * unit
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-9)
    if strength == 1.0:
        last = sae.W_dec[S[-1]]
        assert ((result - sae.b_dec) @ last)[REAL].abs().max() < 1e-9


def test_a_projection_can_be_set(sae, x):
    intervention = Intervention("set", (9,), SetProjection(4.0))
    result = edited(sae, intervention, x, REAL)
    unit = sae.W_dec[9] / sae.W_dec[9].norm()
    torch.testing.assert_close(((result - sae.b_dec) @ unit)[REAL], torch.full((int(REAL.sum()),), 4.0).double())
    across = (result - x) - ((result - x) @ unit)[..., None] * unit
    assert across.abs().max() < 1e-9


def test_scaling_and_clamping_that_change_nothing_are_the_identity(sae, x):
    assert torch.equal(edited(sae, scale(S, 1.0), x, REAL), x)
    never = tuple(latent for latent in range(D_SAE) if not (dense(sae, x)[..., latent] > 0).any())
    assert never
    assert torch.equal(edited(sae, clamp(never, -100.0), x, REAL), x)
    zeroed = edited(sae, zero(S), x, REAL)
    torch.testing.assert_close(edited(sae, scale(S, 0.0), x, REAL), zeroed, rtol=0, atol=0)


def test_dsg_touches_hot_tokens_alone_with_all_latents(sae, x):
    hot = (sae.latent_acts(x, torch.tensor(S)) > 0).any(-1) & REAL
    moved = delta(sae, dsg(S, -2.5, -1.0), x, REAL)
    assert torch.equal((moved != 0).any(-1), hot)
    acts = sae.latent_acts(x, torch.tensor(S))
    torch.testing.assert_close(moved[hot], (-2.5 - acts[hot]) @ sae.W_dec[list(S)], rtol=0, atol=1e-9)
    assert torch.equal(edited(sae, dsg(S, -2.5, 1.0), x, REAL), x)
    one = S[0]
    torch.testing.assert_close(edited(sae, dsg((one,), -2.5, -1.0), x, REAL), edited(sae, clamp((one,), -2.5), x, REAL))


def test_refusal_is_written_once_however_many_latents_fire(sae, x):
    acts, several = dense(sae, x), (sae.latent_acts(x, torch.tensor(S)) > 0.1).sum(-1) > 1
    assert (several & REAL).any()
    moved = delta(sae, refusal_clamp(S, REFUSAL, -6.5, 0.1), x, REAL)
    where = several & REAL
    torch.testing.assert_close(moved[where], (-6.5 - acts[..., REFUSAL, None])[where] * sae.W_dec[REFUSAL])


def test_the_refusal_latent_may_be_watched_too(sae, x):
    watched = (*S, REFUSAL)
    moved = delta(sae, refusal_clamp(watched, REFUSAL, 2.0, 0.0), x, REAL)
    hot = (dense(sae, x)[..., list(watched)] > 0).any(-1) & REAL
    assert torch.equal((moved != 0).any(-1), hot)


def test_all_fire_opens_where_every_latent_does(sae, x):
    pair = S[:2]
    fires = (sae.latent_acts(x, torch.tensor(pair)) > 0).all(-1) & REAL
    moved = delta(sae, replace(steer(pair, 1.0), gate=AllFire()), x, REAL)
    assert torch.equal((moved != 0).any(-1), fires)


def test_special_tokens_are_edited_only_if_asked_for(sae, x):
    attended = torch.ones_like(REAL)
    attended[1, 8:] = False
    every = replace(steer(S, 1.0), tokens="attended")
    assert torch.equal((delta(sae, every, x, REAL, attended) != 0).any(-1), attended)
    assert torch.equal((delta(sae, steer(S, 1.0), x, REAL, attended) != 0).any(-1), REAL)


class Shift:
    """A ``ResidualEdit`` that asks no latent."""

    def delta(self, x: Tensor, acts: Tensor) -> Tensor:
        assert acts.shape[-1] == 0
        return torch.ones_like(x)


def test_an_edit_of_the_residual_needs_no_latents(sae, x):
    result = edited(sae, Intervention("shift", (), Shift()), x, REAL)
    torch.testing.assert_close(result, x + REAL[..., None].double())


# ---- values -------------------------------------------------------------------------------------


def test_a_relative_value_moves_an_activation_by_that_many_norms(sae, x):
    norm = median_norm(x[REAL])
    assert norm == pytest.approx(float(x[REAL].norm(dim=-1).median()))
    rows = sae.W_dec[list(S)]
    value = relative_to_norm(2.5, norm, rows)
    assert value * rows.sum(0).norm() == pytest.approx(2.5 * norm)
    moved = delta(sae, steer(S, -value), x, REAL)
    torch.testing.assert_close(moved[REAL].norm(dim=-1), torch.full((int(REAL.sum()),), 2.5 * norm).double())
    assert relative_to_peaks(-3.0, (1.0, 2.5)) == (-3.0, -7.5)


def test_values_that_cannot_be_written_are_refused(sae, x):
    for make in (
        lambda: ClampFiring(float("nan")),
        lambda: ClampFiring((1.0, float("inf"))),
        lambda: ClampFiring(()),
        lambda: ClampFiring(-1.0, float("nan")),
        lambda: SetTo(float("-inf")),
        lambda: MeanAblation((float("nan"),)),
        lambda: AddConstant(float("inf")),
        lambda: RemoveProjection(float("nan")),
        lambda: SetProjection(float("nan")),
        lambda: AnyFires(float("nan")),
    ):
        with pytest.raises(ConfigError, match="finite"):
            make()
    with pytest.raises(ConfigError, match="2 numbers for 5 written latents"):
        edited(sae, clamp(S, (1.0, 2.0)), x, REAL)
    with pytest.raises(ConfigError, match="50 cannot be clamped"):
        clamp_and_refusal((*S, REFUSAL), REFUSAL, -1.0, 1.0)
    with pytest.raises(ConfigError, match="distinct latents"):
        replace(zero(S), writes=())
    with pytest.raises(ConfigError, match="norm 0"):
        relative_to_norm(1.0, 2.0, torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    with pytest.raises(DataError, match="got none"):
        median_norm(torch.zeros(0, 4))
    with pytest.raises(ConfigError, match="no latent"):
        Split(0, SetTo(1.0), SetTo(2.0))


# ---- on a live model ----------------------------------------------------------------------------

POINT = HookPoint(1)


def live(lm: LanguageModel, side: str) -> tuple[Tensor, Tensor]:
    batch = lm.tokenizer([TEXT[0][:24], "Granite", TEXT[2][:57]], padding=True, padding_side=side, return_tensors="pt")
    return batch["input_ids"], batch["attention_mask"]


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_every_method_logs_what_it_adds_and_padding_moves_nothing(tiny_model, name):
    wide = TopKSAE(tiny_model.d_model, D_SAE, K, seed=3).requires_grad_(False)
    found: list[EditLog] = []
    for side in ("left", "right"):
        token_ids, mask = live(tiny_model, side)
        with torch.no_grad(), applied(tiny_model, wide, POINT, PUBLISHED[name][0]) as log:
            tiny_model.model(token_ids, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0))
        found.append(log)
    left, right = found
    assert (left.tokens, left.edited, left.texts, left.opened) == (
        right.tokens,
        right.edited,
        right.texts,
        right.opened,
    )
    assert left.texts == 3
    assert left.norms == pytest.approx(right.norms, rel=1e-3)
    assert left.mean_norm == pytest.approx(left.norms / left.edited if left.edited else 0.0)


def test_the_bos_token_keeps_every_bit(tiny_model):
    wide = TopKSAE(tiny_model.d_model, D_SAE, K, seed=3).requires_grad_(False)
    token_ids, mask = live(tiny_model, "right")
    with torch.no_grad():
        plain = tiny_model.model(token_ids, attention_mask=mask).logits
        with applied(tiny_model, wide, POINT, steer(S, 5.0)):
            steered = tiny_model.model(token_ids, attention_mask=mask).logits
        with applied(tiny_model, wide, POINT, replace(steer(S, 5.0), tokens="attended")) as log:
            everywhere = tiny_model.model(token_ids, attention_mask=mask).logits
    assert torch.equal(plain[:, 0], steered[:, 0])
    assert not torch.equal(plain[:, 1], steered[:, 1])
    assert not torch.equal(plain[:, 0], everywhere[:, 0])
    assert log.tokens == log.edited == int(mask.sum())
    assert log.mean_norm == pytest.approx(5 * float(wide.W_dec[list(S)].sum(0).norm()), rel=1e-5)


def test_a_shut_gate_leaves_the_logits_bit_identical(tiny_model):
    wide = TopKSAE(tiny_model.d_model, D_SAE, K, seed=3).requires_grad_(False)
    token_ids, mask = live(tiny_model, "right")
    with torch.no_grad():
        plain = tiny_model.model(token_ids, attention_mask=mask).logits
        for gate in (MeanRate(1.0), AnyFires(1e9)):
            with applied(tiny_model, wide, POINT, replace(steer(S, 5.0), gate=gate)) as log:
                assert torch.equal(plain, tiny_model.model(token_ids, attention_mask=mask).logits)
            assert (log.edited, log.opened, log.opened_share) == (0, 0, 0.0)
