"""Each operation of a training step alone: ours against the ways torch offers, and the peers' kernels where installed.

No form is timed before its result has been held against float64 on a sample; if ours is off, nothing is timed at all.
"""

import argparse
import importlib
import importlib.util
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import exact
import torch
from made_up import CASES, Problem, Sizes, fired, problem
from timing import both, conditions, interleaved, milliseconds, ratios, table, write_json
from torch import Tensor
from torch.nn import functional

from sae_forge.config.train import Backend
from sae_forge.kernels import dispatch
from sae_forge.kernels.rows import (
    DecodeLoss,
    Rates,
    RowGradients,
    Rows,
    Slopes,
    Slot,
    adam_rows_,
    remove_parallel_,
)
from sae_forge.kernels.transpose import Transpose, transpose

OURS = "ours"
HEAD = ("form", "ms", "over ours", "off by")
COPY_BYTES = {"cpu": 2**27, "cuda": 2**30}
"""Enough to pass every cache."""


class Parts(NamedTuple):
    """What a training step has at hand when it comes to the kernels."""

    sizes: Sizes
    half: bool
    rows: Rows
    values: Tensor
    """Acts, fp32."""
    slopes: Slopes
    table: Transpose
    rates: Rates
    pre_acts: Tensor
    """Of as many tokens as an encoder product makes at once."""
    backend: Backend
    """Of ours."""


class Form(NamedTuple):
    """One way of computing."""

    run: Callable[[], Any]
    check: Callable[[], Mapping[str, float]]
    """Runs once; how far off each part of the result is."""


class Operation(NamedTuple):
    """The forms of one operation."""

    forms: dict[str, Form]
    bound: Callable[[str], float]
    """Of a part of the result by name, how far off it may be."""
    moved: int
    """Bytes that no form can do without, were no cache to help."""


def main() -> None:
    """Measure every operation and print a table of each."""
    options = _options()
    device = torch.device(options.device)
    asked = {name: number for name in Sizes._fields if (number := getattr(options, name))}
    sizes = CASES[options.case]._replace(**asked)
    parts = make_parts(problem(sizes, device=device, half=options.bf16, batches=1))
    found: dict[str, Any] = {"sizes": sizes._asdict(), "bf16": options.bf16, "conditions": conditions(device)}
    chosen = {name: make for name, make in OPERATIONS.items() if name in (options.only or OPERATIONS)}
    found["operations"] = {
        name: measure(make(parts), rounds=options.rounds, burst=options.burst, device=device)
        for name, make in chosen.items()
    }
    found["load_after"] = conditions(device)["load"]
    print(found["conditions"] | {"load_after": found["load_after"]})
    print(f"{sizes}{', bf16' if options.bf16 else ''}", end="\n\n")
    for name, measured in found["operations"].items():
        print(show(name, measured), end="\n\n")
    write_json(options.json, found)
    for name, measured in found["operations"].items():
        if OURS in measured["wrong"]:
            raise SystemExit(f"{name}: {measured['wrong'][OURS]}; it was not timed")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--case", choices=tuple(CASES), default="small")
    for name in Sizes._fields:
        parser.add_argument(f"--{name}", type=int, help="overrides the case's")
    parser.add_argument("--only", nargs="*", choices=tuple(OPERATIONS), help="these operations; all if left out")
    parser.add_argument("--bf16", action="store_true", help="gathers and products of bf16 rows")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--burst", type=int, default=1, help="calls in one timed one; a GPU wants many")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="where the single times go")
    return parser.parse_args()


