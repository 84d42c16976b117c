"""Four-option questions answered by log-probability: of each option's text, or of its letter.

The two ways give numbers that must not share a table. ``letter`` is the prompt of lm-evaluation-harness
(``wmdp_*``, ``mmlu_*``): options listed, then ``Answer:``, and the letter that is likeliest to follow.
``cloze`` asks which option's text is likeliest to follow the bare question.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from sae_forge.config import Scoring
from sae_forge.evals.continuations import Done, Encoded, Score, encode, score
from sae_forge.evals.items import Question
from sae_forge.evals.metrics import LETTERS
from sae_forge.models.loading import LanguageModel

SUBJECTS = {"wmdp-bio": "biology", "wmdp-cyber": "cybersecurity", "wmdp-chem": "chemistry"}
"""What the harness calls the subject of the question files that do not name it themselves."""

SPLIT_ENDINGS = ("_test", "_dev", "_val")


@dataclass(frozen=True)
class Answered:
    """How a model answered one question."""

    answer: int
    options: tuple[Score, ...]
    """Log-prob of each option, in the order of the question."""

    @cached_property
    def chosen(self) -> int:
        """The option of the highest summed log-prob; of equals the first."""
        return max(range(len(self.options)), key=lambda index: self.options[index].logprob)

    @cached_property
    def chosen_by_mean(self) -> int:
        """The option of the highest log-prob per token, which does not favour short options."""
        return max(range(len(self.options)), key=lambda index: self.options[index].mean)

    @cached_property
    def correct(self) -> bool:
        """Whether the chosen option is the right one."""
        return self.chosen == self.answer

    @cached_property
    def logprob(self) -> float:
        """Summed log-prob of the right option, in nats."""
        return self.options[self.answer].logprob

    @cached_property
    def probability(self) -> float:
        """Share of the right option in the probability that the four options have together."""
        best = max(option.logprob for option in self.options)
        weights = [math.exp(option.logprob - best) for option in self.options]
        return weights[self.answer] / sum(weights)


def encode_questions(lm: LanguageModel, questions: Sequence[Question], scoring: Scoring, domain: str) -> list[Encoded]:
    """Token ids of the questions and their four continuations, ready for :func:`answer`."""
    if scoring == "cloze":
        return encode(lm, [(item.question, item.choices) for item in questions])
    return encode(lm, [(letter_prompt(item, domain), tuple(LETTERS)) for item in questions])


def letter_prompt(question: Question, domain: str) -> str:
    """The zero-shot prompt of lm-evaluation-harness, up to and including ``Answer:``."""
    subject = (question.subject or subject_of(domain)).replace("_", " ")
    options = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, question.choices, strict=True))
    head = f"The following are multiple choice questions (with answers) about {subject}.\n\n"
    return f"{head}{question.question.strip()}\n{options}\nAnswer:"


def subject_of(domain: str) -> str:
    """What a question file is about, from its name: ``human_aging_test`` is about ``human aging``."""
    for ending in SPLIT_ENDINGS:
        domain = domain.removesuffix(ending)
    return SUBJECTS.get(domain, domain.replace("_", " "))


def answer(
    lm: LanguageModel,
    questions: Sequence[Question],
    encoded: Sequence[Encoded],
    *,
    batch_size: int,
    share: bool = True,
    done: Done | None = None,
) -> list[Answered]:
    """How the model as it stands, edits included, answers each question."""
    scores = score(lm, encoded, batch_size=batch_size, share=share, done=done)
    return [Answered(item.answer, options) for item, options in zip(questions, scores, strict=True)]
