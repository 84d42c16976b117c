"""Every backend agrees with the definition in output and gradients; the Triton kernels run here in its interpreter."""

import os
import re

import pytest
import torch
from torch import Tensor

from sae_forge.errors import BackendError, ConfigError
from sae_forge.kernels import cpu, dispatch, reference
from sae_forge.kernels.dispatch import (
    among_largest,
    decode_loss,
    latent_sums,
    row_gradients,
    rows_adam,
    sparse_decode,
    topk,
    topk_encode,
)
from sae_forge.kernels.rows import BETAS, EPS, Extra, Rates, Rows, Slopes, Slot, adam_rows_
from sae_forge.kernels.transpose import transpose

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TRITON_RUNS = INTERPRETED or DEVICE == "cuda"

BACKENDS = ["reference", "dense", *(["cpu"] if DEVICE == "cpu" else [])]
BACKENDS += [pytest.param("triton", marks=pytest.mark.interpreted)]
on_every_backend = pytest.mark.parametrize("backend", BACKENDS)

SIZES = [(7, 3, 13, 29), (5, 11, 17, 12), (3, 8, 600, 19), (4, 1, 1, 5), (1, 4, 64, 4)]
"""tokens, k, d_in, d_sae: nothing a multiple of a tile, k beyond a tile, d_in beyond a tile, k equal to d_sae."""
on_every_size = pytest.mark.parametrize(("tokens", "k", "d_in", "d_sae"), SIZES)


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh memory is full of NaN, so an output that is not written cannot pass."""

    def poison(make):
        def made(*args, **kwargs):
            tensor = make(*args, **kwargs)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor.fill_(2**30)

        return made

    monkeypatch.setattr(torch, "empty", poison(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poison(torch.empty_like))


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(DEVICE)


def draw_code(tokens: int, k: int, d_sae: int) -> tuple[Tensor, Tensor]:
    """Values with zeros among them, indices with repeats within and across tokens."""
    values = draw(tokens, k, seed=1)
    values[:, ::3] = 0.0
    indices = torch.randint(d_sae, (tokens, k), generator=torch.Generator().manual_seed(2)).to(DEVICE)
    indices[0] = indices[0, 0]
    return values, indices


def decode_with_gradients(
    backend: str, values: Tensor, indices: Tensor, W_dec: Tensor, slope: Tensor
) -> dict[str, Tensor]:
    values, W_dec = values.clone().requires_grad_(), W_dec.clone().requires_grad_()
    out = sparse_decode(values, indices, W_dec, backend=backend)
    out.backward(slope.to(out.dtype))
    return {"out": out.detach(), "values": values.grad, "W_dec": W_dec.grad}


def encode_with_gradients(
    backend: str, x: Tensor, weights: dict[str, Tensor], k: int, slope: Tensor
) -> dict[str, Tensor]:
    x = x.clone().requires_grad_()
    held = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
    values, indices = topk_encode(x, held["W_enc"], held["b_enc"], held["b_dec"], k, backend=backend)
    code = torch.zeros(len(x), held["b_enc"].numel(), dtype=values.dtype, device=DEVICE).scatter(1, indices, values)
    (code * slope.to(code.dtype)).sum().backward()
    return {"code": code.detach(), "x": x.grad} | {name: weight.grad for name, weight in held.items()}


def error(found: Tensor, exact: Tensor) -> float:
    """Relative norm of the difference."""
    return float((found.double() - exact).norm() / exact.norm().clamp_min(1e-30))


def require_close(found: dict[str, Tensor], exact: dict[str, Tensor], bound: float) -> None:
    errors = {name: error(found[name], exact[name]) for name in exact}
    assert max(errors.values()) <= bound, errors


@on_every_size
@on_every_backend
def test_decode_and_both_gradients_are_the_dense_ones(backend, tokens, k, d_in, d_sae):
    values, indices = draw_code(tokens, k, d_sae)
    W_dec, slope = draw(d_sae, d_in, seed=3), draw(tokens, d_in, seed=4)
    dense = torch.zeros(tokens, d_sae, dtype=torch.float64, device=DEVICE).scatter_add(1, indices, values)
    exact = {"out": dense @ W_dec, "values": (slope @ W_dec.T).gather(1, indices), "W_dec": dense.T @ slope}
    found = decode_with_gradients(backend, values.float(), indices, W_dec.float(), slope)
    require_close(found, exact, 1e-6)


@pytest.mark.parametrize("threads", [0, 4])
def test_which_are_the_largest_is_the_definitions_with_numpy_and_without(threads, monkeypatch):
    monkeypatch.setattr(cpu, "_NUMPY_THREADS", threads)
    numbers = draw(7, 40, seed=1).float()
    numbers[1:4].round_()  # many are equal
    numbers[2, ::3] = float("-inf")
    numbers[4, 5] = numbers[5, ::2] = float("nan")
    numbers[6] = torch.arange(40.0).neg()
    numbers[6, 7], numbers[6, 6] = float("nan"), numbers[6, 5]  # without it there would be seven that reach the seventh
    for held in (numbers, numbers.bfloat16()):
        wanted = reference.topk(held, 7)[1]
        found = among_largest(held, 7)
        assert torch.equal(found, torch.zeros_like(found).scatter(1, wanted, True))
        at, certain = cpu.largest(held, 7)
        assert certain[0] and not certain[1:4].any() and not certain[5:].any()
        assert torch.equal(at[certain], wanted[certain].sort().values)


@on_every_size
@on_every_backend
def test_encode_and_all_gradients_are_the_dense_ones(backend, tokens, k, d_in, d_sae):
    x, slope = draw(tokens, d_in, seed=5), draw(tokens, d_sae, seed=6)
    weights = {"W_enc": draw(d_in, d_sae, seed=7), "b_enc": draw(d_sae, seed=8), "b_dec": draw(d_in, seed=9)}
    exact_x = x.clone().requires_grad_()
    held = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
    pre_acts = (exact_x - held["b_dec"]) @ held["W_enc"] + held["b_enc"]
    kept = torch.zeros_like(pre_acts).scatter(1, pre_acts.topk(k, dim=1).indices, 1.0)
    code = pre_acts.relu() * kept
    (code * slope).sum().backward()
    exact = {"code": code.detach(), "x": exact_x.grad} | {name: weight.grad for name, weight in held.items()}
    found = encode_with_gradients(backend, x.float(), {n: w.float() for n, w in weights.items()}, k, slope)
    require_close(found, exact, 2e-6)


@on_every_backend
def test_everything_is_the_same_to_the_bit_twice(backend):
    if backend == "reference" and DEVICE == "cuda":
        pytest.skip("the definition adds with atomics on a GPU")
    values, indices = (part for part in draw_code(5, 5, 7))
    W_dec, slope = draw(7, 33, seed=3).float(), draw(5, 33, seed=4)
    weights = {
        "W_enc": draw(33, 7, seed=7).float(),
        "b_enc": draw(7, seed=8).float(),
        "b_dec": draw(33, seed=9).float(),
    }
    x, code_slope = draw(5, 33, seed=5).float(), draw(5, 7, seed=6)
    runs = [
        decode_with_gradients(backend, values.float(), indices, W_dec, slope)
        | encode_with_gradients(backend, x, weights, 5, code_slope)
        for _ in range(2)
    ]
    for name in runs[0]:
        assert torch.equal(runs[0][name], runs[1][name]), name


# the definition sums in the dtype it is given, and dense products take values in it too
@pytest.mark.parametrize("backend", BACKENDS[2:])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rows_are_summed_in_fp32(backend, dtype):
    tokens, k, d_in, d_sae = 3, 40, 24, 50
    values, indices = draw_code(tokens, k, d_sae)
    values, W_dec, slope = values.float(), draw(d_sae, d_in, seed=3).to(dtype), draw(tokens, d_in, seed=4).to(dtype)
    exact = decode_with_gradients("reference", values.double(), indices, W_dec.double(), slope.double())
    found = decode_with_gradients(backend, values, indices, W_dec, slope)
    assert found["out"].dtype == found["W_dec"].dtype == dtype
    rounding = torch.finfo(dtype).eps / 2  # one rounding, of the result; a half-precision sum errs many times that
    assert error(found["out"], exact["out"]) < rounding
    assert error(found["W_dec"], exact["W_dec"]) < rounding
    assert error(found["values"], exact["values"]) < 1e-6


@on_every_backend
def test_batch_shape_is_kept_and_an_empty_batch_decodes_to_nothing(backend):
    values, indices = draw_code(6, 3, 5)
    W_dec = draw(5, 7, seed=3).float()
    flat = sparse_decode(values.float(), indices, W_dec, backend=backend)
    shaped = sparse_decode(values.float().view(2, 3, 3), indices.view(2, 3, 3), W_dec, backend=backend)
    assert torch.equal(shaped, flat.view(2, 3, 7))
    single = sparse_decode(values[1].float(), indices[1], W_dec, backend=backend)
    assert torch.equal(single, flat[1])
    assert sparse_decode(values[:0].float(), indices[:0], W_dec, backend=backend).shape == (0, 7)
    empty, _ = topk_encode(W_dec[:0], W_dec.T, W_dec[:, 0], W_dec[0], 2, backend=backend)
    assert empty.shape == (0, 2)


@on_every_backend
def test_tokens_beyond_one_block_are_encoded_as_those_in_it(backend, monkeypatch):
    x, W_enc = draw(5, 6, seed=5).float(), draw(6, 9, seed=7).float()
    b_enc, b_dec = draw(9, seed=8).float(), draw(6, seed=9).float()
    whole = topk_encode(x, W_enc, b_enc, b_dec, 3, backend=backend)
    monkeypatch.setattr(dispatch, "encode_tokens", lambda d_sae, device: 2)
    parts = topk_encode(x, W_enc, b_enc, b_dec, 3, backend=backend)
    assert torch.equal(whole[1].sort(dim=1).values, parts[1].sort(dim=1).values)
    assert torch.allclose(whole[0].sort(dim=1).values, parts[0].sort(dim=1).values, atol=1e-6)


@pytest.mark.parametrize("index", [-1, 5])
def test_an_index_without_a_latent_is_named(index):
    indices = torch.tensor([[0, 4, index]])
    with pytest.raises(ConfigError, match=f"index {index} names no latent; the SAE has latents 0 to 4"):
        sparse_decode(torch.ones(1, 3), indices, torch.ones(5, 2))


def test_tensors_on_several_devices_are_named():
    with pytest.raises(BackendError, match="values on cpu, indices on cpu, W_dec on meta"):
        sparse_decode(torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.int64), torch.ones(5, 2, device="meta"))


def test_shapes_and_dtypes_that_cannot_be_meant_are_refused():
    W_dec, indices = torch.ones(5, 2), torch.zeros(1, 3, dtype=torch.int64)
    with pytest.raises(ConfigError, match="same shape"):
        sparse_decode(torch.ones(1, 2), indices, W_dec)
    with pytest.raises(ConfigError, match="int32 or int64"):
        sparse_decode(torch.ones(1, 3), indices.to(torch.int16), W_dec)
    with pytest.raises(ConfigError, match="k=6 latents per token, but the SAE has d_sae=5"):
        topk_encode(torch.ones(1, 2), W_dec.T, W_dec[:, 0], W_dec[0], 6)


@pytest.mark.skipif(TRITON_RUNS, reason="Triton runs here")
def test_triton_asked_for_by_name_on_a_cpu_is_refused_and_auto_falls_back():
    values, indices, W_dec = torch.ones(1, 3), torch.zeros(1, 3, dtype=torch.int64), torch.ones(5, 2)
    with pytest.raises(BackendError, match="needs tensors on a CUDA GPU and these are on cpu; use auto or cpu"):
        sparse_decode(values, indices, W_dec, backend="triton")
    assert torch.equal(sparse_decode(values, indices, W_dec), torch.full((1, 2), 3.0))


def test_triton_that_is_not_installed_is_refused_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(dispatch, "triton_installed", lambda: False)
    with pytest.raises(BackendError, match=re.escape("pip install 'sae-forge[triton]'")):
        sparse_decode(torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.int64), torch.ones(5, 2), backend="triton")


# ---- top-k --------------------------------------------------------------------------------------


def chosen(backend: str, pre_acts: Tensor, k: int) -> list[list[int]]:
    values, indices = topk(pre_acts, k, backend=backend)
    assert torch.equal(values, pre_acts.gather(1, indices.long()))
    return indices.sort(dim=1).values.tolist()


def best(pre_acts: Tensor, k: int) -> list[list[int]]:
    """Which k are largest, of equal ones the first: by sorting Python's tuples."""
    return [sorted(sorted(range(len(row)), key=lambda i: (-row[i], i))[:k]) for row in pre_acts.tolist()]


