"""What was before beside what is: for each change that no clock has seen yet, the same work in both forms.

An older form lives here alone. A case is ready to be timed, and gives what it made, so that both can be compared.
"""

from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from made_up import Problem
from operations import Parts, make_parts
from torch import Tensor

from sae_forge.data.sinks import are_sinks
from sae_forge.kernels import dispatch, triton_tuning
from sae_forge.sae.losses import variance

Cases = dict[str, Callable[[], Any]]
BEFORE, NOW = "before", "now"


def early_reads(given: Problem) -> Cases:
    """A row's weight and moments asked for before the gather and read at once, or one after the other behind it."""
    parts, tuned = make_parts(given), triton_tuning.rows

    def late(*sizes: Any, **how: Any) -> triton_tuning.Launch:
        return tuned(*sizes, **how) | {"PREFETCH": False, "TOGETHER": False}

    def before() -> None:
        with patch.object(triton_tuning, "rows", late):
            _step(parts)

    return {BEFORE: before, NOW: partial(_step, parts)}


def _step(parts: Parts) -> None:
    dispatch.rows_adam(parts.slopes, parts.table, parts.rows, parts.rates, backend=parts.backend, trusted=True)


def centred_batch(given: Problem) -> Cases:
    """What the encoder reads and its variance, by one kernel or by ten passes of torch's."""
    batch, b_dec, dtype = given.batches[0], given.weights().b_dec, torch.bfloat16 if given.half else torch.float32
    sink_norm = 4.0 * float(batch.float().norm(dim=1).median())

    def before() -> tuple[Tensor, Tensor]:
        rows = batch.float()
        target = torch.add(-b_dec, rows, alpha=0.5).masked_fill_(are_sinks(rows, sink_norm)[:, None], 0.0).to(dtype)
        return target, variance(target)

    def now() -> tuple[Tensor, Tensor]:
        made = dispatch.centred(batch, b_dec, 0.5, sink_norm, dtype)
        return before() if made is None else (made[0], made[1].variance(len(batch)))

    return {BEFORE: before, NOW: now}


def centre_of_encoder(given: Problem) -> Cases:
    """The encoder's rows, each by its bias's gradient: of the rows that products read, or of those in fp32."""
    W_enc = make_parts(given).rows.W_enc
    weights = torch.randn(len(W_enc.weight), generator=torch.Generator(given.device), device=given.device)
    return {BEFORE: lambda: W_enc.weight.T @ weights, NOW: partial(dispatch.sum_of_rows, W_enc, weights)}


OLDER: dict[str, Callable[[Problem], Cases]] = {
    "early reads of a row": early_reads,
    "centred batch": centred_batch,
    "rows by the bias's gradient": centre_of_encoder,
}
