"""The Triton kernels: each is its definition in float64, in Triton's interpreter, and compiles for what it runs on.

The definitions are those of ``kernels.reference``. Interpreted programs are slow, so sizes are tiny and tiles and
segments are made small enough that every path is taken.
"""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sae_forge.errors import BackendError
from sae_forge.kernels import reference, triton_tuning
from sae_forge.kernels.moments import Moments
from sae_forge.kernels.rows import Extra, Rates, Rows, Slopes, Slot
from sae_forge.kernels.transpose import Transpose, transpose

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
where_triton_runs = pytest.mark.interpreted
on_every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
BOUND = 1e-6

if INTERPRETED or DEVICE == "cuda":
    from sae_forge.kernels import triton_decode_loss
    from sae_forge.kernels import triton_form as form


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh memory is full of NaN, so an output that is not written cannot pass."""

    def poison(make):
        def made(*args, **kwargs):
            tensor = make(*args, **kwargs)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor.fill_(2**14 - 1)

        return made

    monkeypatch.setattr(torch, "empty", poison(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poison(torch.empty_like))


def draw(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Numbers that ``dtype`` holds, in float64."""
    made = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return made.to(dtype).double().to(DEVICE)


def draw_indices(tokens: int, k: int, d_sae: int) -> Tensor:
    """Repeats within a token and across them; nobody fires the last latent."""
    indices = torch.randint(max(1, d_sae - 1), (tokens, k), generator=torch.Generator().manual_seed(2))
    indices[0] = indices[0, 0]
    return indices.to(DEVICE)


def error(found: Tensor, exact: Tensor) -> float:
    """Relative norm of the difference."""
    return float((found.double() - exact).norm() / exact.norm().clamp_min(1e-30))


def require_close(found: tuple[Tensor, ...], exact: tuple[Tensor, ...], bound: float = BOUND) -> None:
    errors = [error(one, other) for one, other in zip(found, exact, strict=True)]
    assert max(errors) <= bound, errors


# ---- top-k --------------------------------------------------------------------------------------


def require_topk(pre_acts: Tensor, k: int) -> None:
    """The values and the set of columns are those of a stable sort."""
    values, indices = form.topk(pre_acts, k)
    assert values.dtype == pre_acts.dtype
    assert torch.equal(values, pre_acts.gather(1, indices.long()))
    wanted = reference.topk(pre_acts.double(), k)[1]
    assert torch.equal(indices.long().sort(dim=1).values, wanted.sort(dim=1).values)


@pytest.fixture(params=["as tuned", "narrow"])
def narrow_topk(request, monkeypatch):
    """Strips of 16 columns and a list of 16, so that a small row takes many strips and overflows."""
    if request.param == "narrow":
        launch = {"BLOCK": 16, "CANDIDATES": 16, "CHUNK": 16, "num_warps": 1}
        monkeypatch.setattr(triton_tuning, "topk", lambda d_sae, k: launch)


@where_triton_runs
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_topk_is_a_stable_sort(dtype, narrow_topk):
    distinct = draw(2, 45, seed=1).to(dtype)
    require_topk(distinct, 5)
    few = draw(2, 45, seed=2).round().to(dtype)  # a handful of numbers: most are equal to the one that decides
    require_topk(few, 7)
    require_topk(-few.abs(), 16)
    equal = torch.zeros(2, 34, device=DEVICE, dtype=dtype)
    equal[1, ::2] = -0.0
    require_topk(equal, 9)
    in_few_lanes = torch.zeros(1, 128, device=DEVICE, dtype=dtype)
    in_few_lanes[0, 3::16] = draw(8, seed=3).abs().to(dtype)
    in_few_lanes[0, 5::16] = draw(8, seed=4).abs().to(dtype)
    require_topk(in_few_lanes, 11)
    edges = torch.tensor([[float("inf"), 1.0, float("-inf"), 3e38, -3e38, 1e-40, -1e-40]], device=DEVICE).to(dtype)
    for k in (1, 4, 7):
        require_topk(edges, k)


