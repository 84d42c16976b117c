"""Forward passes of a batch of token ids, padded as need be, with no more logits than somebody wants."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear

from sae_forge.models.last_layer import reading
from sae_forge.models.loading import LanguageModel
from sae_forge.models.tokens import embeddable

ROWS = 64
"""Positions whose log-probs are worked out at a time."""


def pad(
    rows: Sequence[Sequence[int]], pad_id: int, *, left: bool
) -> tuple[Int[Tensor, "batch seq"], Int[Tensor, "batch seq"]]:
    """Rows brought to one width, and the mask of what is no padding."""
    width = max(map(len, rows))
    missing = [[pad_id] * (width - len(ids)) for ids in rows]
    padded = [[*less, *ids] if left else [*ids, *less] for ids, less in zip(rows, missing, strict=True)]
    lengths, columns = torch.tensor([[len(ids)] for ids in rows]), torch.arange(width)
    mask = columns >= width - lengths if left else columns < lengths
    return torch.tensor(padded), mask.long()


def forward(
    lm: LanguageModel,
    token_ids: Int[Tensor, "batch seq"],
    mask: Int[Tensor, "batch past_and_seq"],
    *,
    keep: int | Int[Tensor, " kept"] = 0,
    cache: Any = None,
    use_cache: bool = False,
    at: Int[Tensor, "n 2"] | None = None,
    among: Int[Tensor, " some"] | None = None,
) -> Any:
    """One pass of the model; ``logits`` hold the positions ``keep`` names (a count from the end, or indices; 0: all).

    With ``at`` they are ``[1, n, vocab]``, of these rows and columns alone, and with ``among`` of these tokens alone.

    Positions count from the first attended token, so left padding does not move them. ``mask`` covers the
    cache too. The logits come from the model itself, soft caps included.
    """
    if at is not None:
        with _forming(lm, token_ids.shape, at, among):
            output = forward(lm, token_ids, mask, cache=cache, use_cache=use_cache)
        if among is not None and output.logits.shape[-1] > len(among):
            output.logits = output.logits[..., among.to(output.logits.device)]
        return output
    positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -token_ids.shape[1] :]
    slices = "logits_to_keep" in inspect.signature(lm.model.forward).parameters
    if isinstance(keep, int):  # as indices: at a count, layers that share keys compute fewer tokens than under an edit
        keep = torch.arange(token_ids.shape[1])[-keep:]
    output = lm.model(
        input_ids=embeddable(lm, token_ids, mask[:, -token_ids.shape[1] :]).to(lm.device),
        attention_mask=mask.to(lm.device),
        position_ids=positions.to(lm.device),
        past_key_values=cache,
        use_cache=use_cache or cache is not None,
        **({"logits_to_keep": keep.to(lm.device)} if slices else {}),
    )
    if not slices:
        output.logits = output.logits[:, keep.to(output.logits.device)]
    return output


@contextmanager
def _forming(
    lm: LanguageModel, shape: tuple[int, ...], at: Int[Tensor, "n 2"], among: Int[Tensor, " some"] | None
) -> Iterator[None]:
    """Logits of these places alone, by the model's own head; of these tokens alone, where its weights lie open.

    The last layer computes no more than these need, where it can be told.
    """
    head: Any = lm.model.get_output_embeddings()
    read: list[set[int]] = [set() for _ in range(shape[0])]
    for row, column in at.tolist():
        read[row].add(column)
    width = max(1, *map(len, read))  # where nothing is read, one all the same: of no token a layer gives nothing
    columns = torch.tensor([[*sorted(each), *[0] * (width - len(each))] for each in read])

    def places(module: nn.Module, args: tuple[Any, ...]) -> Tensor:
        del module
        row, column = at.to(args[0].device).T
        return args[0][row, column][None]

    with ExitStack() as restored:
        if 2 * width <= shape[1]:  # where most tokens are read, calling a layer twice spares nothing
            restored.enter_context(reading(lm, columns, shape[1]))
        restored.callback(head.register_forward_pre_hook(places).remove)
        if among is not None and type(head) is nn.Linear and "forward" not in vars(head):
            chosen = among.to(head.weight.device)
            bias = None if head.bias is None else head.bias[chosen]
            head.forward = partial(linear, weight=head.weight[chosen], bias=bias)
            restored.callback(delattr, head, "forward")
        yield


def picked(
    logits: Float[Tensor, "places vocab"], targets: Int[Tensor, " n"], places: Int[Tensor, " n"] | None = None
) -> Float[Tensor, " n"]:
    """Log-probs of tokens, each at a place of its own or at the one that is named, in float64 on the CPU."""
    targets = targets.to(logits.device)
    places = torch.arange(len(targets), device=logits.device) if places is None else places.to(logits.device)
    # log_softmax at the targets alone, a few rows at a time: the whole of it would be a second tensor as large
    whole = torch.cat([some.float().logsumexp(-1) for some in logits.split(ROWS)])
    return (logits[places, targets].float() - whole[places]).double().cpu()
