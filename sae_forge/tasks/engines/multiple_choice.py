"""Questions of two options or more, answered by log-probability: of each option's text, or of its letter.

The ways give numbers that must not share a table. ``letter`` is the prompt of lm-evaluation-harness
(``wmdp_*``, ``mmlu_*``): options listed, then ``Answer:``, and the letter that is likeliest to follow. ``chat`` is
that of arXiv 2410.19278, SAEBench and arXiv 2504.08192: the same in a turn of the model's chat template, then
``Answer: (`` and the likelier of the letter's two spellings. ``cloze`` asks which option's text is likeliest to
follow the bare question.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any

from sae_forge.config.questions import Scoring
from sae_forge.errors import ConfigError, DataError
from sae_forge.models.chat import Rendered, prompts_ids, render_alike
from sae_forge.models.loading import LanguageModel
from sae_forge.models.tokens import max_input, text_ids
from sae_forge.statistics.answers import LETTERS
from sae_forge.tasks.engines.continuations import Done, Encoded, Score, encode, fitted, score
from sae_forge.tasks.frames import FRONT, PLAIN, Frame
from sae_forge.tasks.records import Question

SUBJECTS = {"wmdp-bio": "biology", "wmdp-cyber": "cybersecurity", "wmdp-chem": "chemistry"}
"""What the harness calls the subject of the question files that do not name it themselves."""

CHAT_SUBJECTS = {"cybersecurity": "cyber security"}
"""Where the chat prompt spells a subject in its own way."""

SPLIT_ENDINGS = ("_test", "_dev", "_val")
ANSWER = "Answer:"
CHAT_ANSWER = "Answer: ("
LETTER, CHAT = f"{{question}}\n{{options}}\n{ANSWER}", "{question}\n{options}"
"""How a question is laid out in the prompts of the harness and of the papers."""
SPELLINGS = ("(", ""), (" ",)
"""What may stand before a letter in the two spellings of its token, "A" and " A", the first that gives it taken."""


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
        """Share of the right option in the probability that all options have together."""
        best = max(option.logprob for option in self.options)
        # softmax over the options, shifted by the largest so that none underflows
        weights = [math.exp(option.logprob - best) for option in self.options]
        return weights[self.answer] / sum(weights)


def encode_questions(
    lm: LanguageModel,
    questions: Sequence[Question],
    scoring: Scoring,
    domain: str,
    *,
    blind: bool = False,
    front: str = "",
    prefix: str = "",
    frame: Frame = PLAIN,
) -> list[Encoded]:
    """Token ids of the questions and their continuations, ready for :func:`answer`.

    A continuation for each option, in their order; under ``chat`` two, the spellings of its letter.

    Args:
        blind: Leave out instruction and question, so that only the options tell which one is right.
        front: Text before all else, inside the turn of a chat.
        prefix: Text after all else, as the beginning of the answer.
        frame: How they are laid out, and what is answered in front of them.

    Raises:
        ConfigError: ``chat`` on a model without a chat template.
    """
    if scoring == "chat":
        chats = [
            chat.followed_by(prefix)
            # orders of one question are neighbours
            for _, alike in groupby(questions, key=lambda item: (item.id, item.question, item.subject))
            for chat in chat_prompts(lm, list(alike), domain, blind=blind, front=front, frame=frame)
        ]
        return _encode_chat(lm, chats, [len(item.choices) for item in questions])
    prompts = [
        prompt_of(lm, item, scoring, domain, blind=blind, front=front, frame=frame) + prefix for item in questions
    ]
    match scoring:
        case "cloze":
            return encode(lm, [(text, item.choices) for text, item in zip(prompts, questions, strict=True)])
        case "letter":
            letters = [tuple(LETTERS[: len(item.choices)]) for item in questions]
            return encode(lm, list(zip(prompts, letters, strict=True)))


def prompt_of(
    lm: LanguageModel,
    question: Question,
    scoring: Scoring,
    domain: str,
    *,
    blind: bool = False,
    front: str = "",
    frame: Frame = PLAIN,
) -> str:
    """All that the model reads before it answers, as text; special tokens of a chat template included."""
    match scoring:
        case "cloze":
            return front + (ANSWER if blind else cloze_prompt(question, domain, frame=frame))
        case "letter":
            return front + letter_prompt(question, domain, blind=blind, frame=frame)
        case "chat":
            return chat_prompt(lm, question, domain, blind=blind, front=front, frame=frame).text


def cloze_prompt(question: Question, domain: str, *, frame: Frame = PLAIN) -> str:
    """The bare question; in a frame behind its text and behind answered ones."""
    if frame == PLAIN:
        return question.question
    subject = _subject(question, domain)
    shots = [f"{frame.laid_out(one, subject, '{question}')} {one.choices[one.answer]}\n\n" for one in frame.shots]
    return frame.opening(subject, "") + "".join(shots) + frame.laid_out(question, subject, "{question}")


def letter_prompt(question: Question, domain: str, *, blind: bool = False, frame: Frame = PLAIN) -> str:
    """The prompt of lm-evaluation-harness, up to and including ``Answer:``; a frame changes its parts.

    Args:
        blind: The options alone, in no frame.
    """
    if blind:
        return f"{options_of(question)}\n{ANSWER}"
    subject = _subject(question, domain)
    shots = [f"{frame.laid_out(one, subject, LETTER)} {LETTERS[one.answer]}\n\n" for one in frame.shots]
    return frame.opening(subject, f"{FRONT}\n") + "".join(shots) + frame.laid_out(question, subject, LETTER)


def chat_prompt(lm: LanguageModel, question: Question, domain: str, **how: Any) -> Rendered:
    """That of one of the :func:`chat_prompts`."""
    return chat_prompts(lm, [question], domain, **how)[0]


def chat_prompts(
    lm: LanguageModel,
    questions: Sequence[Question],
    domain: str,
    *,
    blind: bool = False,
    front: str = "",
    frame: Frame = PLAIN,
) -> list[Rendered]:
    """A user's turn that asks, and the beginning of the model's, up to and including ``Answer: (``.

    Answered questions of a frame are turns before it.

    Args:
        questions: One in several orders of its options.

    Raises:
        ConfigError: the tokenizer has no chat template, or one that raises.
    """
    if not lm.tokenizer.chat_template:
        raise ConfigError(f"--scoring chat needs a chat template, and {lm.name} has none; use --scoring letter")
    asked = [_turns(question, domain, blind, front, frame) for question in questions]
    try:
        return [chat.followed_by(CHAT_ANSWER) for chat in render_alike(lm, asked, to_go_on=True)]
    except DataError as error:
        raise ConfigError(f"{error}; use --scoring letter") from error


def _turns(question: Question, domain: str, blind: bool, front: str, frame: Frame) -> list[dict[str, str]]:
    if blind:
        return [{"role": "user", "content": front + options_of(question)}]
    subject = _subject(question, domain)
    subject = CHAT_SUBJECTS.get(subject, subject)
    asked = [frame.laid_out(one, subject, CHAT) for one in (*frame.shots, question)]
    asked[0] = front + frame.opening(subject, FRONT) + asked[0]
    turns = [{"role": "user", "content": text} for text in asked]
    for place, shot in reversed(list(enumerate(frame.shots))):
        said = f"{CHAT_ANSWER}{LETTERS[shot.answer]})"
        turns.insert(place + 1, {"role": "assistant", "content": said})
    return turns


def options_of(question: Question) -> str:
    """The options, a line each, behind their letters."""
    return "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, question.choices, strict=False))


def subject_of(domain: str) -> str:
    """What a question file is about, from its name: ``human_aging_test`` is about ``human aging``."""
    for ending in SPLIT_ENDINGS:
        domain = domain.removesuffix(ending)
    return SUBJECTS.get(domain, domain.replace("_", " "))


def _subject(question: Question, domain: str) -> str:
    return (question.subject or subject_of(domain)).replace("_", " ")


def _encode_chat(lm: LanguageModel, chats: Sequence[Rendered], options: Sequence[int]) -> list[Encoded]:
    targets = [(token,) for letter in LETTERS[: max(options, default=0)] for token in letter_ids(lm, letter)]
    room = max_input(lm) - 1
    return [
        Encoded(fitted(whole, room), tuple(targets[: 2 * count]), truncated=len(whole) > room)
        for whole, count in zip(prompts_ids(lm, chats), options, strict=True)
    ]


def letter_ids(lm: LanguageModel, letter: str) -> tuple[int, ...]:
    """The tokens of a letter as it stands after a bracket and after a space; the same one twice where they agree.

    Raises:
        ConfigError: the tokenizer has no token that is just this letter.
    """
    tokens = []
    for fronts in SPELLINGS:
        last = [ids[-1] for ids in text_ids(lm, [front + letter for front in fronts])]
        tokens += [token for token in last if str(lm.tokenizer.decode([token])).strip() == letter][:1]
    if not tokens:
        raise ConfigError(f"the tokenizer of {lm.name} has no token for {letter!r} alone; use --scoring cloze")
    return (tokens[0], tokens[-1])


def answer(
    lm: LanguageModel,
    questions: Sequence[Question],
    encoded: Sequence[Encoded],
    *,
    batch_size: int,
    share: bool = True,
    relative: bool = False,
    done: Done | None = None,
) -> list[Answered]:
    """How the model as it stands, edits included, answers each question; of two spellings the likelier one counts.

    Args:
        relative: Log-probs may be among the letters alone, which is less work.
    """
    scores = score(lm, encoded, batch_size=batch_size, share=share, relative=relative, done=done)
    return [
        Answered(item.answer, _likeliest(options, len(item.choices)))
        for item, options in zip(questions, scores, strict=True)
    ]


def _likeliest(scores: Sequence[Score], options: int) -> tuple[Score, ...]:
    """One score an option: the best of those that stand for it, which are neighbours."""
    each = len(scores) // options
    return tuple(max(scores[start : start + each]) for start in range(0, len(scores), each))