@where_triton_runs
def test_topk_of_many_strips_and_of_all_columns():
    require_topk(draw(1, 5000, seed=1).float(), 32)
    require_topk(draw(1, 2100, seed=2).bfloat16(), 512)
    require_topk(draw(2, 600, seed=3).float(), 300)
    require_topk(draw(2, 40, seed=4).bfloat16(), 40)
    require_topk(draw(3, 1, seed=5).float(), 1)


@where_triton_runs
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_topk_of_nan_names_columns_that_are_there_once_each(dtype, narrow_topk):
    broken = draw(3, 70, seed=1).to(dtype)
    broken[0] = float("nan")
    broken[1, ::3] = float("nan")
    broken[2] = -torch.tensor(float("nan"))
    _, indices = form.topk(broken, 9)
    for row in indices.long():
        assert len(row.unique()) == 9
        assert 0 <= int(row.min()) <= int(row.max()) < 70


@where_triton_runs
def test_a_k_no_program_can_hold_is_refused():
    with pytest.raises(BackendError, match="takes 1 to 512 of 600, not k=513; use reference"):
        form.topk(draw(1, 600, seed=1).float(), 513)
    code = torch.zeros(1, 513, device=DEVICE)
    with pytest.raises(BackendError, match="at most 512 latents per token, not k=513"):
        form.decode_loss(code, code.long(), code.T.contiguous(), code[:, :1])


# ---- decode -------------------------------------------------------------------------------------

SIZES = [(7, 3, 13, 29), (3, 11, 17, 12), (2, 8, 600, 19), (4, 1, 1, 5), (1, 4, 64, 4)]
"""tokens, k, d_in, d_sae: nothing a multiple of a tile, k beyond a tile, d_in beyond a tile, k equal to d_sae."""


@where_triton_runs
@pytest.mark.parametrize(("dtype", "integer"), [(torch.float32, torch.int64), (torch.bfloat16, torch.int32)])
@pytest.mark.parametrize(("tokens", "k", "d_in", "d_sae"), SIZES)
def test_decode_and_loss_and_products_are_the_dense_ones(tokens, k, d_in, d_sae, dtype, integer):
    values, indices = draw(tokens, k, seed=1), draw_indices(tokens, k, d_sae).to(integer)
    values[:, ::3] = 0.0
    W_dec, target = draw(d_sae, d_in, seed=3, dtype=dtype), draw(tokens, d_in, seed=4, dtype=dtype)
    exact = reference.decode_loss(values, indices, W_dec, target)
    found = form.decode_loss(values.float(), indices, W_dec.to(dtype), target.to(dtype))
    rounding = BOUND if dtype == torch.float32 else torch.finfo(dtype).eps / 2  # of what is stored, not of the sum
    assert found.residual.dtype == dtype
    assert error(found.residual, exact.residual) <= rounding
    require_close((found.squares, found.dots), (exact.squares, exact.dots))
    decoded = form.decode(values.float(), indices, W_dec.to(dtype))
    assert error(decoded, reference.decode(values, indices, W_dec)) <= rounding
    products = form.value_grad(target.to(dtype), indices, W_dec.to(dtype))
    require_close((products,), (reference.value_grad(target, indices, W_dec),))


@where_triton_runs
@on_every_dtype
def test_more_rows_than_a_token_holds_are_read_twice_to_the_same(dtype, monkeypatch):
    monkeypatch.setattr(triton_decode_loss, "MAX_FUSED_K", 4)
    monkeypatch.setattr(triton_decode_loss, "decode_loss_kernel", None)
    values, indices = draw(3, 5, seed=1), draw_indices(3, 5, 12)
    W_dec, target = draw(12, 37, seed=3, dtype=dtype), draw(3, 37, seed=4, dtype=dtype)
    exact = reference.decode_loss(values, indices, W_dec, target)
    found = form.decode_loss(values.float(), indices, W_dec.to(dtype), target.to(dtype))
    assert found.residual.dtype == dtype
    assert error(found.residual, exact.residual) <= max(BOUND, torch.finfo(dtype).eps / 2)
    require_close((found.squares, found.dots), (exact.squares, exact.dots))


# ---- the batch ----------------------------------------------------------------------------------


