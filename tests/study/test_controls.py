"""Random controls: the real edit's norm on every token, whatever the edit; or its deltas, on other tokens."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sae_forge.errors import ConfigError
from sae_forge.hookpoint import HookPoint
from sae_forge.interventions.apply import Intervention, applied, delta
from sae_forge.interventions.controls import RandomDirections, RandomPlaces
from sae_forge.interventions.gates.window import WindowRate
from sae_forge.methods.edits.clamp import clamp
from sae_forge.methods.edits.dsg import dsg
from sae_forge.methods.edits.mean_ablate import mean_ablate
from sae_forge.methods.edits.project import project
from sae_forge.methods.edits.refusal_clamp import clamp_and_refusal, refusal_clamp
from sae_forge.methods.edits.scale import scale
from sae_forge.methods.edits.steer import steer
from sae_forge.methods.edits.zero import zero
from sae_forge.sae.topk import TopKSAE

D_IN, D_SAE, K = 56, 113, 7
S = (5, 60, 17, 88)
REFUSAL = 33


class Outward:
    """A ``ResidualEdit`` that knows no rows: a token with a firing target moves along itself."""

    def delta(self, x: Tensor, acts: Tensor) -> Tensor:
        return torch.where((acts > 0).any(-1, keepdim=True), 0.5 * x, 0.0)


EDITS = {
    "scale": scale(S),
    "clamp": clamp(S, -20.0),
    "dsg": dsg(S, -500.0, 0.05),
    "refusal_clamp": refusal_clamp(S, REFUSAL, -500.0, 0.05),
    "clamp_and_refusal": clamp_and_refusal(S, REFUSAL, -20.0, -500.0),
    "mean_ablate": mean_ablate(S, (0.5, 0.0, 2.0, 1.0)),
    "steer": replace(steer(S, 3.0), gate=WindowRate(0.1, 6)),
    "project": project(S, 2.0),
    "residual": Intervention("residual", S, Outward()),
}


def controlled(intervention: Intervention, kind: str, seed: int = 0, **more) -> Intervention:
    return replace(intervention, edit=RandomDirections(intervention.edit, seed, kind, **more))  # pyright: ignore


@pytest.fixture(scope="module")
def sae() -> TopKSAE:
    sae = TopKSAE(D_IN, D_SAE, K, seed=3).requires_grad_(False)
    sae.W_dec.mul_(torch.linspace(0.5, 2, D_SAE)[:, None])
    return sae


@pytest.fixture(scope="module")
def x(sae: TopKSAE) -> Tensor:
    drawn = torch.randn(4, 33, D_IN, generator=torch.Generator().manual_seed(5))
    hot = torch.rand(4, 33, len(S), generator=torch.Generator().manual_seed(6)) < 0.08
    return drawn + 2 * hot.float() @ sae.W_enc[:, list(S)].T


REAL = torch.rand(4, 33, generator=torch.Generator().manual_seed(7)) < 0.9


@pytest.mark.parametrize("name", EDITS)
@pytest.mark.parametrize("kind", ["isotropic", "latents", "direction"])
def test_a_control_has_the_norm_of_any_edit_on_every_token(sae, x, name, kind):
    real_delta = delta(sae, EDITS[name], x, REAL)
    norms = real_delta.norm(dim=-1)
    assert (norms > 0).any()
    seen = []
    for seed in range(3):
        control = delta(sae, controlled(EDITS[name], kind, seed), x, REAL)
        torch.testing.assert_close(control.norm(dim=-1), norms, rtol=1e-6, atol=0)
        assert torch.equal((control != 0).any(-1), (real_delta != 0).any(-1))
        assert not any(torch.allclose(control, other) for other in seen)
        cosine = torch.cosine_similarity(control[norms > 0], real_delta[norms > 0], dim=-1)
        assert cosine.abs().mean() < 0.5
        seen.append(control)


@pytest.mark.parametrize("name", EDITS)
def test_other_latents_stand_in_for_the_written_ones(sae, x, name):
    """Every delta lies in the span of as many living rows as are written, and of none that is watched or written."""
    alive = tuple(range(20, 60)) + S
    intervention = controlled(EDITS[name], "latents", 1, alive=alive)
    control = delta(sae, intervention, x, REAL)[REAL]
    moved = control[control.norm(dim=-1) > 0].double()
    allowed = [latent for latent in alive if latent not in intervention.latents]
    basis = sae.W_dec[allowed].double()
    coefficients = torch.linalg.lstsq(basis.T, moved.T).solution.T
    torch.testing.assert_close(coefficients @ basis, moved, rtol=1e-4, atol=1e-3)
    used = int(torch.linalg.matrix_rank(moved / moved.norm(dim=-1, keepdim=True), rtol=1e-4))
    assert 1 <= used <= (1 if name == "residual" else len(intervention.written))


def test_a_control_keeps_the_coefficients_of_a_latent_edit(sae, x):
    """A token on which one latent fires alone moves along that latent's own stand-in, always the same."""
    control = delta(sae, controlled(zero(S), "isotropic"), x, REAL)
    acts = torch.where(REAL[..., None], sae.latent_acts(x, torch.tensor(S)), 0.0)
    for place in range(len(S)):
        others = [other for other in range(len(S)) if other != place]
        lonely = (acts[..., place] > 0) & ~(acts[..., others] > 0).any(-1)
        units = torch.nn.functional.normalize(control[lonely], dim=-1)
        assert len(units) > 1
        torch.testing.assert_close(units, units[:1].expand_as(units), rtol=1e-4, atol=1e-5)