def make_parts(given: Problem, backend: Backend = "auto") -> Parts:
    """Weights, moments and slopes of the sizes and magnitudes that training meets."""
    sizes, half, device = given.sizes, given.half, given.device
    dtype = torch.bfloat16 if half else torch.float32
    weights, draw = given.weights(), torch.Generator(device).manual_seed(11)
    random = partial(torch.randn, generator=draw, device=device)
    indices = fired(sizes, device).to(torch.int32 if device.type == "cuda" else torch.int64)  # as top-k gives them
    values = random(indices.shape).abs_().add_(0.1)
    slopes = Slopes(
        target=(given.batches[0].float() - weights.b_dec).to(dtype),
        residual=random(sizes.tokens, sizes.d_in).to(dtype),
        values=1e-3 * values,
        pre_acts=1e-3 * random(indices.shape),
        indices=indices,
    )
    made = (weights.W_enc.T.contiguous(), weights.W_dec, weights.b_enc)
    rows = Rows(*(_slot(weight, half, draw) for weight in made))
    at_once = min(sizes.tokens, dispatch.encode_tokens(sizes.d_sae, device))
    pre_acts = random(at_once, sizes.d_sae).to(dtype)
    rates = Rates.at(10, given.lr, device)
    return Parts(sizes, half, rows, values, slopes, transpose(indices, sizes.d_sae), rates, pre_acts, backend)


def _slot(weight: Tensor, half: bool, draw: torch.Generator) -> Slot:
    """Moments as they are in the middle of a run: none is zero."""
    mean = 1e-3 * torch.randn(weight.shape, generator=draw, device=weight.device)
    square = 1e-6 + 1e-6 * torch.rand(weight.shape, generator=draw, device=weight.device)
    return Slot(weight.clone(), mean, square, weight.to(torch.bfloat16) if half and weight.dim() == 2 else None)


# ---- decode -------------------------------------------------------------------------------------


def decode(parts: Parts) -> Operation:
    """Acts back to activations."""
    W_dec, indices, values = parts.rows.W_dec.product, parts.slopes.indices, parts.values
    tokens = exact.sample(parts.sizes.tokens, values.device)
    true = exact.decode(values, indices, W_dec, tokens)
    narrow = values.to(W_dec.dtype)
    runs: dict[str, Callable[[], Any]] = {
        OURS: partial(dispatch.sparse_decode, values, indices, W_dec, backend=parts.backend, trusted=True),
        "definition": partial(dispatch.sparse_decode, values, indices, W_dec, backend="reference", trusted=True),
        "dense product": partial(dispatch.sparse_decode, values, indices, W_dec, backend="dense", trusted=True),
        "embedding_bag": partial(_bag, indices.long(), W_dec, narrow),
        "torch.sparse CSR": partial(_by_csr, indices.long(), narrow, W_dec),
    }
    if (kernel := _sparsify_kernel(values.device)) is not None:
        runs["sparsify, Triton"] = partial(kernel, indices.long(), parts.rows.W_dec.weight, values)

    def error(found: Tensor) -> Mapping[str, float]:
        return {"output": exact.apart(found[tokens], true)}

    return Operation(_held_to(error, runs), lambda _: exact.DECODED.of(parts.half), _gather_bytes(parts))


def _by_csr(indices: Tensor, values: Tensor, W_dec: Tensor) -> Tensor:
    return _code(indices, values, len(W_dec)) @ W_dec


def decode_loss(parts: Parts) -> Operation:
    """What is left over, its square, and its product with every row it was decoded from."""
    W_dec, indices, values, target = parts.rows.W_dec.product, parts.slopes.indices, parts.values, parts.slopes.target
    tokens = exact.sample(parts.sizes.tokens, values.device)
    arguments = (values, indices, W_dec, target)
    runs: dict[str, Callable[[], DecodeLoss]] = {
        OURS: partial(dispatch.decode_loss, *arguments, backend=parts.backend, trusted=True),
        "definition": partial(dispatch.decode_loss, *arguments, backend="reference", trusted=True),
        "dense product": partial(dispatch.decode_loss, *arguments, backend="dense", trusted=True),
        "embedding_bag, autograd": partial(_loss_by_autograd, _bag, values, indices.long(), W_dec, target),
        "torch.sparse CSR, sampled_addmm": partial(_loss_by_csr, values, indices.long(), W_dec, target),
    }
    if (kernel := _sparsify_kernel(values.device)) is not None:
        wide = (values, indices.long(), parts.rows.W_dec.weight, target.float())
        runs["sparsify, Triton"] = partial(_loss_by_autograd, kernel, *wide)

    def error(found: DecodeLoss) -> Mapping[str, float]:
        return exact.decode_loss_error(found, values, indices, W_dec, target, tokens)

    bounds = {"residual": exact.DECODED.of(parts.half)}
    return Operation(
        _held_to(error, runs), lambda name: bounds.get(name, exact.SUMMED.of(parts.half)), _gather_bytes(parts)
    )


