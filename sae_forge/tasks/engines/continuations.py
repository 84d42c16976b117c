"""Log-probabilities of given continuations after given contexts, teacher-forced, in as few passes as it takes.

All continuations of one context (the options of a question) share its pass: the context runs once with a cache, which
the continuations then start from. So a gate that decides on the prompt sees the context alone, as it does when text is
generated. Contexts are padded on the left where a cache follows, so that the cache has no holes; else rows are padded
on the right. Where contexts begin alike for long enough, ``beginnings`` runs what they share once; not so under a gate
that must see a prompt in one piece, nor in models that remember more of a text than keys and values.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from sae_forge.errors import DataError, NumericalError
from sae_forge.models.caches import branches, select_rows
from sae_forge.models.hooks import wants_whole
from sae_forge.models.last_layer import cuttable
from sae_forge.models.loading import LanguageModel
from sae_forge.models.quicker import quicker
from sae_forge.models.tokens import bos_ids, max_input, text_ids
from sae_forge.tasks.engines.beginnings import Read, Row, Stretch, run, stretches, tokens
from sae_forge.tasks.engines.passes import forward, pad, picked

SPACE = " "
WORTH = 0.7
"""Contexts are run together where that leaves no more than this share of their tokens: parting costs passes."""

Done = Callable[[int], None]
"""Called as work goes on with how many more items are finished."""


class Score(NamedTuple):
    """How likely a continuation was."""

    logprob: float
    """Summed over its tokens, in nats."""
    tokens: int

    @property
    def mean(self) -> float:
        """Nats per token."""
        return self.logprob / self.tokens


@dataclass(frozen=True)
class Encoded:
    """Token ids of a context and of the continuations that are tried after it."""

    context: tuple[int, ...]
    targets: tuple[tuple[int, ...], ...]
    truncated: bool = False
    """Whether the context lost its beginning to the model's longest input."""


# ---- text to tokens -----------------------------------------------------------------------------


def encode(lm: LanguageModel, asked: Sequence[tuple[str, Sequence[str]]], *, end: Sequence[int] = ()) -> list[Encoded]:
    """Token ids of each (text, continuations), as the tokenizer writes text and continuation together.

    Continuations are what is left of the whole once the tokens that all wholes share with the bare text are
    taken away, so neither a word-start mark nor a merge across the seam is scored in a form the model never
    saw. The seam is one space where neither side brings white space; white space that ends the text belongs
    to the continuation. BOS stands in front where the family wants it; ``end`` closes every continuation.
    """
    texts = [text.rstrip() or text for text, _ in asked]
    wholes = [_join(text, continuation) for text, continuations in asked for continuation in continuations]
    bare, whole = text_ids(lm, texts), iter(text_ids(lm, wholes))
    front, longest = bos_ids(lm), max_input(lm)
    return [
        split([*front, *ids], [[*front, *next(whole), *end] for _ in continuations], longest)
        for ids, (_, continuations) in zip(bare, asked, strict=True)
    ]


def end_ids(lm: LanguageModel) -> tuple[int, ...]:
    """EOS, where the tokenizer has one."""
    end = lm.tokenizer.eos_token_id
    return (end,) if isinstance(end, int) else ()


def _join(text: str, continuation: str) -> str:
    apart = text[-1:].isspace() or continuation[:1].isspace()
    return text + continuation if apart else text + SPACE + continuation


def split(bare: list[int], wholes: Sequence[Sequence[int]], longest: int) -> Encoded:
    """What all wholes share with the bare context, and the rest of each; the context keeps its first token and its end.

    Raises:
        DataError: nothing is shared, or a rest does not fit into the model.
    """
    shared = len(bare)
    for whole in wholes:
        alike = (mine == its for mine, its in zip(bare, whole, strict=False))
        # tokens that all wholes share with the bare text, but for one: something must be left to score
        shared = min(shared, sum(takewhile(bool, alike)), len(whole) - 1)
    targets = tuple(tuple(whole[shared:]) for whole in wholes)
    room = longest - max(map(len, targets))
    if shared < 1 or room < 1:
        raise DataError(f"a continuation after {shared} tokens does not fit a model that takes {longest} tokens")
    return Encoded(fitted(bare[:shared], room), targets, truncated=shared > room)


