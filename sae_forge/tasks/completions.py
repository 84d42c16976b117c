"""How likely a model finds what should follow a prompt, per token: the domain log-prob of INLP_PROJECT.

There a target was forced token by token, without BOS and over five prompts a domain; here it is one pass, with
BOS for the families trained with it, over as many prompts as there are, so that the shift has an interval.
"""

from collections.abc import Sequence

from sae_forge.models.loading import LanguageModel
from sae_forge.tasks.engines.continuations import Done, Encoded, Score, encode, score
from sae_forge.tasks.items import Prompt


def encode_prompts(lm: LanguageModel, prompts: Sequence[Prompt]) -> list[Encoded]:
    """Token ids of the prompts and their targets, ready for :func:`target_logprobs`."""
    return encode(lm, [(item.prompt, (item.target,)) for item in prompts])


def target_logprobs(
    lm: LanguageModel, encoded: Sequence[Encoded], *, batch_size: int, done: Done | None = None
) -> list[Score]:
    """For each prompt the log-prob of its target; ``.mean`` is per target token, which is what is averaged."""
    return [scores[0] for scores in score(lm, encoded, batch_size=batch_size, done=done)]
