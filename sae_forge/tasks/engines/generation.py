"""Continuations sampled so that only the model decides what differs between two runs.

Each prompt and step has its own random number, a function of the seed, the prompt's place in the list and the
step alone. The token is read off the nucleus at that quantile: two models that agree write the same text,
whatever else was measured before and however prompts were batched.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_forge.errors import NumericalError
from sae_forge.models.chat import Rendered, prompts_ids
from sae_forge.models.loading import LanguageModel
from sae_forge.models.tokens import room_after
from sae_forge.rng import generator
from sae_forge.tasks.engines.continuations import Done, report
from sae_forge.tasks.engines.passes import forward, pad
from sae_forge.tasks.engines.texts import degenerate, distinct, stutters


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How text is drawn."""

    max_new_tokens: int = 64
    temperature: float = 0.7
    """0 takes the likeliest token."""
    top_p: float = 0.9
    """The nucleus: the likeliest tokens that together have this probability."""
    seed: int = 0

    def draws(self, prompts: int) -> Float[np.ndarray, "prompts steps"]:
        """The random number of each prompt and step, in [0, 1)."""
        return generator(self.seed, "sampling").random((prompts, self.max_new_tokens))


@dataclass(frozen=True)
class Written:
    """What a model wrote after one prompt."""

    prompt: str
    text: str
    """The continuation without the prompt and without special tokens."""
    tokens: int
    """Tokens generated before the end of the text or the limit."""

    def measures(self) -> dict[str, float]:
        """Repetition in this text: distinct-1 to -3, whether it stutters, whether it is degenerate."""
        return {
            **{f"distinct_{n}": distinct(self.text, n) for n in (1, 2, 3)},
            "stutter": float(stutters(self.text)),
            "degenerate": float(degenerate(self.text)),
        }


def write(
    lm: LanguageModel,
    prompts: Sequence[str | Rendered],
    sampling: Sampling,
    *,
    batch_size: int,
    done: Done | None = None,
) -> list[Written]:
    """A continuation of each prompt, by the model as it stands, edits included.

    Raises:
        NumericalError: the model gave logits that are not finite.
    """
    draws = sampling.draws(len(prompts))
    said = [prompt.text if isinstance(prompt, Rendered) else prompt for prompt in prompts]
    # alike in length, so that little is padding; draws go by the prompt's place in the list, so batches change no text
    order = sorted(range(len(prompts)), key=lambda index: (len(said[index]), index))
    continued: dict[int, Written] = {}
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        texts = [prompts[index] for index in chosen]
        written: list[list[int]] = [[] for _ in chosen]
        for step in steps(lm, texts, sampling, draws[chosen]):
            for row in step.alive.nonzero()[:, 0].tolist():
                written[row].append(int(step.drawn[row]))
        for index, ids in zip(chosen, written, strict=True):
            text = lm.tokenizer.decode(ids, skip_special_tokens=True)
            continued[index] = Written(said[index], str(text), len(ids))
        report(done, len(chosen))
    return [continued[index] for index in range(len(prompts))]


def shortened(lm: LanguageModel, texts: Sequence[str | Rendered], max_new_tokens: int) -> int:
    """How many of these texts leave room for fewer new tokens than that.

    Raises:
        DataError: one leaves room for none.
    """
    return sum(room_after(lm, ids, max_new_tokens) < max_new_tokens for ids in prompts_ids(lm, texts))


class Step(NamedTuple):
    """One forward pass: what the model read, and what it wrote after that."""

    read: Int[Tensor, "batch seq"]
    """The prompts, padded on the left; then the tokens of the step before."""
    attended: Int[Tensor, "batch seq"]
    """1 where a token was read, 0 where padding was."""
    drawn: Int[Tensor, " batch"]
    alive: Bool[Tensor, " batch"]
    """Texts that go on with what was drawn; the others have ended before it."""


def steps(
    lm: LanguageModel, texts: Sequence[str | Rendered], sampling: Sampling, draws: Float[np.ndarray, "batch steps"]
) -> Iterator[Step]:
    """The passes in which the model continues each text, until all have ended or the limit is reached.

    A text that has ended goes on as padding, which no edit touches or counts. One that fills the model ends there.

    Raises:
        DataError: a text leaves no room to write after it.
    """
    read = prompts_ids(lm, texts)
    rooms = torch.tensor([room_after(lm, row, sampling.max_new_tokens) for row in read])
    token_ids, mask = pad(read, lm.pad_id, left=True)
    ends, quantiles = torch.tensor(sorted(_end_ids(lm))), torch.from_numpy(draws)
    alive = torch.ones(len(texts), dtype=torch.bool)
    cache = None
    for step in range(int(rooms.max())):
        with torch.inference_mode():
            output = forward(lm, token_ids, mask, keep=1, cache=cache, use_cache=True)
            drawn = draw(output.logits[:, -1].float().cpu(), quantiles[:, step], sampling)
        alive = alive & ~torch.isin(drawn, ends) & (step < rooms)
        yield Step(token_ids, mask[:, -token_ids.shape[1] :], drawn, alive)
        if not alive.any():
            return
        cache, token_ids = output.past_key_values, torch.where(alive, drawn, lm.pad_id)[:, None]
        mask = torch.cat([mask, alive[:, None].long()], 1)


def draw(
    logits: Float[Tensor, "batch vocab"], quantiles: Float[Tensor, " batch"], sampling: Sampling
) -> Int[Tensor, " batch"]:
    """The token at each row's quantile of its nucleus, likeliest first; at temperature 0 the likeliest token.

    Raises:
        NumericalError: a logit is not a number.
    """
    if logits.isnan().any():
        raise NumericalError("the model gave logits that are not numbers; compute with --dtype fp32 or bf16")
    if sampling.temperature == 0:
        return logits.argmax(-1)
    probs, ids = (logits.double() / sampling.temperature).softmax(-1).sort(stable=True, dim=-1, descending=True)
    reached = probs.cumsum(-1)
    # kept while what lies before it has less than top_p: the token that reaches it is in
    nucleus = probs * (reached - probs < sampling.top_p)
    reached = nucleus.cumsum(-1)
    # the first token whose cumulative share exceeds the quantile: inverse transform sampling
    place = (reached <= quantiles[:, None] * reached[:, -1:]).sum(-1, keepdim=True)
    return ids.gather(1, place.clamp(max=logits.shape[1] - 1))[:, 0]


def _end_ids(lm: LanguageModel) -> set[int]:
    """Tokens that end a text: the tokenizer's EOS and those the model itself declares (a chat turn's end)."""
    declared = getattr(lm.model.generation_config, "eos_token_id", None)
    listed = declared if isinstance(declared, list) else [declared]
    return {index for index in (lm.tokenizer.eos_token_id, *listed) if isinstance(index, int)}