def fitted(ids: Sequence[int], room: int) -> tuple[int, ...]:
    """A context that is no longer than ``room``: of a longer one BOS, or whatever stands first, and its end."""
    return tuple(ids) if len(ids) <= room else (*ids[:1], *ids[len(ids) - room + 1 :])


# ---- scoring ------------------------------------------------------------------------------------


@torch.inference_mode()
def score(
    lm: LanguageModel,
    encoded: Sequence[Encoded],
    *,
    batch_size: int,
    share: bool = True,
    relative: bool = False,
    done: Done | None = None,
) -> list[tuple[Score, ...]]:
    """For each context the score of each of its continuations, in the order given.

    Args:
        batch_size: Sequences a forward pass takes at most.
        share: Run once what contexts have in common, and a context once for all its continuations. Both ways agree up
            to rounding.
        relative: Only differences within a context matter, so no more logits than these need be formed.

    Raises:
        NumericalError: the model gave a log-probability that is not finite.
    """
    sums: list[list[float]] = [[0.0] * len(item.targets) for item in encoded]
    rows = rows_of(encoded)
    roots = _worth_sharing(lm, encoded, rows) if share else None
    if roots is not None:
        parts = _branching(lm, encoded, rows, roots, batch_size, relative, done)
    else:
        parts = (_together if share else _apart)(lm, encoded, batch_size, done)
    with quicker(lm), cuttable(lm):  # once for all passes
        for (number, option), logprob in parts:
            sums[number][option] += logprob
    return [
        tuple(Score(_finite(value), len(target)) for value, target in zip(values, item.targets, strict=True))
        for values, item in zip(sums, encoded, strict=True)
    ]


Part = tuple[tuple[int, int], float]
"""A context, one of its continuations, and a part of that one's summed log-prob."""


def rows_of(encoded: Sequence[Encoded]) -> list[Row]:
    """A row for each context, and one for each of its continuations that are longer than a token."""
    rows = []
    for number, item in enumerate(encoded):
        own = len(item.context)
        if short := [(target[0], (number, option)) for option, target in enumerate(item.targets) if len(target) == 1]:
            rows.append(Row(item.context, (Read(own - 1, *zip(*short, strict=True)),), number, own))
        for option, target in enumerate(item.targets):
            if len(target) > 1:
                reads = (Read(own - 1 + step, (token,), ((number, option),)) for step, token in enumerate(target))
                rows.append(Row((*item.context, *target[:-1]), tuple(reads), number, own))
    return rows


def _worth_sharing(lm: LanguageModel, encoded: Sequence[Encoded], rows: Sequence[Row]) -> list[Stretch] | None:
    """What the contexts have in common, where it is so much that it is run once, and it can be."""
    if len(encoded) == 1 or wants_whole(lm) or not branches(lm):
        return None
    roots = stretches(rows)
    apart = sum(len(item.context) + sum(len(target) - 1 for target in item.targets) for item in encoded)
    return roots if tokens(roots) <= WORTH * apart else None


def _branching(
    lm: LanguageModel,
    encoded: Sequence[Encoded],
    rows: Sequence[Row],
    roots: Sequence[Stretch],
    batch_size: int,
    relative: bool,
    done: Done | None,
) -> Iterator[Part]:
    """Everything that is alike once."""
    among = None
    if relative and all(len(target) == 1 for item in encoded for target in item.targets):
        among = torch.tensor(sorted({target[0] for item in encoded for target in item.targets}))
    left = [sum(map(len, item.targets)) for item in encoded]
    for (number, option), logprob in run(lm, rows, roots, batch_size=batch_size, among=among):
        yield (number, option), logprob
        left[number] -= 1
        if not left[number]:
            report(done, 1)


def _together(lm: LanguageModel, encoded: Sequence[Encoded], batch_size: int, done: Done | None) -> Iterator[Part]:
    """Every context once, for all its continuations."""
    lengths = [len(item.context) for item in encoded]
    for numbers in _by_length(list(range(len(encoded))), lengths, batch_size):
        for (row, option), logprob in _score_shared(lm, [encoded[number] for number in numbers], batch_size):
            yield (numbers[row], option), logprob
        report(done, len(numbers))