@where_triton_runs
@pytest.mark.parametrize("sink_norm", [0.0, 8.0])
@pytest.mark.parametrize(("stored", "dtype"), [(torch.float16, torch.bfloat16), (torch.float32, torch.float32)])
def test_a_batch_is_centred_and_its_variance_is_that_of_what_was_made(stored, dtype, sink_norm, monkeypatch):
    monkeypatch.setattr(triton_tuning, "centred", lambda d_in, dtype: {"SHARE": 4, "WIDTH": 16, "num_warps": 1})
    batch, b_dec = draw(11, 37, seed=1, dtype=stored), draw(37, seed=2).float()
    batch[3], batch[8, :5] = batch[3] * 9, 7.0  # two sinks, of which one is not sink enough where none is one
    rows, moments = form.centred(batch.to(stored), b_dec, 0.5, sink_norm, dtype)
    exact = 0.5 * batch - b_dec.double()
    if sink_norm:
        exact[batch.norm(dim=1) > sink_norm] = 0.0
        assert 2 <= int((exact == 0).all(dim=1).sum()) <= 4
    assert rows.dtype == dtype
    assert error(rows, exact) <= (BOUND if dtype == torch.float32 else torch.finfo(dtype).eps / 2)
    require_close(moments, Moments.of(rows.double()))
    spread = (rows.double() - rows.double().mean(dim=0)).square().sum()
    require_close((moments.variance(11),), (spread,))


@where_triton_runs
def test_a_row_that_is_no_number_is_no_sink_and_is_noticed():
    for value in (float("nan"), float("inf"), 3e38):
        batch = draw(3, 5, seed=1).float()
        batch[1, 2] = value
        rows, moments = form.centred(batch, torch.zeros(5, device=DEVICE), 1.0, 4.0, torch.float32)
        assert torch.equal(rows[1].isfinite(), batch[1].isfinite())
        assert not torch.isfinite(moments.variance(3))


# ---- rows ---------------------------------------------------------------------------------------


def slot(weight: Tensor, seed: int, copy: torch.dtype | None) -> Slot:
    """A weight with moments of its size, as after some steps, and with a stale copy."""
    stale = None if copy is None else torch.full_like(weight, 9.0, dtype=copy)
    mean, square = (draw(*weight.shape, seed=seed + i) * 0.1 for i in (1, 2))
    return Slot(weight, mean.float().double(), square.abs().float().double(), stale)


class Case:
    """A batch over some latents in float64, and the same in the precision the kernels read."""

    def __init__(self, tokens: int, k: int, d_in: int, d_sae: int, dtype: torch.dtype, *, extra: bool) -> None:
        copy = None if dtype == torch.float32 else dtype
        W_dec = draw(d_sae, d_in, seed=10)
        W_dec = (W_dec / W_dec.norm(dim=1, keepdim=True)).float().double()
        weights = (draw(d_sae, d_in, seed=20), W_dec, draw(d_sae, seed=30))
        copies = (copy, copy, None)  # products read the matrices alone
        self.exact_rows = Rows(*map(slot, weights, (40, 43, 46), copies))
        self.rows = Rows(*(Slot(*(_narrow(part) for part in held)) for held in self.exact_rows))
        target, residual = (draw(tokens, d_in, seed=seed, dtype=dtype) for seed in (50, 51))
        values, pre_acts = draw(tokens, k, seed=52).abs(), draw(tokens, k, seed=53)
        indices = draw_indices(tokens, k, d_sae)
        indices[:, 0] = 1  # a latent that fires on every token
        self.exact_slopes = Slopes(target, residual, values, pre_acts, indices)
        self.slopes = Slopes(target.to(dtype), residual.to(dtype), values.float(), pre_acts.float(), indices.int())
        self.table: Transpose = transpose(indices, d_sae)
        self.extra = self.exact_extra = None
        if extra:
            row_of = torch.full((d_sae,), -1, dtype=torch.int32, device=DEVICE)
            row_of[[d_sae - 1, 1]] = torch.tensor([0, 2], dtype=torch.int32, device=DEVICE)
            dense = (draw(3, d_in, seed=60), draw(3, d_in, seed=61), draw(3, seed=62))
            self.exact_extra, self.extra = Extra(row_of, *dense), Extra(row_of, *(part.float() for part in dense))

    def gradients(self) -> tuple[Tensor, ...]:
        return form.row_gradients(self.slopes, self.table, self.rows, self.extra)

    def exact_gradients(self) -> tuple[Tensor, ...]:
        return reference.row_gradients(self.exact_slopes, self.table, self.exact_rows, self.exact_extra)

    def step(self, *, broken: bool = False) -> tuple[Tensor, ...]:
        rates = rates_of(broken=broken)
        form.rows_adam(self.slopes, self.table, self.rows, rates, self.extra)
        return _state(self.rows)

    def exact_step(self) -> tuple[Tensor, ...]:
        rates = Rates(*(number.double() for number in rates_of()))
        reference.rows_adam(self.exact_slopes, self.table, self.exact_rows, rates, self.exact_extra)
        return _state(self.exact_rows)