def _loss_by_autograd(
    bag: Callable[..., Tensor], values: Tensor, indices: Tensor, W_dec: Tensor, target: Tensor
) -> Any:
    """As torch would be used: decode, and ask autograd for the products with the rows."""
    asked = values.detach().to(W_dec.dtype, copy=True).requires_grad_()
    decoded = bag(indices, W_dec, asked)
    residual = decoded.detach() - target
    (dots,) = torch.autograd.grad(decoded, asked, residual)
    wide = residual.float()
    return DecodeLoss(residual, torch.linalg.vecdot(wide, wide), dots)


def _loss_by_csr(values: Tensor, indices: Tensor, W_dec: Tensor, target: Tensor) -> DecodeLoss:
    code = _code(indices, values.to(W_dec.dtype), len(W_dec))
    residual = code @ W_dec - target
    dots = torch.sparse.sampled_addmm(code, residual, W_dec.T, beta=0.0).values().view(indices.shape)
    wide = residual.float()
    return DecodeLoss(residual, torch.linalg.vecdot(wide, wide), dots)


def both_ways(parts: Parts) -> Operation:
    """Decode, and from the gradient of the output those of the acts and of every row: a decoder under autograd."""
    W_dec, indices, residual = parts.rows.W_dec.product, parts.slopes.indices, parts.slopes.residual
    tokens, latents = exact.sample(parts.sizes.tokens, residual.device), exact.sampled(parts.slopes, parts.sizes.d_sae)
    dots = (W_dec[indices[tokens].long()].double() @ residual[tokens].double().unsqueeze(-1)).squeeze(-1)
    sums = exact.sums(parts.values, residual, indices, latents, parts.sizes.d_sae)
    ours = partial(_by_dispatch, backend=parts.backend)
    asked = (parts.values, indices.long(), W_dec, residual)
    runs: dict[str, Callable[[], Any]] = {
        OURS: partial(_autograd, ours, parts.values, indices, W_dec, residual),
        "dense products": partial(_autograd, partial(_by_dispatch, backend="dense"), *asked),
        "embedding_bag": partial(_autograd, _bag, parts.values.to(W_dec.dtype), *asked[1:]),
    }
    wide = (parts.values, indices.long(), parts.rows.W_dec.weight, residual.float())
    if (kernel := _sparsify_kernel(residual.device)) is not None:
        runs["sparsify, Triton"] = partial(_autograd, kernel, *wide)
    if (loss := _flex_sae_kernel(residual.device)) is not None:
        # It makes the loss too, so it is given the target from which that has the gradient of the others.
        target = _bag(indices.long(), wide[2], parts.values) - wide[3]
        runs["flex_sae, with its loss"] = partial(_flex_sae, loss, *wide[:3], target)

    def error(found: tuple[Tensor, Tensor]) -> Mapping[str, float]:
        return {"acts": exact.apart(found[0][tokens], dots), "rows": exact.apart(found[1][latents], sums)}

    weights = parts.sizes.d_sae * parts.sizes.d_in * W_dec.element_size()
    return Operation(_held_to(error, runs), lambda _: exact.SUMMED.of(parts.half), 2 * _gather_bytes(parts) + weights)


def _by_dispatch(indices: Tensor, W_dec: Tensor, values: Tensor, *, backend: Backend) -> Tensor:
    return dispatch.sparse_decode(values, indices, W_dec, backend=backend, trusted=True)


def _autograd(
    decoder: Callable[[Tensor, Tensor, Tensor], Tensor], values: Tensor, indices: Tensor, W_dec: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor]:
    asked = [each.detach().requires_grad_() for each in (values, W_dec)]
    of_values, of_rows = torch.autograd.grad(decoder(indices, asked[1], asked[0]), asked, grad)
    return of_values, of_rows