def test_one_direction_serves_all_deltas(sae, x):
    control = delta(sae, controlled(EDITS["clamp"], "direction"), x, REAL)
    units = torch.nn.functional.normalize(control[control.norm(dim=-1) > 0], dim=-1)
    torch.testing.assert_close(units, units[:1].expand_as(units), rtol=1e-5, atol=1e-6)


def test_living_latents_too_few_to_draw_from_are_refused(sae, x):
    for alive in ((), S, (1, 2, 3, *S)):
        with pytest.raises(ConfigError, match=r"needs 4 other latents and has \d"):
            delta(sae, controlled(EDITS["clamp"], "latents", alive=alive), x, REAL)


def test_a_control_without_the_error_keeps_the_reconstruction(sae, x):
    bare = replace(EDITS["clamp"], keep_error=False)
    rebuilt = torch.where(REAL[..., None], sae(x) - x, 0.0)
    control = delta(sae, controlled(bare, "isotropic"), x, REAL) - rebuilt
    torch.testing.assert_close(
        control, delta(sae, controlled(EDITS["clamp"], "isotropic"), x, REAL), atol=1e-4, rtol=1e-4
    )


# ---- random places ------------------------------------------------------------------------------


def places(real_delta: Tensor, real: Tensor, cuts: tuple[int, ...] = (), seed: int = 0) -> Tensor:
    """The control's deltas for texts that come in several calls."""
    state, moved, edges = None, [], (0, *cuts, real.shape[1])
    for start, stop in pairwise(edges):
        part = slice(start, stop)
        x = torch.zeros_like(real_delta[:, part])
        result, state = RandomPlaces(seed).moved(real_delta[:, part], x, x[..., :1], real[:, part], state)
        moved.append(result)
    return torch.cat(moved, dim=1)


def made_up(seed: int, share: float) -> tuple[Tensor, Tensor]:
    drawn = torch.Generator().manual_seed(seed % 2**60)
    real = torch.rand(3, 25, generator=drawn) < 0.85
    hot = (torch.rand(3, 25, generator=drawn) < share) & real
    return torch.where(hot[..., None], torch.randn(3, 25, 4, generator=drawn), 0.0), real


@given(st.integers(0, 2**40), st.floats(0, 1), st.lists(st.integers(1, 24), max_size=5, unique=True))
@settings(max_examples=60, deadline=None)
def test_deltas_move_to_later_tokens_whole_and_in_order(seed, share, cuts):
    real_delta, real = made_up(seed, share)
    moved = places(real_delta, real)
    assert torch.equal(moved, places(real_delta, real, tuple(sorted(cuts))))
    assert not moved[~real].any()
    for row in range(3):
        came = [(place, real_delta[row, place]) for place in range(25) if real_delta[row, place].any()]
        went = [(place, moved[row, place]) for place in range(25) if moved[row, place].any()]
        assert len(came) - 1 <= len(went) <= len(came)
        for (before, what), (after, it) in zip(came, went, strict=False):
            assert torch.equal(what, it)
            assert after > before


def test_what_comes_later_moves_no_earlier_token():
    real_delta, real = made_up(3, 0.4)
    other = real_delta.clone()
    other[:, 13:] = made_up(4, 0.6)[0][:, 13:]
    assert torch.equal(places(real_delta, real)[:, :13], places(other, real)[:, :13])
    assert not torch.equal(places(real_delta, real), places(real_delta, real, seed=1))


def test_padding_moves_no_place():
    real_delta, real = made_up(5, 0.3)
    blank, none = torch.zeros(3, 6, 4), torch.zeros(3, 6, dtype=torch.bool)
    left = places(torch.cat([blank, real_delta], 1), torch.cat([none, real], 1))
    right = places(torch.cat([real_delta, blank], 1), torch.cat([real, none], 1))
    assert torch.equal(left[:, 6:], right[:, :25])


@pytest.mark.parametrize("kind", ["isotropic", "latents", "direction", "places"])
def test_controls_of_a_gated_edit_hold_on_a_live_model(tiny_model, sae, kind):
    text = tiny_model.tokenizer(["The wizard of the north", "Granite is a rock"], padding=True, return_tensors="pt")
    latents = tuple(range(0, 60, 4))
    edit = dsg(latents, -4.0, -1.0)
    logs = []
    for intervention in (edit, controlled(edit, kind)):
        with torch.no_grad(), applied(tiny_model, sae, HookPoint(1), intervention) as log:
            tiny_model.model(text["input_ids"], attention_mask=text["attention_mask"])
        logs.append(log)
    real, control = logs
    assert real.edited > 0
    assert (real.tokens, real.opened) == (control.tokens, control.opened)
    if kind == "places":
        assert real.edited - 2 <= control.edited <= real.edited
    else:
        assert real.edited == control.edited
        assert control.norms == pytest.approx(real.norms, rel=1e-6)