def rates_of(*, broken: bool = False) -> Rates:
    rates = Rates.at(3, 1e-2, DEVICE)
    return rates._replace(found_inf=torch.ones_like(rates.found_inf)) if broken else rates


def _narrow(part: Tensor | None) -> Tensor | None:
    if part is None or part.dtype != torch.float64:
        return None if part is None else part.clone()
    return part.float()


def _state(rows: Rows) -> tuple[Tensor, ...]:
    """Weights and moments; the copies are looked at apart."""
    return tuple(part for held in rows for part in held[:3])


CASES = [(9, 3, 37, 6), (12, 2, 48, 5), (5, 4, 1, 7), (6, 1, 17, 4)]
"""tokens, k, d_in, d_sae: rows of two tiles, of one and a half, of one number; one entry a token."""
on_every_case = pytest.mark.parametrize("case", CASES)


@pytest.fixture(params=[256, 4], ids=["whole", "in segments"])
def segment(request, monkeypatch) -> None:
    monkeypatch.setattr(triton_tuning, "SEGMENT", request.param)


@where_triton_runs
@pytest.mark.parametrize(("extra", "segment"), [(False, 256), (True, 4)], indirect=["segment"])
@on_every_dtype
@on_every_case
def test_gradients_and_the_step_are_the_defined_ones(case, dtype, extra, segment):
    made = Case(*case, dtype, extra=extra)
    found = made.gradients()
    require_close(found, made.exact_gradients())
    along = (found[1].double() * made.exact_rows.W_dec.weight).sum(dim=1)
    assert float(along.abs().max()) <= BOUND * float(found[1].norm(dim=1).max().clamp_min(1.0))
    require_close(made.step(), made.exact_step())
    norms = made.rows.W_dec.weight.double().norm(dim=1)
    assert torch.allclose(norms, torch.ones_like(norms), atol=BOUND, rtol=0)
    for held in made.rows:
        if held.copy is not None:  # the interpreter cuts off where a GPU rounds
            assert torch.allclose(held.copy.double(), held.weight.double(), rtol=torch.finfo(dtype).eps, atol=0)


@where_triton_runs
def test_rows_no_program_holds_are_summed_in_pieces(monkeypatch, segment):
    monkeypatch.setattr(triton_tuning, "MAX_ROW", 32)
    monkeypatch.setattr(triton_tuning, "PIECE", 32)
    made = Case(9, 3, 75, 5, torch.float32, extra=True)
    require_close(made.gradients(), made.exact_gradients())
    require_close(made.step(), made.exact_step())


@where_triton_runs
@on_every_dtype
def test_nothing_is_written_where_the_loss_was_not_finite(dtype, segment):
    made = Case(6, 3, 37, 4, dtype, extra=True)
    before = [part.clone() for held in made.rows for part in held if part is not None]
    made.slopes.residual.fill_(float("nan"))
    made.slopes.pre_acts.fill_(float("inf"))
    made.step(broken=True)
    after = [part for held in made.rows for part in held if part is not None]
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old, new)