def _flex_sae(
    loss: Callable[..., Tensor], values: Tensor, indices: Tensor, W_dec: Tensor, target: Tensor
) -> tuple[Tensor, Tensor]:
    asked = [each.detach().requires_grad_() for each in (values, W_dec)]
    mean = loss(indices, asked[1], asked[0], torch.zeros_like(W_dec[0]), target)
    of_values, of_rows = torch.autograd.grad(mean, asked, torch.full_like(mean, target.numel() / 2))
    return of_values, of_rows


# ---- top-k --------------------------------------------------------------------------------------


def topk(parts: Parts) -> Operation:
    """The k largest pre-acts of each token of the batch, as many tokens at a time as an encoder product makes."""
    pre_acts, (tokens, _, _, k) = parts.pre_acts, parts.sizes
    times = -(-tokens // len(pre_acts))
    rows = exact.sample(len(pre_acts), pre_acts.device)
    runs: dict[str, Callable[[], Any]] = {
        OURS: partial(dispatch.topk, pre_acts, k, backend=parts.backend),
        "definition": partial(dispatch.topk, pre_acts, k, backend="reference"),
        "torch.topk": partial(torch.topk, pre_acts, k, dim=1, sorted=False),
    }

    def error(found: Any) -> Mapping[str, float]:
        return {"rows": float(exact.topk_wrong(pre_acts[rows], k, found[0][rows], found[1][rows]))}

    def unless_equal(found: Any) -> Mapping[str, float]:
        """torch does not say which of equal numbers it takes, so its numbers are compared."""
        true = torch.topk(pre_acts[rows].double(), k, dim=1).values
        return {"rows": float((found[0][rows].double().sort(dim=1, descending=True).values != true).any(dim=1).sum())}

    repeated = {name: partial(_repeat, run, times) for name, run in runs.items()}
    forms = _held_to(error, repeated) | _held_to(unless_equal, {"torch.topk": repeated["torch.topk"]})
    return Operation(forms, lambda _: 0.0, tokens * pre_acts.shape[1] * pre_acts.element_size())


def _repeat(run: Callable[[], Any], times: int) -> Any:
    for _ in range(times - 1):
        run()
    return run()


# ---- what latents own ---------------------------------------------------------------------------


def rows_adam(parts: Parts) -> Operation:
    """Both weight gradients, Adam and unit norm, from the slopes of a batch and its transpose."""
    rows, slopes, by_latent, rates = parts.rows, parts.slopes, parts.table, parts.rates
    latents = exact.sampled(slopes, parts.sizes.d_sae)
    indices = slopes.indices.long()
    gathers: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "embedding_bag backward": partial(_dense_backward, indices, parts.sizes.d_sae),
        "torch.sparse CSR": partial(_transposed_csr, by_latent, parts.sizes),
        "a row an entry, index_add": partial(_index_add, indices, parts.sizes.d_sae),
    }
    runs: dict[str, Callable[[], None]] = {
        OURS: partial(dispatch.rows_adam, slopes, by_latent, rows, rates, backend=parts.backend),
        "ours, gradients kept": partial(_two_passes, parts, parts.backend),
        "definition": partial(dispatch.rows_adam, slopes, by_latent, rows, rates, backend="reference"),
        "dense products": partial(_two_passes, parts, "dense"),
        **{f"{name}, fused Adam": partial(_by_gather, parts, gather) for name, gather in gathers.items()},
    }
    forms = {name: Form(run, partial(_step_and_check, parts, latents, run)) for name, run in runs.items()}
    weights = 2 * parts.sizes.d_sae * parts.sizes.d_in * (24 + (2 if parts.half else 0))
    return Operation(forms, partial(exact.adam_bound, half=parts.half), 2 * _gather_bytes(parts) + weights)


def _step_and_check(parts: Parts, latents: Tensor, run: Callable[[], None]) -> Mapping[str, float]:
    before = exact.hold(parts.rows, latents)
    run()
    return exact.adam_error(before, parts.rows, parts.slopes, parts.rates)


def _two_passes(parts: Parts, backend: Backend) -> None:
    """Gradients whole, then Adam over them: what clipping needs."""
    adam_rows_(parts.rows, dispatch.row_gradients(parts.slopes, parts.table, parts.rows, backend=backend), parts.rates)