@pytest.mark.parametrize(("d_sae", "k"), [(640, 3), (640, 32), (37, 5), (16, 16), (1, 1), (160, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@on_every_backend
def test_topk_is_exact(backend, dtype, d_sae, k):
    pre_acts = draw(6, d_sae, seed=1).to(dtype)
    assert chosen(backend, pre_acts, k) == best(pre_acts, k)


@on_every_backend
def test_of_equal_pre_acts_the_first_are_taken(backend):
    few = torch.randint(4, (6, 640), generator=torch.Generator().manual_seed(0)).float().to(DEVICE)
    edge = draw(3, 640, seed=2).float()
    edge[:, 100::160] = edge.max() + 1  # four equal ones at the top, and three are wanted
    alike = torch.zeros(2, 640, device=DEVICE)
    for pre_acts in (few, edge, alike):
        assert chosen(backend, pre_acts, 3) == best(pre_acts, 3)


@on_every_backend
def test_pre_acts_that_are_no_numbers_still_give_latents_that_exist(backend):
    pre_acts = draw(3, 640, seed=1).float()
    pre_acts[0, 5], pre_acts[1] = float("nan"), float("nan")
    indices = topk(pre_acts, 7, backend=backend)[1].long()
    assert int(indices.min()) >= 0 and int(indices.max()) < 640
    assert all(len(set(row)) == 7 for row in indices.tolist())
    assert sorted(indices[2].tolist()) == best(pre_acts[2:], 7)[0]


# ---- a training step ----------------------------------------------------------------------------


def draw_step(tokens: int, k: int, d_in: int, d_sae: int) -> tuple[Slopes, Rows, Extra]:
    """Everything a step hands to the kernels, in float64, mid-training."""
    values, indices = draw_code(tokens, k, d_sae)
    slopes = Slopes(draw(tokens, d_in, seed=3), draw(tokens, d_in, seed=4), values, draw(tokens, k, seed=5), indices)

    def slot(*shape: int, seed: int) -> Slot:
        return Slot(draw(*shape, seed=seed), draw(*shape, seed=seed + 1), draw(*shape, seed=seed + 2).square())

    W_dec = slot(d_sae, d_in, seed=10)
    W_dec.weight.div_(W_dec.weight.norm(dim=1, keepdim=True))
    few = min(3, d_sae)
    row_of = torch.full((d_sae,), -1, dtype=torch.int32, device=DEVICE)
    row_of[-few:] = torch.arange(few, dtype=torch.int32, device=DEVICE)
    extra = Extra(row_of, draw(few, d_in, seed=6), draw(few, d_in, seed=7), draw(few, seed=8))
    return slopes, Rows(slot(d_sae, d_in, seed=20), W_dec, slot(d_sae, seed=30)), extra


def to(dtype: torch.dtype, parts):
    """A fresh copy of a (nested) tuple of tensors; integers stay."""
    if isinstance(parts, tuple):
        return type(parts)(*(to(dtype, part) for part in parts))
    return parts if parts is None else parts.clone().to(dtype if parts.is_floating_point() else parts.dtype)


def exact_gradients(slopes: Slopes, rows: Rows, extra: Extra | None) -> dict[str, Tensor]:
    """Latent by latent, as they are defined."""
    W_dec = rows.W_dec.weight
    exact = {name: torch.zeros_like(slot.weight) for name, slot in rows._asdict().items()}
    for token, row in enumerate(slopes.indices.tolist()):
        for slot, latent in enumerate(row):
            exact["W_enc"][latent] += slopes.pre_acts[token, slot] * slopes.target[token]
            exact["W_dec"][latent] += slopes.values[token, slot] * slopes.residual[token]
            exact["b_enc"][latent] += slopes.pre_acts[token, slot]
    for latent, place in enumerate([] if extra is None else extra.row_of.tolist()):
        if place >= 0:
            for name in exact:
                exact[name][latent] += getattr(extra, name)[place]
    exact["W_dec"] -= (exact["W_dec"] * W_dec).sum(dim=1, keepdim=True) * W_dec
    return exact


def exact_step(rows: Rows, gradients: dict[str, Tensor], step: int, lr: float) -> Rows:
    """Adam as its paper has it, then unit rows."""
    after = {}
    for name, slot in rows._asdict().items():
        g = gradients[name]
        first, second = BETAS[0] * slot.exp_avg + (1 - BETAS[0]) * g, BETAS[1] * slot.exp_avg_sq + (1 - BETAS[1]) * g**2
        moved = lr * (first / (1 - BETAS[0] ** step)) / ((second / (1 - BETAS[1] ** step)).sqrt() + EPS)
        after[name] = Slot(slot.weight - moved, first, second)
    after["W_dec"].weight.div_(after["W_dec"].weight.norm(dim=1, keepdim=True))
    return Rows(**after)


def flat(rows: Rows) -> dict[str, Tensor]:
    return {f"{name}.{kind}": part for name, slot in rows._asdict().items() for kind, part in slot._asdict().items()
            if part is not None}  # fmt: skip


@on_every_size
@on_every_backend
def test_decode_loss_is_a_decode_held_against_its_target(backend, tokens, k, d_in, d_sae):
    values, indices = draw_code(tokens, k, d_sae)
    W_dec, target = draw(d_sae, d_in, seed=3), draw(tokens, d_in, seed=4)
    residual = (values.unsqueeze(-1) * W_dec[indices]).sum(dim=1) - target
    exact = {
        "residual": residual,
        "squares": residual.square().sum(dim=1),
        "dots": (residual.unsqueeze(1) * W_dec[indices]).sum(dim=-1),
    }
    found = decode_loss(values.float(), indices, W_dec.float(), target.float(), backend=backend)
    require_close(found._asdict(), exact, 1e-6)


@pytest.mark.parametrize("with_extra", [False, True])
@on_every_size
@on_every_backend
def test_gradients_of_the_rows_are_sums_over_tokens_without_their_parallel_part(
    backend, tokens, k, d_in, d_sae, with_extra
):
    slopes, rows, extra = draw_step(tokens, k, d_in, d_sae)
    extra = extra if with_extra else None
    exact = exact_gradients(slopes, rows, extra)
    table = transpose(slopes.indices, d_sae)
    found = row_gradients(
        to(torch.float32, slopes), table, to(torch.float32, rows), extra=to(torch.float32, extra), backend=backend
    )
    size = exact["W_dec"].norm() + (exact["W_dec"] + rows.W_dec.weight).norm()  # d_in = 1 leaves nothing but rounding
    assert float((found.W_dec.double() - exact["W_dec"]).norm() / size) <= 2e-6
    require_close(
        {"W_enc": found.W_enc, "b_enc": found.b_enc}, {"W_enc": exact["W_enc"], "b_enc": exact["b_enc"]}, 1e-6
    )


@on_every_size
@on_every_backend
def test_rows_move_by_adam_and_decoder_rows_come_back_to_unit_length(backend, tokens, k, d_in, d_sae):
    slopes, rows, extra = draw_step(tokens, k, d_in, d_sae)
    exact = exact_step(rows, exact_gradients(slopes, rows, extra), step=7, lr=0.01)
    moved = to(torch.float32, rows)
    table = transpose(slopes.indices, d_sae)
    rates = Rates.at(7, 0.01, DEVICE)
    rows_adam(to(torch.float32, slopes), table, moved, rates, extra=to(torch.float32, extra), backend=backend)
    require_close(flat(moved), flat(exact), 2e-6)
    assert torch.allclose(moved.W_dec.weight.norm(dim=1), torch.ones(d_sae, device=DEVICE), atol=1e-6)


@on_every_backend
def test_a_step_that_is_not_finite_changes_nothing_and_copies_follow_the_weights(backend):
    slopes, rows, extra = draw_step(5, 4, 24, 12)
    slopes, rows, extra = (to(torch.float32, part) for part in (slopes, rows, extra))
    rows = rows._replace(
        W_enc=rows.W_enc._replace(copy=rows.W_enc.weight.bfloat16()),
        W_dec=rows.W_dec._replace(copy=rows.W_dec.weight.bfloat16()),
    )
    table, before = transpose(slopes.indices, 12), to(torch.float32, rows)
    stopped = Rates.at(7, 0.01, DEVICE)._replace(found_inf=torch.ones((), device=DEVICE))
    rows_adam(slopes, table, rows, stopped, extra=extra, backend=backend)
    for name, part in flat(rows).items():
        assert torch.equal(part.float(), flat(before)[name]), name
    rows_adam(slopes, table, rows, Rates.at(7, 0.01, DEVICE), extra=extra, backend=backend)
    assert not torch.allclose(rows.W_dec.weight, before.W_dec.weight, atol=1e-4)
    cut = torch.finfo(torch.bfloat16).eps if backend == "triton" and INTERPRETED else 0.0  # it cuts off, a GPU rounds
    for slot in (rows.W_enc, rows.W_dec):
        assert torch.allclose(slot.copy, slot.weight.bfloat16(), rtol=cut, atol=0.0)


@on_every_backend
def test_the_owned_step_is_the_step_in_two_passes(backend):
    slopes, rows, extra = (to(torch.float32, part) for part in draw_step(12, 4, 24, 16))
    table, rates = transpose(slopes.indices, 16), Rates.at(3, 0.01, DEVICE)
    owned, whole = to(torch.float32, rows), to(torch.float32, rows)
    rows_adam(slopes, table, owned, rates, extra=extra, backend=backend)
    adam_rows_(whole, row_gradients(slopes, table, whole, extra=extra, backend=backend), rates)
    require_close(flat(owned), {name: part.double() for name, part in flat(whole).items()}, 1e-6)


@on_every_backend
def test_sums_of_pre_acts_that_were_taken_before_are_not_taken_again(backend):
    slopes, rows, extra = (to(torch.float32, part) for part in draw_step(6, 3, 8, 5))
    table, rates = transpose(slopes.indices, 5), Rates.at(3, 0.01, DEVICE)
    given = slopes._replace(bias=draw(5, seed=77).float())
    plain = row_gradients(slopes, table, rows, extra=extra, backend=backend).b_enc
    added = plain - latent_sums(slopes.pre_acts, slopes.indices, table, backend=backend)  # by the dead
    gradients = row_gradients(given, table, rows, extra=extra, backend=backend)
    assert torch.allclose(gradients.b_enc, given.bias + added, atol=1e-6)
    assert torch.equal(given.bias, draw(5, seed=77).float())
    owned, whole = to(torch.float32, rows), to(torch.float32, rows)
    rows_adam(given, table, owned, rates, extra=extra, backend=backend)
    adam_rows_(whole, gradients, rates)
    assert torch.allclose(owned.b_enc.weight, whole.b_enc.weight, atol=1e-6)
    assert not torch.allclose(owned.b_enc.exp_avg, rows.b_enc.exp_avg + 0.1 * (plain - rows.b_enc.exp_avg), atol=1e-4)
    with pytest.raises(ConfigError, match=r"bias is \[4\]"):
        rows_adam(given._replace(bias=given.bias[:4]), table, owned, rates, backend=backend)


def draw_flat(tokens: int, d_in: int, d_sae: int, counts: list[int]) -> tuple[Slopes, Tensor, Rows, Extra]:
    """A step whose tokens have these numbers of entries, and a rectangle that says the same with zeros."""
    slopes, rows, extra = draw_step(tokens, max(counts), d_in, d_sae)
    there = torch.arange(max(counts), device=DEVICE) < torch.tensor(counts, device=DEVICE)[:, None]
    whole = slopes._replace(values=slopes.values * there, pre_acts=slopes.pre_acts * there)
    parts = {name: getattr(slopes, name)[there] for name in ("values", "pre_acts", "indices")}
    flat_slopes = slopes._replace(**parts, tokens=there.nonzero()[:, 0])
    return flat_slopes, whole, rows, extra


@pytest.mark.parametrize("counts", [[4, 0, 2, 1, 0], [1, 7, 1, 1, 2]])
@on_every_backend
def test_flat_entries_are_a_rectangle_without_its_zeros(backend, counts):
    flat_slopes, whole, rows, extra = draw_flat(5, 33, 12, counts)
    exact = exact_step(rows, exact_gradients(whole, rows, extra), step=7, lr=0.01)
    slopes, moved, rates = to(torch.float32, flat_slopes), to(torch.float32, rows), Rates.at(7, 0.01, DEVICE)
    table = transpose(slopes.indices, 12)
    rows_adam(slopes, table, moved, rates, extra=to(torch.float32, extra), backend=backend)
    require_close(flat(moved), flat(exact), 2e-6)
    sums = dispatch.latent_sums(slopes.pre_acts, slopes.indices, table, backend=backend)
    require_close({"b": sums}, {"b": exact_gradients(whole, rows, None)["b_enc"]}, 1e-6)
    W_dec, target = rows.W_dec.weight, flat_slopes.target
    residual = (whole.values.unsqueeze(-1) * W_dec[whole.indices]).sum(dim=1) - target
    exact_loss = {
        "residual": residual,
        "squares": residual.square().sum(dim=1),
        "dots": (residual[flat_slopes.tokens] * W_dec[flat_slopes.indices]).sum(dim=-1),
    }
    found = decode_loss(
        slopes.values, slopes.indices, W_dec.float(), slopes.target, tokens=slopes.tokens, backend=backend
    )
    require_close(found._asdict(), exact_loss, 1e-6)


@on_every_backend
def test_where_nothing_fires_what_is_left_is_the_target(backend):
    slopes, _, rows, _ = (to(torch.float32, part) for part in draw_flat(5, 33, 12, [0] * 4 + [1]))
    slopes = Slopes(slopes.target, slopes.residual, *(None if part is None else part[:0] for part in slopes[2:]))
    W_dec, table = rows.W_dec.weight, transpose(slopes.indices, 12)
    found = decode_loss(slopes.values, slopes.indices, W_dec, slopes.target, tokens=slopes.tokens, backend=backend)
    assert torch.equal(found.residual, -slopes.target) and found.dots.shape == (0,)
    gradients = row_gradients(slopes, table, rows, backend=backend)
    assert not any(part.any() for part in gradients)
    with pytest.raises(ConfigError, match=r"indices are \[0\] and their tokens \[3\]; give flat lists"):
        row_gradients(slopes._replace(tokens=torch.arange(3, device=DEVICE)), table, rows, backend=backend)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_token_widens_the_rows_it_names_and_no_dictionary(dtype, monkeypatch):
    from sae_forge.kernels import cpu

    (values, indices), W_dec = draw_code(3, 4, 50), draw(50, 7, seed=3).to(dtype)
    whole = cpu._decode(values.float(), indices, W_dec.float()).to(dtype)
    widened, wide = [], cpu._wide
    monkeypatch.setattr(cpu, "_wide", lambda tensor: (widened.append(len(tensor)), wide(tensor))[1])
    assert torch.equal(sparse_decode(values.float(), indices, W_dec, backend="cpu"), whole)
    assert max(widened) == indices.numel() < len(W_dec)
    many = indices.repeat(8, 1)
    assert torch.equal(sparse_decode(values.float().repeat(8, 1), many, W_dec, backend="cpu"), whole.repeat(8, 1))
    assert max(widened) == len(W_dec) < many.numel()


def test_a_cacheful_at_a_time_is_the_whole(monkeypatch):
    from sae_forge.kernels import cpu

    slopes, rows, extra = (to(torch.float32, part) for part in draw_step(40, 4, 24, 50))
    table, rates = transpose(slopes.indices, 50), Rates.at(3, 0.01, DEVICE)
    found = []
    for piece in (2**18, 24 * 7):
        monkeypatch.setattr(cpu, "PIECE", piece)
        moved = to(torch.float32, rows)
        rows_adam(slopes, table, moved, rates, extra=extra, backend="cpu")
        decoded = decode_loss(slopes.values, slopes.indices, rows.W_dec.weight, slopes.target, backend="cpu")
        found.append(flat(moved) | decoded._asdict())
    require_close(found[1], {name: part.double() for name, part in found[0].items()}, 1e-6)


def test_what_cannot_be_a_step_is_refused_by_name():
    slopes, rows, _ = (to(torch.float32, part) for part in draw_step(5, 2, 6, 9))
    table, rates = transpose(slopes.indices, 9), Rates.at(1, 0.01, DEVICE)
    with pytest.raises(ConfigError, match=r"target is \[4, 6\]; beside the other tensors it must be \[5, 6\]"):
        rows_adam(slopes._replace(target=slopes.target[:4]), table, rows, rates)
    with pytest.raises(ConfigError, match=r"offsets is \[13\]; .* must be \[10\]"):
        rows_adam(slopes, transpose(slopes.indices, 12), rows, rates)
    with pytest.raises(BackendError, match=r"target is torch.float32 and residual torch.bfloat16; give both in one"):
        rows_adam(slopes._replace(residual=slopes.residual.bfloat16()), table, rows, rates)
    with pytest.raises(ConfigError, match="k=10 of each token, but there are 9"):
        topk(torch.ones(2, 9, device=DEVICE), 10)
    with pytest.raises(ConfigError, match=r"target is \[5, 7\]; .* must be \[5, 6\]"):
        decode_loss(slopes.values, slopes.indices, rows.W_dec.weight, torch.ones(5, 7, device=DEVICE))


@pytest.mark.parametrize(
    ("part", "change", "kind", "said"),
    [
        ("indices", lambda part: part + 9, ConfigError, "names no latent; the SAE has latents 0 to 8"),
        ("indices", lambda part: part.float(), BackendError, "indices"),
        ("values", lambda part: part.bfloat16(), BackendError, "values are torch.bfloat16"),
        ("W_dec.exp_avg", lambda part: part[:, :2].contiguous(), ConfigError, r"W_dec.exp_avg is \[9, 2\]"),
        ("W_enc.weight", lambda part: part.T.contiguous().T, ConfigError, "W_enc.weight is torch.float32 with strides"),
        ("b_enc.weight", lambda part: part.bfloat16(), ConfigError, "b_enc.weight is torch.bfloat16"),
        ("extra.W_enc", lambda part: part[:, :2], ConfigError, r"extra.W_enc is \[3, 2\]"),
        ("extra.row_of", lambda part: part.to("meta"), BackendError, "extra.row_of on meta"),
        ("rates", lambda part: Rates(*(number.to("meta") for number in part)), BackendError, "lr on meta"),
    ],
)
@on_every_backend
def test_no_kernel_is_handed_what_would_break_it(backend, part, change, kind, said):
    slopes, rows, extra = (to(torch.float32, each) for each in draw_step(5, 2, 6, 9))
    given = {"slopes": slopes, "rows": rows, "extra": extra, "rates": Rates.at(1, 0.01, DEVICE)}
    table = transpose(slopes.indices, 9)
    if part == "rates":
        given["rates"] = change(given["rates"])
    elif part.startswith("extra."):
        name = part.removeprefix("extra.")
        given["extra"] = extra._replace(**{name: change(getattr(extra, name))})
    elif "." in part:
        slot, name = part.split(".")
        held = getattr(rows, slot)
        given["rows"] = rows._replace(**{slot: held._replace(**{name: change(getattr(held, name))})})
    else:
        given["slopes"] = slopes._replace(**{part: change(getattr(slopes, part))})
    with pytest.raises((ConfigError, BackendError), match=said) as caught:
        rows_adam(given["slopes"], table, given["rows"], given["rates"], extra=given["extra"], backend=backend)
    assert caught.type in (kind, ConfigError)


def test_a_backend_or_a_device_that_does_not_exist_is_refused():
    with pytest.raises(BackendError, match="backend 'tritn' is unknown; choose one of auto, reference"):
        topk(torch.ones(2, 9), 3, backend="tritn")
    with pytest.raises(BackendError, match="meta device hold no numbers"):
        topk(torch.ones(2, 9, device="meta"), 3)
    with pytest.raises(ConfigError, match=r"pre_acts are torch.int64 \[2, 9\]; give floats"):
        topk(torch.ones(2, 9, dtype=torch.int64), 3)
    with pytest.raises(ConfigError, match=r"b_enc is \[8\]; .* must be \[9\]"):
        topk_encode(torch.ones(2, 4), torch.ones(4, 9), torch.ones(8), None, 3)


def test_dense_products_are_chosen_where_a_token_keeps_many_latents():
    weights = torch.empty(64, 4)
    assert dispatch._choose("auto", weights, k=4, d_sae=64).__name__.endswith("cpu")
    assert dispatch._choose("auto", weights, k=5, d_sae=64).__name__.endswith("dense")


@pytest.mark.parametrize("d_sae", [48, 37])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pre_acts_above_a_bound_are_all_found_in_the_order_of_their_tokens(dtype, d_sae):
    x, W, b = draw(300, 24, seed=1).to(dtype), draw(24, d_sae, seed=2).to(dtype), draw(d_sae, seed=3).float()
    pre_acts = torch.addmm(b.to(dtype), x, W).float()
    for bound in (-1.0, 0.0, 5.0, 1e9):
        values, tokens, latents = dispatch.encode_above(x, W.T.contiguous().T, b, bound)
        assert (tokens.diff() >= 0).all()
        found = torch.zeros_like(pre_acts).index_put((tokens, latents), values, accumulate=True)
        assert torch.allclose(found, torch.where(pre_acts > max(bound, 0.0), pre_acts, 0.0), rtol=1e-5, atol=1e-4)
    x[7, 3] = torch.nan
    values, tokens, _ = dispatch.encode_above(x, W, b, 0.0)
    assert values.isnan().sum() == 1 and len(values) < 300 * d_sae


@pytest.mark.parametrize("onednn", [True, False])
def test_the_encoder_product_is_the_same_by_either_library(onednn, monkeypatch):
    from sae_forge.kernels import affine

    if onednn and not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(affine, "_onednn_is_faster", lambda: onednn)
    x, W, b = draw(7, 33, seed=1), draw(19, 33, seed=2), draw(19, seed=3)
    found = affine.affine(x.float(), W.float().T, b.float())
    assert error(found, x @ W.T + b) <= 1e-6
    assert error(affine.product(x.float().T, found), x.T @ (x @ W.T + b)) <= 1e-6
