"""The int8 product names candidates and no more: bounds hold for any numbers, and the k chosen are the k largest."""

import pytest
import torch
from torch import Tensor

from sae_forge.kernels import cpu, cpu_int8, reference
from sae_forge.kernels.dispatch import topk_encode

TOKENS, D_IN, D_SAE, K = 300, 400, 512, 5

pytestmark = pytest.mark.skipif(not cpu_int8._multiplies_exactly(), reason="no int8 product on this processor")


@pytest.fixture(autouse=True)
def small_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Taken at sizes of a test too, in several blocks."""
    monkeypatch.setattr(cpu_int8, "LEAST_WEIGHTS", {True: 0, False: 0})
    monkeypatch.setattr(cpu_int8, "LEAST_TOKENS", 0)
    monkeypatch.setattr(cpu_int8, "_TOKENS", 128)
    monkeypatch.setattr(cpu_int8, "_PRE_ACTS", 64 * D_SAE)


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plain() -> tuple[Tensor, Tensor, Tensor]:
    return draw(TOKENS, D_IN, seed=1), draw(D_SAE, D_IN, seed=2), draw(D_SAE, seed=3)


def uneven() -> tuple[Tensor, Tensor, Tensor]:
    """Tokens and latents of very different length, and two places that dwarf all others, as in language models."""
    x, rows, bias = plain()
    x *= draw(TOKENS, 1, seed=4).exp()
    rows *= draw(D_SAE, 1, seed=5).exp()
    x[:, 7] += 60
    x[::5, 40] *= 200
    return x, rows, 4 * bias


def below_a_step() -> tuple[Tensor, Tensor, Tensor]:
    """Rows of one great number and many that plain rounding takes to zero, and tokens along those many."""
    x, rows, bias = plain()
    rows[:, 1:] = 0.45 * rows[:, 1:].sign() / 127
    rows[:, 0] = 1.0
    x = rows[torch.arange(TOKENS) % D_SAE] * 100 + 0.1 * x
    x[:, 0] = 0.0
    return x, rows, 0 * bias


GIVEN = pytest.mark.parametrize("given", [plain, uneven, below_a_step])


@GIVEN
def test_no_pre_act_is_above_its_bound_nor_far_below(given):
    x, rows, bias = given()
    table = cpu_int8.rounded_encoder(rows)
    tokens = cpu_int8.rounded_tokens(x, table)
    bounds = cpu_int8.upper_bounds(tokens, table, bias, slice(0, TOKENS)).double()
    above = bounds - (x.double() @ rows.double().T + bias.double())
    assert (above > 0).all()
    deviation = tokens.step.double() * tokens.above.double() / cpu_int8.DEVIATIONS
    from_middle = above / deviation - cpu_int8.DEVIATIONS  # of errors about zero, none of them many deviations long
    assert from_middle.mean().abs() < 0.2 and from_middle.abs().max() < 6


def test_rounding_that_is_not_dithered_would_break_the_bound(monkeypatch):
    x, rows, bias = below_a_step()
    monkeypatch.setattr(cpu_int8, "_dither", lambda d_in: (torch.full((d_in,), 0.5), torch.zeros(d_in)))
    table = cpu_int8.rounded_encoder(rows)
    bounds = cpu_int8.upper_bounds(cpu_int8.rounded_tokens(x, table), table, bias, slice(0, TOKENS))
    assert (bounds < x @ rows.T).any()


@GIVEN
@pytest.mark.parametrize("margin", [0.0, 1.2])
def test_the_k_largest_are_found(given, margin, monkeypatch):
    """With no margin the first guess is too high for many tokens, and they are looked at again."""
    monkeypatch.setattr(cpu_int8, "MARGIN", margin)
    x, rows, bias = given()
    exact = x.double() @ rows.double().T + bias.double()
    values, indices = cpu_int8.topk_affine(x, rows.T, bias, K)
    wanted = reference.topk(exact, K)
    assert torch.equal(indices.sort(dim=1).values, wanted[1].sort(dim=1).values)
    size = x.norm(dim=1, keepdim=True) * rows.norm(dim=1).max()
    assert ((values - exact.gather(1, indices)).abs() <= 1e-6 * size).all()


@pytest.mark.parametrize("margin", [0.0, 1.2])
def test_what_candidates_cannot_settle_is_done_by_the_dense_product(margin, monkeypatch):
    monkeypatch.setattr(cpu_int8, "MARGIN", margin)
    x, rows, bias = plain()
    bias[:] = 0.25
    x[3] = 0.0  # every pre-act is equal
    x[200:203] = 0.0
    x[5, 1], x[130, 2] = torch.inf, torch.nan
    rows[100:110] = rows[100]  # some are equal
    x[9] = 9 * rows[100]
    values, indices = cpu_int8.topk_affine(x, rows.T, bias, K)
    pre_acts = x @ rows.T + bias
    finite = pre_acts.isfinite().all(dim=1)
    wanted = reference.topk(pre_acts, K)
    assert torch.equal(indices.sort(dim=1).values[finite], wanted[1].sort(dim=1).values[finite])
    assert values[5].isnan().any() or values[5].isinf().any()
    assert values[130].isnan().all()


def test_where_most_is_done_twice_the_rest_is_done_once(monkeypatch):
    x, rows, bias = plain()
    x[:64] = 0.0
    calls = []
    largest = cpu_int8._largest
    monkeypatch.setattr(cpu_int8, "_largest", lambda *given: calls.append(len(given[0])) or largest(*given))
    _, indices = cpu_int8.topk_affine(x, rows.T, torch.zeros_like(bias), K)
    assert calls[0] == 128 and sum(calls) < 2 * 128
    assert torch.equal(indices.sort(dim=1).values, reference.topk(x @ rows.T, K)[1].sort(dim=1).values)


def test_it_is_taken_in_training_and_where_it_pays(monkeypatch):
    x, rows, bias = plain()
    taken = []
    encode = cpu_int8.topk_affine
    monkeypatch.setattr(cpu_int8, "topk_affine", lambda *given: taken.append(1) or encode(*given))
    screened = topk_encode(x, rows.T, bias, None, K, screened=True)
    assert taken == [1]
    dense = topk_encode(x, rows.T, bias, None, K)
    topk_encode(x, rows.T, bias, None, K, backend="reference", screened=True)
    topk_encode(x, rows.T, bias, None, K, product_dtype=torch.bfloat16, screened=True)
    topk_encode(x, rows.T.contiguous(), bias, None, K, screened=True)
    topk_encode(x.double(), rows.double().T, bias.double(), None, K, screened=True)
    assert taken == [1]
    assert torch.equal(screened[1].sort(dim=1).values, dense[1].sort(dim=1).values)


def test_built_in_sizes_stay_with_the_dense_product(monkeypatch):
    monkeypatch.undo()
    rows = torch.empty(3072, 256)
    assert not cpu_int8.fits(torch.empty(8192, 256), rows.T, torch.empty(3072), 32)


def test_a_processor_that_multiplies_otherwise_is_left_alone(monkeypatch):
    x, rows, bias = plain()
    assert cpu_int8.fits(x, rows.T, bias, K)
    cpu_int8._multiplies_exactly.cache_clear()
    product = cpu_int8._product
    monkeypatch.setattr(cpu_int8, "_product", lambda *given: product(*given) * 0.99)
    try:
        assert not cpu_int8.fits(x, rows.T, bias, K)
    finally:
        cpu_int8._multiplies_exactly.cache_clear()


def test_a_product_of_two_rows_is_the_same_wherever_it_stands():
    x, rows, _ = plain()
    token, latent = torch.randint(TOKENS, (900,)), torch.randint(D_SAE, (900,))
    together = cpu.pair_dots(x, rows, token, latent)
    assert torch.allclose(together, (x[token] * rows[latent]).sum(dim=1), atol=1e-5)
    alone = torch.cat([cpu.pair_dots(x, rows, token[n : n + 1], latent[n : n + 1]) for n in range(900)])
    assert torch.equal(together, alone)