def _by_gather(parts: Parts, gather: Callable[[Tensor, Tensor], Tensor]) -> None:
    slopes, d_sae = parts.slopes, parts.sizes.d_sae
    bias = slopes.pre_acts.new_zeros(d_sae).index_add_(0, slopes.indices.flatten(), slopes.pre_acts.flatten())
    taken = RowGradients(gather(slopes.pre_acts, slopes.target), gather(slopes.values, slopes.residual), bias)
    remove_parallel_(taken.W_dec, parts.rows.W_dec.weight)
    adam_rows_(parts.rows, taken, parts.rates)


def _dense_backward(indices: Tensor, d_sae: int, values: Tensor, rows: Tensor) -> Tensor:
    """The gradient of a decoder, asked of autograd."""
    W_dec = torch.empty(d_sae, rows.shape[1], device=rows.device, requires_grad=True)
    (gradient,) = torch.autograd.grad(_bag(indices, W_dec, values), W_dec, rows.float())
    return gradient


def _transposed_csr(by_latent: Transpose, sizes: Sizes, values: Tensor, rows: Tensor) -> Tensor:
    offsets, entries = by_latent.offsets.int(), by_latent.entries
    tokens = entries.div(sizes.k, rounding_mode="floor").int()
    wide = values.flatten()[entries.long()]
    code = torch.sparse_csr_tensor(offsets, tokens, wide, size=(sizes.d_sae, sizes.tokens), check_invariants=False)
    return code @ rows.float()


def _index_add(indices: Tensor, d_sae: int, values: Tensor, rows: Tensor) -> Tensor:
    """sparsify's way: a row for every entry, added up by atomics."""
    entries = (values.unsqueeze(2) * rows.unsqueeze(1)).flatten(0, 1)
    return entries.new_zeros(d_sae, rows.shape[1]).index_add_(0, indices.flatten(), entries)


# ---- transpose ----------------------------------------------------------------------------------


def turned(parts: Parts) -> Operation:
    """The table of indices by latent."""
    indices, d_sae = parts.slopes.indices, parts.sizes.d_sae
    flat = indices.flatten().long()
    true = (torch.argsort(flat, stable=True), torch.bincount(flat, minlength=d_sae).cumsum(0))
    runs: dict[str, Callable[[], Any]] = {
        OURS: partial(transpose, indices, d_sae),
        "sort, searchsorted": partial(_by_sort, flat, d_sae),
        "argsort, bincount": lambda: Transpose(
            torch.argsort(flat, stable=True),
            functional.pad(torch.bincount(flat, minlength=d_sae).cumsum(0), (1, 0)),
        ),
    }

    def error(found: Transpose) -> Mapping[str, float]:
        return {
            "entries": float((found.entries.long() != true[0]).sum()),
            "offsets": float((found.offsets[1:].long() != true[1]).sum()),
        }

    return Operation(_held_to(error, runs), lambda _: 0.0, 12 * len(flat))


def _by_sort(flat: Tensor, d_sae: int) -> Transpose:
    ordered, entries = torch.sort(flat.to(torch.int32), stable=True)
    return Transpose(
        entries, torch.searchsorted(ordered, torch.arange(d_sae + 1, dtype=torch.int32, device=flat.device))
    )


OPERATIONS: dict[str, Callable[[Parts], Operation]] = {
    "decode": decode,
    "decode_loss": decode_loss,
    "decode and gradients": both_ways,
    "topk": topk,
    "rows_adam": rows_adam,
    "transpose": turned,
}


# ---- measuring ----------------------------------------------------------------------------------


