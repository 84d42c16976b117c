"""How an answer depends on the activations at a hook point, and which of them are words of the question."""

import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from jaxtyping import Float
from torch import Tensor

from sae_forge.config.questions import Scoring
from sae_forge.errors import ConfigError
from sae_forge.hookpoint import HookPoint
from sae_forge.models.hooks import differentiable
from sae_forge.models.loading import LanguageModel
from sae_forge.models.tokens import bos_ids, text_ids
from sae_forge.statistics.answers import LETTERS
from sae_forge.tasks.engines.continuations import Encoded
from sae_forge.tasks.engines.multiple_choice import chat_prompt, encode_questions, options_of, prompt_of
from sae_forge.tasks.engines.passes import forward, pad
from sae_forge.tasks.records import Question

TRAILING = string.punctuation + string.whitespace


@dataclass(frozen=True)
class Known:
    """A question, the domain it is asked in, and how it is put to the model."""

    domain: str
    question: Question
    encoded: Encoded


@dataclass(frozen=True, eq=False)
class Traced:
    """What the activations under a question were, and what moving them would do to the answer."""

    known: Known
    x: Float[Tensor, "context d_in"]
    gradient: Float[Tensor, "context d_in"]
    """Of the margin of the right answer, in logits per unit of activation."""
    places: list[int]
    """Where in the context the words of question and options stand."""


def encode_known(lm: LanguageModel, questions: Sequence[Question], scoring: Scoring, domain: str) -> list[Known]:
    """The questions of one domain, tokenised."""
    encoded = encode_questions(lm, questions, scoring, domain)
    return [Known(domain, question, item) for question, item in zip(questions, encoded, strict=True)]


def iter_gradients(
    lm: LanguageModel, point: HookPoint, exam: Sequence[Known], scoring: Scoring, *, batch_size: int
) -> Iterator["Traced"]:
    """Each question with the activation of its context and the gradient there.

    What is differentiated is the logit of the right letter minus the mean of the wrong ones, at the last token; under
    ``cloze``, the same of the summed log-probs of the options' texts. Questions too long for the model are left out.
    """
    whole = [known for known in exam if not known.encoded.truncated]
    rows = max((len(known.question.choices) for known in whole), default=1) if scoring == "cloze" else 1
    step = max(1, batch_size // rows)
    for start in range(0, len(whole), step):
        chunk = whole[start : start + step]
        for known, (x, g) in zip(chunk, _gradients(lm, point, chunk), strict=True):
            yield Traced(known, x, g, asked_places(lm, known, scoring))


def _gradients(lm: LanguageModel, point: HookPoint, chunk: Sequence[Known]) -> Iterator[tuple[Tensor, Tensor]]:
    """Activation and gradient of each context; where options run in rows of their own, the rows' gradients add up."""
    rows: list[tuple[int, ...]] = []
    terms: list[tuple[int, int, int, float]] = []  # row, position, token, weight
    owned: list[tuple[int, int]] = []
    for known in chunk:
        item, first = known.encoded, len(rows)
        # of a letter's two spellings the first is differentiated: they are neighbours among the targets
        options = item.targets[:: len(item.targets) // len(known.question.choices)]
        apart = any(len(target) > 1 for target in options)  # then each option runs in a row of its own
        for option, target in enumerate(options):
            # 1 for the right option and together -1 for the others, so that log-probs serve as logits would:
            # what the softmax subtracts from all of them cancels
            weight = 1.0 if option == known.question.answer else -1 / (len(options) - 1)
            for step, token in enumerate(target):
                terms.append((first + option * apart, len(item.context) - 1 + step, token, weight))
        rows += [(*item.context, *target[:-1]) for target in options] if apart else [item.context]
        owned.append((first, len(rows)))
    token_ids, _ = pad(rows, lm.pad_id, left=False)
    attended = torch.ones_like(token_ids)  # padding comes last, where no token sees it; masked, it could give NaN
    row, position, token, weight = zip(*terms, strict=True)
    kept, column = torch.tensor(position).unique(return_inverse=True)
    with torch.enable_grad(), differentiable(lm, point) as tapped:
        logits = forward(lm, token_ids, attended, keep=kept).logits
        chosen = logits[torch.tensor(row).to(logits.device), column.to(logits.device)]
        logprobs = chosen.to(torch.promote_types(chosen.dtype, torch.float32)).log_softmax(-1)
        picked = logprobs.gather(1, torch.tensor(token).to(logits.device)[:, None])[:, 0]
        metric = (picked * torch.tensor(weight).to(picked)).sum()
        (gradient,) = torch.autograd.grad(metric, tapped[-1])
    for (first, end), known in zip(owned, chunk, strict=True):
        length = len(known.encoded.context)
        yield tapped[-1][first, :length].detach(), gradient[first:end, :length].sum(0)


def asked_places(lm: LanguageModel, known: Known, scoring: Scoring) -> list[int]:
    """Places in the context of the words of question and options.

    Not of the instruction, the template, the letters before the options, the question's first token, or punctuation
    at the end of question or option. Tokens are found by tokenising the prompt up to where a span begins and ends.
    """
    chat = chat_prompt(lm, known.question, known.domain) if scoring == "chat" else None
    prompt = chat.text if chat else prompt_of(lm, known.question, scoring, known.domain)

    def ids_until(end: int) -> list[int]:
        return chat.ids(lm, end) if chat else text_ids(lm, [prompt[:end]])[0]

    ids = ids_until(len(prompt.rstrip()))
    front = bos_ids(lm)
    # the context has BOS in front, and the ids of a chat may bring it along
    shift = len(front) if ids[: len(front)] != front else 0
    places: list[int] = []
    for number, (start, end) in enumerate(_spans(lm, known.question, prompt)):
        skipped = 1 if number == 0 else 0
        # a token belongs to a span if the text up to its end begins alike: merges across the seam are left out
        tokens = range(_shared(ids, ids_until(start)) + skipped, _shared(ids, ids_until(end)))
        places += [shift + token for token in tokens if shift + token < len(known.encoded.context)]
    return places


def _spans(lm: LanguageModel, question: Question, prompt: str) -> list[tuple[int, int]]:
    """Where question and options stand in the prompt, in characters, without punctuation at their ends."""
    asked = question.question.strip()
    if prompt.strip() == asked:  # cloze: options are not listed
        spans = [(prompt.index(asked), len(prompt))]
    else:
        listed = options_of(question).rstrip()
        # the last place, since the same words may stand in examples before it
        start = prompt.rfind(f"{asked}\n{listed}")
        if start < 0:
            raise ConfigError(f"the chat template of {lm.name} rewrites questions, so their words are not found in it")
        cursor = start + len(asked) + 1
        last = cursor + len(listed)
        spans = [(start, cursor - 1)]
        for letter, choice in zip(LETTERS, question.choices, strict=False):
            end = min(cursor + len(f"{letter}. {choice}"), last)
            spans.append((cursor + len(f"{letter}. "), end))
            cursor = end + 1
    return [(start, start + len(prompt[start:end].rstrip(TRAILING))) for start, end in spans]


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two texts begin with alike."""
    return sum(takewhile(bool, (mine == its for mine, its in zip(one, other, strict=False))))
