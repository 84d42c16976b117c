"""One pass of every scorer over a model as it stands: outside an edit for the baseline, inside it for the rest."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from sae_forge.config import EvalConfig
from sae_forge.errors import DataError
from sae_forge.evals.continuations import Encoded, Score
from sae_forge.evals.generation import Sampling, Written, write
from sae_forge.evals.items import Domain, load_domains, load_generation
from sae_forge.evals.language_modeling import Corpus, SequenceLosses, load_corpus, sequence_losses
from sae_forge.evals.logprob_shift import encode_prompts, target_logprobs
from sae_forge.evals.multiple_choice import Answered, answer, encode_questions
from sae_forge.interventions.apply import EditLog
from sae_forge.models.loading import LanguageModel
from sae_forge.progress import Task

WRITING = "generation/"
"""The place of generated text among the counts of edited tokens; no file's stem holds a slash."""


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Everything that is asked, tokenised once for all the edits that will be asked it."""

    domains: tuple[Domain, ...]
    questions: dict[str, list[Encoded]]
    """By domain."""
    prompts: dict[str, list[Encoded]]
    """By domain."""
    corpora: tuple[Corpus, ...]
    generation: tuple[str, ...]
    sampling: Sampling
    batch_size: int

    @property
    def units(self) -> int:
        """Questions, prompts, sequences and continuations that one measurement takes."""
        asked = sum(len(domain.questions) + len(domain.prompts) for domain in self.domains)
        return asked + sum(corpus.rows for corpus in self.corpora) + len(self.generation)

    @property
    def truncated(self) -> int:
        """Questions and prompts whose beginning did not fit into the model."""
        groups = (*self.questions.values(), *self.prompts.values())
        return sum(item.truncated for group in groups for item in group)


@dataclass(frozen=True)
class Measurement:
    """What the scorers saw, item by item, in the order of the suite."""

    answers: dict[str, list[Answered]] = field(default_factory=dict)
    targets: dict[str, list[Score]] = field(default_factory=dict)
    losses: dict[str, SequenceLosses] = field(default_factory=dict)
    """By role and corpus: ``retain/geography``."""
    written: list[Written] = field(default_factory=list)
    edited: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Real tokens seen and tokens edited, by domain, by role and corpus, and for :data:`WRITING`."""


def load_suite(lm: LanguageModel, config: EvalConfig) -> Suite:
    """The items that the config names, on the half it names.

    Raises:
        DataError: it names none at all, or a file of them is missing or malformed.
    """
    domains = load_domains(config)
    texts = {"forget": config.forget_eval, "retain": config.retain_eval}
    corpora = tuple(load_corpus(lm, source, role, config) for role, sources in texts.items() for source in sources)
    if doubled := [key for key, times in Counter(corpus.key for corpus in corpora).items() if times > 1]:
        raise DataError(f"two held-out texts are called {doubled[0]!r}; rename one of the files")
    generation = load_generation(config.generation_prompts, config.limit)
    if not (domains or corpora or generation):
        raise DataError(
            "nothing to evaluate on: give --forget_questions and --retain_questions, --forget_prompts and "
            "--retain_prompts, --forget_eval and --retain_eval, or --generation_prompts"
        )
    return Suite(
        domains=domains,
        questions={d.name: encode_questions(lm, d.questions, config.scoring, d.name) for d in domains if d.questions},
        prompts={d.name: encode_prompts(lm, d.prompts) for d in domains if d.prompts},
        corpora=corpora,
        generation=generation,
        sampling=Sampling(
            max_new_tokens=config.max_new_tokens, temperature=config.temperature, top_p=config.top_p, seed=config.seed
        ),
        batch_size=config.eval_batch_size,
    )


def measure(lm: LanguageModel, suite: Suite, log: EditLog | None, task: Task, **facts: Any) -> Measurement:
    """Ask the model everything in the suite.

    Args:
        log: What the edit under way counts; None for the baseline, which edits nothing.
        facts: Shown beside the progress.
    """
    found = Measurement()
    size, done = suite.batch_size, partial(task.advance, **facts)
    for domain in suite.domains:
        name = domain.name
        with _counted(found, name, log):
            if domain.questions:
                found.answers[name] = answer(lm, domain.questions, suite.questions[name], batch_size=size, done=done)
            if domain.prompts:
                found.targets[name] = target_logprobs(lm, suite.prompts[name], batch_size=size, done=done)
    for corpus in suite.corpora:
        with _counted(found, corpus.key, log):
            found.losses[corpus.key] = sequence_losses(lm, corpus.batches, done=done)
    if suite.generation:
        with _counted(found, WRITING, log):
            found.written.extend(write(lm, suite.generation, suite.sampling, batch_size=size, done=done))
    return found


@contextmanager
def _counted(found: Measurement, name: str, log: EditLog | None) -> Iterator[None]:
    """Note the real tokens that passed the edit inside the block, and how many it changed."""
    seen, edited = (log.tokens, log.edited) if log else (0, 0)
    yield
    found.edited[name] = (log.tokens - seen, log.edited - edited) if log else (0, 0)