@where_triton_runs
def test_everything_is_the_same_to_the_bit_twice(segment):
    def run() -> tuple[Tensor, ...]:
        made = Case(6, 3, 37, 4, torch.bfloat16, extra=True)
        slopes = made.slopes
        decoded = form.decode_loss(slopes.values, slopes.indices, made.rows.W_dec.copy, slopes.target)
        sums = form.latent_sums(slopes.values, slopes.indices, made.table)
        return (*decoded, sums, *form.topk(slopes.target, 5), *made.gradients(), *made.step())

    for one, other in zip(run(), run(), strict=True):
        assert torch.equal(one, other)


@where_triton_runs
@on_every_dtype
def test_sums_of_rows_and_of_numbers_are_the_dense_ones(dtype, segment):
    tokens, k, d_in, d_sae = 11, 3, 21, 5
    indices = draw_indices(tokens, k, d_sae)
    values, rows = draw(tokens, k, seed=1), draw(tokens, d_in, seed=3, dtype=dtype)
    table = transpose(indices, d_sae)
    found = form.weight_grad(rows.to(dtype), values.float(), indices, table)
    require_close((found,), (reference.weight_grad(rows, values, indices, table),))
    found = form.latent_sums(values.float(), indices, table)
    require_close((found,), (reference.latent_sums(values, indices, table),))
    assert torch.equal(found[-1], torch.zeros_like(found[-1]))


@where_triton_runs
@on_every_dtype
def test_all_rows_are_summed_by_their_weights_in_shares(dtype, monkeypatch):
    launch = {"SHARE": 8, "ROWS": 4, "WIDTH": 16, "num_warps": 1}
    monkeypatch.setattr(triton_tuning, "sum_of_rows", lambda d_in, dtype: launch)
    rows, weights = draw(21, 37, seed=1, dtype=dtype), draw(21, seed=2)
    found = form.sum_of_rows(rows.to(dtype), weights.float())
    assert found.dtype == torch.float32
    require_close((found,), (weights.float().double() @ rows,))