def _apart(lm: LanguageModel, encoded: Sequence[Encoded], batch_size: int, done: Done | None) -> Iterator[Part]:
    """Every continuation in a row of its own, context and all."""
    places = [(number, option) for number, item in enumerate(encoded) for option in range(len(item.targets))]
    rows = [(encoded[number].context, encoded[number].targets[option]) for number, option in places]
    lengths = [len(context) + len(target) for context, target in rows]
    for chosen in _by_length(list(range(len(rows))), lengths, batch_size):
        yield from zip(
            [places[index] for index in chosen], _score_rows(lm, [rows[index] for index in chosen]), strict=True
        )
        report(done, sum(places[index][1] == 0 for index in chosen))


def report(done: Done | None, count: int) -> None:
    """Tell whoever watches, if anyone does."""
    if done is not None:
        done(count)


def _by_length(members: list[int], lengths: list[int], batch_size: int) -> Iterator[list[int]]:
    """Batches of like length, longest first, so that little is padding and memory is decided at once."""
    order = sorted(range(len(members)), key=lambda index: (-lengths[index], index))
    for start in range(0, len(order), batch_size):
        yield [members[index] for index in order[start : start + batch_size]]


def _score_rows(lm: LanguageModel, rows: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> list[float]:
    """Summed log-probs of targets that each run in one pass with their context."""
    token_ids, mask = pad([[*context, *target[:-1]] for context, target in rows], lm.pad_id, left=False)
    # a token's log-prob is read off the position before it
    before = [(row, len(context) - 1 + step) for row, (context, ids) in enumerate(rows) for step in range(len(ids))]
    at = torch.tensor(before)
    target_ids = torch.tensor([token for _, target in rows for token in target])
    logprobs = picked(forward(lm, token_ids, mask, at=at).logits[0], target_ids)
    return torch.zeros(len(rows), dtype=torch.float64).index_add_(0, at[:, 0], logprobs).tolist()


def _score_shared(lm: LanguageModel, items: list[Encoded], batch_size: int) -> Iterator[tuple[tuple[int, int], float]]:
    """Parts of the summed log-probs: of the first tokens, read off the contexts' pass, and of the rest."""
    token_ids, mask = pad([item.context for item in items], lm.pad_id, left=True)
    places = [(row, option) for row, item in enumerate(items) for option in range(len(item.targets))]
    lengths = {(row, option): len(items[row].targets[option]) for row, option in places}
    # like beside like, or one long name pads a whole batch
    longer = sorted((place for place in places if lengths[place] > 1), key=lengths.__getitem__)
    # padded on the left, so that the last column is every context's last token: one position gives all first log-probs
    ends = torch.tensor([(row, token_ids.shape[1] - 1) for row in range(len(items))])
    output = forward(lm, token_ids, mask, at=ends, use_cache=bool(longer))
    first = torch.tensor([items[row].targets[option][0] for row, option in places])
    logprobs = picked(output.logits[0], first, torch.tensor([row for row, _ in places]))
    yield from zip(places, logprobs.tolist(), strict=True)
    for start in range(0, len(longer), batch_size):
        chosen = longer[start : start + batch_size]
        rest = [items[row].targets[option] for row, option in chosen]
        last = start + batch_size >= len(longer)
        # a cache grows in place, so all but the last batch work on a copy
        cache = output.past_key_values if last else copy.deepcopy(output.past_key_values)
        yield from zip(chosen, _score_rest(lm, rest, [row for row, _ in chosen], mask, cache), strict=True)


def _score_rest(
    lm: LanguageModel,
    targets: list[tuple[int, ...]],
    rows: list[int],
    context_mask: Int[Tensor, "contexts seq"],
    cache: Any,
) -> list[float]:
    """Summed log-probs of all but the first token of each target, from the cache of its context."""
    select_rows(cache, torch.tensor(rows, device=lm.device))
    token_ids, mask = pad([target[:-1] for target in targets], lm.pad_id, left=False)
    at = mask.nonzero()
    logits = forward(lm, token_ids, torch.cat([context_mask[rows], mask], 1), cache=cache, at=at).logits[0]
    rest = torch.tensor([token for target in targets for token in target[1:]])
    return torch.zeros(len(rows), dtype=torch.float64).index_add_(0, at[:, 0], picked(logits, rest)).tolist()


def _finite(value: float) -> float:
    # true of NaN and of both infinities
    if value - value != 0:
        raise NumericalError("the model gave a log-probability that is not finite; compute with --dtype fp32 or bf16")
    return value
