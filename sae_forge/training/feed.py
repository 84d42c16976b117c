"""Batches on their way to the device: on a GPU the next one is copied while the one before it is trained on."""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from sae_forge.data.stream import ActivationStream


@contextmanager
def reading(
    stream: ActivationStream, start: int, device: torch.device, rows: Callable[[Tensor], Tensor] | None = None
) -> Iterator[Iterator[Float[Tensor, "batch d_in"]]]:
    """Batches from ``start`` on, on the device, or these ``rows`` of each; the reading thread ends with the block."""
    batches = stream.batches(start)
    try:
        yield feed(batches if rows is None else map(rows, batches), device)
    finally:
        if isinstance(batches, Generator):
            batches.close()


def feed(batches: Iterator[Float[Tensor, "batch d_in"]], device: torch.device) -> Iterator[Float[Tensor, "batch d_in"]]:
    """The same batches on ``device``, in their own dtype, so that half precision crosses the bus as such."""
    return _copied_ahead(batches, device) if device.type == "cuda" else batches


def _copied_ahead(batches: Iterator[Tensor], device: torch.device) -> Iterator[Tensor]:
    copying = torch.cuda.Stream(device)
    pinned: list[Tensor] = []
    arrived = [torch.cuda.Event(), torch.cuda.Event()]
    waiting: tuple[Tensor, torch.cuda.Event] | None = None
    for number, batch in enumerate(batches):
        turn = number % 2
        if number < 2:
            pinned.append(torch.empty(batch.shape, dtype=batch.dtype, pin_memory=True))
        else:
            arrived[turn].synchronize()  # its last copy was two batches ago
        pinned[turn].copy_(batch)
        with torch.cuda.stream(copying):
            sent = pinned[turn].to(device, non_blocking=True)
            arrived[turn].record(copying)
        if waiting is not None:
            yield _received(*waiting)
        waiting = (sent, arrived[turn])
    if waiting is not None:
        yield _received(*waiting)


def _received(batch: Tensor, arrived: torch.cuda.Event) -> Tensor:
    """The batch for the stream that computes: it waits on the device, and the memory is not given away under it."""
    current = torch.cuda.current_stream(batch.device)
    current.wait_event(arrived)
    batch.record_stream(current)
    return batch
