"""What was before beside what is: for each change that no clock has seen yet, the same work in both forms.

An older form lives here alone. A case is ready to be timed, and gives what it made, so that both can be compared.
"""

from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import patch

from made_up import Problem
from operations import Parts, make_parts

from sae_forge.kernels import dispatch, triton_tuning

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


OLDER: dict[str, Callable[[Problem], Cases]] = {"early reads of a row": early_reads}