def measure(
    operation: Operation, *, rounds: int, burst: int, device: torch.device, but: Collection[str] = ()
) -> dict[str, Any]:
    """Times of the forms whose results hold; of the others, why they have none.

    If ours is wrong, nothing is timed.

    Args:
        but: Forms to pass over.
    """
    right: dict[str, Callable[[], object]] = {}
    wrong: dict[str, str] = {}
    errors: dict[str, float] = {}
    for name, form in operation.forms.items():
        if name in but:
            continue
        errors[name], why = off_by(form, operation.bound)
        if why is None:
            right[name] = form.run
        else:
            wrong[name] = why
    measured: dict[str, Any] = {
        "wrong": wrong,
        "off_by": errors,
        "moved": operation.moved,
        "copied": COPY_BYTES[device.type],
    }
    if OURS in wrong:
        return measured
    copied = torch.empty(COPY_BYTES[device.type] // 2, dtype=torch.uint8, device=device)
    right["copy"] = partial(copied.copy_, torch.zeros_like(copied))
    return measured | {"seconds": interleaved(right, rounds, device, burst=burst, record=True)}


def off_by(form: Form, bound: Callable[[str], float]) -> tuple[float, str | None]:
    """How far the worst part is off, and what is wrong with it, if anything is."""
    try:
        parts = form.check()
    except Exception as error:  # noqa: BLE001 - a form that fails here is named in the table
        return float("inf"), f"{type(error).__name__}: {error}".splitlines()[0][:160]
    for name, off in parts.items():
        if not off <= bound(name):
            return off, f"{name} is off by {off:.1e}, at most {bound(name):.0e} from float64"
    return max(parts.values(), default=0.0), None


def show(name: str, measured: Mapping[str, Any]) -> str:
    """One operation as a table, and what a form is passed over for."""
    seconds = measured.get("seconds", {})
    rows = [
        (form, both(milliseconds(each), 3), both(ratios(each, seconds[OURS])), f"{measured['off_by'][form]:.0e}")
        for form, each in seconds.items()
        if form != "copy"
    ]
    lines = [f"### {name}", "", table(HEAD, rows)] if rows else [f"### {name}"]
    if seconds:
        floor = floor_share(measured)
        lines += ["", f"bytes moved at the rate of a copy: {both(floor)} of ours"]
    lines += [f"{form}: {why}" for form, why in measured["wrong"].items()]
    return "\n".join(lines)


def floor_share(measured: Mapping[str, Any]) -> tuple[float, float]:
    """Time in which the bytes that must move would be copied, over our time."""
    seconds = measured["seconds"]
    times = measured["moved"] / measured["copied"]
    return ratios([times * spent for spent in seconds["copy"]], seconds[OURS])


def _held_to(error: Callable[[Any], Mapping[str, float]], runs: Mapping[str, Callable[[], Any]]) -> dict[str, Form]:
    """Forms whose results are held to one measure."""
    return {name: Form(run, partial(_run_and_check, run, error)) for name, run in runs.items()}


def _run_and_check(run: Callable[[], Any], error: Callable[[Any], Mapping[str, float]]) -> Mapping[str, float]:
    return error(run())


def _gather_bytes(parts: Parts) -> int:
    tokens, d_in, _, k = parts.sizes
    return tokens * k * d_in * parts.rows.W_dec.product.element_size()


def _bag(indices: Tensor, W_dec: Tensor, values: Tensor) -> Tensor:
    return functional.embedding_bag(indices, W_dec, mode="sum", per_sample_weights=values)


def _code(indices: Tensor, values: Tensor, d_sae: int) -> Tensor:
    """The acts as torch's CSR."""
    tokens, k = indices.shape
    starts = torch.arange(0, tokens * k + 1, k, device=indices.device)
    return torch.sparse_csr_tensor(
        starts, indices.flatten(), values.flatten(), size=(tokens, d_sae), check_invariants=False
    )


def _sparsify_kernel(device: torch.device) -> Callable[..., Tensor] | None:
    """sparsify's decoder, indices, weights and values in this order; None where it is not installed or cannot run."""
    if device.type != "cuda" or importlib.util.find_spec("sparsify") is None:
        return None
    from sparsify.xformers import xformers_embedding_bag

    return xformers_embedding_bag


def _flex_sae_kernel(device: torch.device) -> Callable[..., Tensor] | None:
    """flex_sae's decoder with its loss; None where it is not installed or cannot run."""
    if device.type != "cuda" or importlib.util.find_spec("flex_sae") is None:
        return None
    return importlib.import_module("flex_sae").triton_topk_sae_loss


if __name__ == "__main__":
    main()