class NothingWaits(TorchDispatchMode):
    """Refuse operations that would bring a number from the device to the host."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert not re.search(r"local_scalar_dense|nonzero|unique|masked_select|item|equal", str(func)), func
        return func(*args, **(kwargs or {}))


@where_triton_runs
def test_no_launch_waits_for_the_device(segment):
    made = Case(6, 3, 37, 4, torch.bfloat16, extra=True)
    rates = rates_of()
    with NothingWaits():
        form.topk(made.slopes.target, 5)
        form.decode_loss(made.slopes.values, made.slopes.indices, made.rows.W_dec.copy, made.slopes.target)
        form.row_gradients(made.slopes, made.table, made.rows, made.extra)
        form.rows_adam(made.slopes, made.table, made.rows, rates, made.extra)
        form.latent_sums(made.slopes.values, made.slopes.indices, made.table)


@pytest.mark.skipif(INTERPRETED or DEVICE == "cuda", reason="each runs in its own process there")
def test_a_test_ends_as_it_did_in_the_interpreters_process(monkeypatch):
    import interpreted

    item = SimpleNamespace(get_closest_marker=lambda name: name, path=Path("file"), config=None, name="test[case]")
    for said, kind in (("assert 1 == 2", pytest.fail.Exception), ("skipped: no GPU", pytest.skip.Exception)):
        monkeypatch.setitem(interpreted._VERDICTS, item.path, {item.name: said})
        with pytest.raises(kind, match=said.removeprefix("skipped: ")):
            interpreted.pytest_pyfunc_call(item)
    monkeypatch.setitem(interpreted._VERDICTS, item.path, {item.name: ""})
    assert interpreted.pytest_pyfunc_call(item)
    with pytest.raises(KeyError):  # one that was not run there did not pass
        interpreted.pytest_pyfunc_call(SimpleNamespace(**{**vars(item), "name": "another"}))


# ---- ahead of time ------------------------------------------------------------------------------


class Compiled(NamedTuple):
    """A target of the table: what it is called to the compiler, and what a program can have on it."""

    arch: int | str
    on: triton_tuning.Target
    shared: int
    """Bytes of shared memory."""


TARGETS = {
    "sm_90": Compiled(90, triton_tuning.Target(prefetches=True), 227 * 1024),
    "gfx942": Compiled("gfx942", triton_tuning.Target(64), 64 * 1024),
    "sm_80": Compiled(80, triton_tuning.Target(prefetches=True), 163 * 1024),
    "sm_89": Compiled(89, triton_tuning.Target(beside_tail=4, prefetches=True), 99 * 1024),
    "sm_100": Compiled(100, triton_tuning.Target(alone=4, prefetches=True), 227 * 1024),
    "sm_120": Compiled(120, triton_tuning.Target(alone=4, prefetches=True), 99 * 1024),
    "gfx950": Compiled("gfx950", triton_tuning.Target(64), 160 * 1024),
    "gfx1100": Compiled("gfx1100", triton_tuning.Target(), 64 * 1024),
}
IN_THE_SUITE = ("sm_90", "gfx942")
FEW = (2560, 4096, 5376)
"""Widths that the suite compiles for: each has spilled on some target, or takes the most registers."""
MOST_THREADS = 1024
WIDTHS, LATENTS = (1152, 2304, 2560, 3584, 4096, 5120, 5376), (16384, 32768, 65536)
COUNTS = (32, 64, 128, 256)
STATE = ("weight", "exp_avg", "exp_avg_sq", "size", "root", "found_inf")
DIVISIBLE = ("D_IN", "D_SAE", "K", "SEGMENT")
"""Numbers that are multiples of 16 at these sizes, which a launch tells the compiler by itself."""


def launches(
    on: triton_tuning.Target, widths: tuple[int, ...]
) -> Iterator[tuple[Any, dict[str, str | None], dict[str, Any]]]:
    """Every kernel as the table launches it: its pointers (None: not given), its constants and its warps."""
    from sae_forge.kernels import triton_centred, triton_decode_loss, triton_rows, triton_sparse_decode, triton_topk
    from sae_forge.kernels.triton_sum_of_rows import sum_of_rows_kernel

    adam, entries = triton_rows.ADAM, {"BLOCK": triton_rows.ENTRIES}
    summed = {"tokens": "*i32", "offsets": "*i64", "beyond": "*i64", "weights": "*fp32", "partial": "*fp32"}
    extra = {"row_of": "*i32", "extra": "*fp32"}
    stepping = dict.fromkeys(STATE, "*fp32") | {"out": None}
    unstepping = dict.fromkeys((*STATE, "copy")) | {"out": "*fp32"}
    for others in ("*fp32", None):
        pointers = {"entries": "*i64", "tokens": "*i32", "first": "*fp32", "first_out": "*fp32"}
        yield triton_rows.arrange_kernel, {**pointers, "second": others, "second_out": others}, entries
    numbers = {"numbers": "*fp32", "entries": "*i64", "offsets": "*i64", "out": "*fp32"}
    yield triton_rows.numbers_kernel, numbers, {**entries, "num_warps": 1}
    for kind, dtype in (("*bf16", torch.bfloat16), ("*fp32", torch.float32)):
        bits, copy = kind.replace("bf", "i").replace("fp", "i"), "*bf16" if kind == "*bf16" else None
        for sinks in (True, False):
            given = {"batch": kind, "target": kind, **dict.fromkeys(("b_dec", "sums", "squares"), "*fp32")}
            given |= {"scale": "fp32", "sink_norm": "fp32"}
            yield triton_centred.centred_kernel, given, {**triton_tuning.centred(widths[0], dtype), "SINKS": sinks}
        summed_up = {"rows": kind, "weights": "*fp32", "partial": "*fp32"}
        yield sum_of_rows_kernel, summed_up, triton_tuning.sum_of_rows(widths[0], dtype)
        for d_sae in LATENTS:
            for k in COUNTS:
                pointers = {"pre_acts": bits, "values": bits, "indices": "*i32", "scratch": "*i32"}
                yield triton_topk.topk_kernel, pointers, triton_tuning.topk(d_sae, k)
        for d_in in widths:
            tokens = {"values": "*fp32", "indices": "*i32", "W_dec": kind, "target": kind, "grad": kind, "out": kind}
            tokens |= {"residual": kind, "squares": "*fp32", "dots": "*fp32"}
            for k in COUNTS:
                launch = triton_tuning.decode_loss(d_in, k, dtype)
                yield triton_decode_loss.decode_loss_kernel, tokens, launch
            tiles = triton_tuning.tiles(d_in, dtype)
            for decoded in {kind, "*fp32"}:
                few = triton_tuning.tiles(d_in, dtype, on.beside_tail)
                yield triton_sparse_decode.decode_kernel, tokens | {"out": decoded}, few
                yield triton_sparse_decode.value_grad_kernel, tokens | {"grad": decoded, "out": "*fp32"}, tiles
            vectors = {**summed, "vectors": kind, "owners": "*i64"}
            yield triton_rows.segment_kernel, vectors, tiles
            rows = triton_tuning.rows(d_in, dtype, on)
            held = unstepping | {"weight": "*fp32"}
            for unit, state in ((True, stepping | {"copy": copy}), (False, stepping | {"copy": copy}), (True, held)):
                yield triton_rows.rows_kernel, vectors | extra | state, {**adam, **rows, "UNIT": unit}
            rows = triton_tuning.rows(d_in, dtype, on, stateless=True)
            alone = vectors | dict.fromkeys(extra) | unstepping
            yield triton_rows.rows_kernel, alone, {**adam, **rows, "UNIT": False}


def distinct_launches(on: triton_tuning.Target, widths: tuple[int, ...]) -> list[Any]:
    found = {}
    for kernel, pointers, launch in launches(on, widths):
        used = {name: kind for name, kind in pointers.items() if name in kernel.arg_names}
        found[kernel.__name__, repr(sorted(used.items(), key=str)), repr(launch)] = (kernel, used, launch)
    return list(found.values())


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="interpreted kernels cannot be compiled")
@pytest.mark.parametrize(
    ("name", "widths"),
    [
        *(pytest.param(name, FEW, id=name) for name in IN_THE_SUITE),
        *(pytest.param(name, WIDTHS, id=f"{name} at every width", marks=pytest.mark.long) for name in TARGETS),
    ],
)
def test_every_launch_of_the_table_compiles_without_spills(name, widths, tmp_path):
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    (arch, on, shared), found = TARGETS[name], []
    vendor = "hip" if isinstance(arch, str) else "cuda"
    for kernel, pointers, launch in distinct_launches(on, widths):
        names = kernel.arg_names
        constants = {name: number for name, number in launch.items() if name in names}
        constants |= {name: None for name, kind in pointers.items() if kind is None}
        signature = {n: "constexpr" if n in constants else pointers.get(n, "i32") for n in names}
        said = {name for name in names if signature[name].startswith("*")} | {*DIVISIBLE}
        divisible = [name for name in names if name not in constants and name in said]
        aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in divisible}
        source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=aligned)
        options = {"num_warps": launch.get("num_warps", 4)}
        compiled = triton.compile(source, target=GPUTarget(vendor, arch, on.lanes), options=options)
        about = f"{kernel.__name__} {launch} {pointers} on {name}"
        assert compiled.metadata.shared <= shared, about
        assert options["num_warps"] * on.lanes <= MOST_THREADS, about
        if vendor == "hip":
            spills = re.findall(r"\.(?:vgpr|sgpr)_spill_count: *(\d+)", compiled.asm["amdgcn"])
            assert len(spills) == 2 and not any(map(int, spills)), about
        else:
            assert stack_bytes(compiled.asm["cubin"], tmp_path / "kernel.cubin") == 0, about
        found.append((kernel.__name__, options["num_warps"] * on.lanes, compiled.metadata.shared))
    kernels, threads, held = (set(each) for each in zip(*found, strict=True))
    assert len(kernels) == 10
    print(f"| {name} | {len(found)} | 0 | {max(threads)} | {max(held) / 1024:.0f} of {shared // 1024} KiB |")  # noqa: T201


@pytest.mark.parametrize("lanes", [32, 64])
def test_a_program_has_as_many_threads_whatever_a_warp_holds(lanes):
    """On a target of 64 lanes half the warps, so no gather is cut over more of them."""
    for d_in in (16, 768, 1152, 2304, 2560, 4096, 5376, 8192, 9000):
        for dtype in (torch.bfloat16, torch.float32):
            narrow, launch = (triton_tuning.rows(d_in, dtype, triton_tuning.Target(each)) for each in (32, lanes))
            assert launch["num_warps"] * lanes == max(lanes, narrow["num_warps"] * 32)
            assert {**launch, "num_warps": 0} == {**narrow, "num_warps": 0}


def test_fewer_rows_are_in_flight_where_more_would_spill():
    """On Blackwell beside no state; on Ada beside one, in a row of two parts."""
    plain, blackwell, ada = triton_tuning.Target(), triton_tuning.Target(alone=4), triton_tuning.Target(beside_tail=4)
    for d_in in WIDTHS:
        flight = {
            (on, alone): triton_tuning.rows(d_in, torch.bfloat16, on, stateless=alone)["ROWS"]
            for on in (plain, blackwell, ada)
            for alone in (False, True)
        }
        most = flight[plain, False]
        four = min(4, most)
        assert flight[plain, True] == flight[blackwell, False] == flight[ada, True] == most
        assert flight[blackwell, True] == four
        assert flight[ada, False] == (four if triton_tuning.rows(d_in, torch.bfloat16, plain)["TAIL"] else most)


def test_what_adam_keeps_is_read_early_where_registers_allow_it():
    """And asked for before the gather where the target can; a launch without Adam asks for nothing."""
    for on in (triton_tuning.Target(), triton_tuning.Target(prefetches=True)):
        for d_in in WIDTHS:
            launch = triton_tuning.rows(d_in, torch.bfloat16, on)
            assert launch["TOGETHER"] == (d_in not in (2560, 3584, 4096))
            assert launch["PREFETCH"] == (launch["TOGETHER"] and on.prefetches)
            for other in (
                triton_tuning.rows(d_in, torch.float32, on),
                triton_tuning.rows(d_in, torch.bfloat16, on, stateless=True),
            ):
                assert not other["TOGETHER"] and not other["PREFETCH"]


@pytest.mark.parametrize(
    ("major", "minor", "on"),
    [(8, 0, {}), (8, 9, {"beside_tail": 4}), (9, 0, {}), (10, 0, {"alone": 4}), (12, 0, {"alone": 4})],
)
def test_a_device_is_cut_for_by_what_it_says_of_itself(major, minor, on, monkeypatch):
    said = SimpleNamespace(major=major, minor=minor, warp_size=32)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: said)
    triton_tuning.target.cache_clear()
    assert triton_tuning.target(torch.device("cuda", 1)) == triton_tuning.Target(**on, prefetches=True)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    monkeypatch.setattr(said, "warp_size", 64)
    triton_tuning.target.cache_clear()
    assert triton_tuning.target(torch.device("cuda", 1)) == triton_tuning.Target(64)
    triton_tuning.target.cache_clear()
    assert triton_tuning.target(torch.device("cpu")) == triton_tuning.Target()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_tile_is_neither_a_sliver_of_a_row_nor_much_wider_than_what_is_left(dtype):
    for d_in in range(128, 9000, 7):
        width = triton_tuning.tiles(d_in, dtype)["WIDTH"]
        assert width * dtype.itemsize >= 128, d_in
        assert -(-d_in // width) * width <= 1.25 * d_in + 64, d_in
    for d_in, width in ((1152, 128), (2304, 256), (2305, 512), (2560, 512), (3584, 512)):
        assert triton_tuning.tiles(d_in, torch.bfloat16)["WIDTH"] == width


def stack_bytes(cubin: bytes, file: Path) -> int:
    """Bytes of a thread's own memory: what did not fit its registers."""
    import triton

    file.write_bytes(cubin)
    reader = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    said = subprocess.run([reader, "-res-usage", file], capture_output=True, text=True, check=True)
    return int(re.findall(r"STACK:(\d+)", said.stdout + said.stderr)[0])
