"""Kernels are launched on the device of their tensors, whichever is current. Shown without a GPU: tensors that only say
they lie on one, and a recorder in the kernels' place.
"""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from sae_forge.kernels import dispatch, gradients
from sae_forge.kernels.rows import DecodeLoss, Rates, RowGradients, Rows, Slopes, Slot
from sae_forge.kernels.transpose import Transpose

TOKENS, K, D_IN, D_SAE = 6, 2, 8, 1024
SECOND = torch.device("cuda:1")


class OnSecond(Tensor):
    """A tensor that says it lies on the second GPU."""

    device = SECOND  # pyright: ignore[reportAssignmentType]


def drawn(*shape: int) -> Tensor:
    return torch.rand(*shape).as_subclass(OnSecond)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, torch.device | None]]:
    """Each operation of the Triton form that was called, with the device that was current."""
    seen: list[tuple[str, torch.device | None]] = []
    current: list[torch.device | None] = [None]

    @contextmanager
    def device(wanted: torch.device):
        current.append(wanted)
        yield
        current.pop()

    def recorded(name, answer):
        def operation(*given):
            seen.append((name, current[-1]))
            return answer(*given)

        return operation

    def of_code(values: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
        return weights.new_empty(len(values), weights.shape[1])

    answers = {
        "decode": of_code,
        "value_grad": lambda grad, indices, W_dec: grad.new_empty(indices.shape),
        "weight_grad": lambda rows, values, indices, table: rows.new_empty(table.d_sae, rows.shape[1]),
        "latent_sums": lambda values, indices, table: values.new_empty(table.d_sae),
        "topk": lambda pre_acts, k: (pre_acts[:, :k].clone(), pre_acts[:, :k].long()),
        "decode_loss": lambda values, indices, W_dec, target: DecodeLoss(target, values[:, 0], values),
        "row_gradients": lambda slopes, table, rows, extra: RowGradients(*(slot.weight for slot in rows)),
        "rows_adam": lambda *given: None,
        "sum_of_rows": lambda rows, weights: rows[0],
        "centred": lambda batch, *how: (batch, None),
    }
    form = SimpleNamespace(MAX_K=512, **{name: recorded(name, answer) for name, answer in answers.items()})
    real = dispatch._module
    monkeypatch.setattr(dispatch, "_module", lambda name: form if name == "triton_form" else real(name))
    monkeypatch.setattr(dispatch, "triton_installed", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", device)
    return seen


@pytest.mark.parametrize("backend", ["auto", "triton"])
def test_every_operation_is_launched_where_its_tensors_lie(launched, backend):
    values, W_dec, target = drawn(TOKENS, K), drawn(D_SAE, D_IN), drawn(TOKENS, D_IN)
    indices = torch.zeros(TOKENS, K, dtype=torch.int64).as_subclass(OnSecond)
    slots = [Slot(*(drawn(*shape) for _ in range(3))) for shape in ((D_SAE, D_IN), (D_SAE, D_IN), (D_SAE,))]
    rows, table = Rows(*slots), Transpose(indices.reshape(-1), drawn(D_SAE + 1).long())
    slopes, rates = Slopes(target, target, values, values, indices), Rates(*drawn(5).unbind())
    dispatch.topk(target, K, backend=backend)
    dispatch.decode_loss(values, indices, W_dec, target, backend=backend)
    dispatch.row_gradients(slopes, table, rows, backend=backend)
    dispatch.rows_adam(slopes, table, rows, rates, backend=backend)
    dispatch.latent_sums(values, indices, table, backend=backend)
    dispatch.centred(target, drawn(D_IN), 1.0, 0.0, torch.float32, backend=backend)
    read = dispatch.sum_of_rows(slots[0]._replace(copy=W_dec.bfloat16()), drawn(D_SAE), backend=backend)
    assert read.dtype == torch.bfloat16  # what the encoder's product reads, for half the bytes
    own = ("topk", "decode_loss", "row_gradients", "rows_adam", "latent_sums", "centred", "sum_of_rows")
    assert launched == [(name, SECOND) for name in own]


def test_so_are_those_of_a_backward_pass(launched, monkeypatch):
    monkeypatch.setattr(gradients, "transpose", lambda indices, d_sae: Transpose(indices, drawn(d_sae + 1).long()))
    x, W_enc, b_enc, W_dec = drawn(TOKENS, D_IN), drawn(D_SAE, D_IN).T, drawn(D_SAE), drawn(D_SAE, D_IN)
    for part in (x, W_enc, b_enc, W_dec):
        part.requires_grad_()
    values, indices = dispatch.topk_encode(x, W_enc, b_enc, None, K)
    dispatch.sparse_decode(values, indices, W_dec, trusted=True).sum().backward()
    forward, backward = ["topk", "decode"], ["value_grad", "weight_grad", "latent_sums", "decode", "weight_grad"]
    assert launched == [(name, SECOND) for name in (*forward, *backward)]
