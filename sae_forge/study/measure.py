"""One pass of every scorer over a model as it stands: outside an edit for the baseline, inside it for the rest."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

from sae_forge.config.evaluate import EvalConfig
from sae_forge.errors import DataError
from sae_forge.interventions.apply import EditLog
from sae_forge.models.loading import LanguageModel
from sae_forge.models.tape import Tape
from sae_forge.progress import SILENT, Progress, Task
from sae_forge.tasks.completions import encode_prompts, target_logprobs
from sae_forge.tasks.engines.continuations import Done, Encoded, Score
from sae_forge.tasks.engines.generation import Sampling, Written, write
from sae_forge.tasks.engines.losses import Corpus, SequenceLosses, load_corpus, sequence_losses
from sae_forge.tasks.engines.multiple_choice import Answered, answer, encode_questions
from sae_forge.tasks.engines.orders import filter_questions
from sae_forge.tasks.items import Domain, choose, load_domains, load_generation
from sae_forge.tasks.muse import Muse, load_muse
from sae_forge.tasks.muse_scores import Recalled, least_likely, recall

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
    muse: Muse = field(default_factory=Muse)

    @property
    def units(self) -> int:
        """Questions, prompts, texts, sequences and continuations that one measurement takes."""
        asked = sum(len(domain.questions) + len(domain.prompts) for domain in self.domains)
        return asked + sum(corpus.rows for corpus in self.corpora) + len(self.generation) + self.muse.units

    @property
    def unwritten(self) -> "Suite":
        """The suite without all that has text written."""
        return replace(self, generation=(), muse=replace(self.muse, recalls=()))

    @property
    def truncated(self) -> int:
        """Questions and prompts whose beginning did not fit into the model."""
        groups = (*self.questions.values(), *self.prompts.values())
        return sum(item.truncated for group in groups for item in group) + self.muse.truncated


class Touched(NamedTuple):
    """How much an edit touched."""

    tokens: int
    """Real tokens seen."""
    edited: int
    """Those of them that were changed."""
    norm: float
    """L2 norms of the changes, summed."""


@dataclass(frozen=True)
class Measurement:
    """What the scorers saw, item by item, in the order of the suite."""

    answers: dict[str, list[Answered]] = field(default_factory=dict)
    targets: dict[str, list[Score]] = field(default_factory=dict)
    losses: dict[str, SequenceLosses] = field(default_factory=dict)
    """By role and corpus: ``retain/geography``."""
    written: list[Written] = field(default_factory=list)
    recalled: dict[str, list[Recalled]] = field(default_factory=dict)
    """By MUSE's measure: ``verbmem_forget``."""
    least_likely: dict[str, list[Score]] = field(default_factory=dict)
    """By side of PrivLeak: the least likely tokens of each text."""
    edited: dict[str, Touched] = field(default_factory=dict)
    """By domain, by role and corpus, and for :data:`WRITING`."""


def load_suite(lm: LanguageModel, config: EvalConfig, progress: Progress = SILENT) -> Suite:
    """The items that the config names, on the half it names; of the questions those that its filter keeps.

    Raises:
        DataError: it names none at all, or a file of them is missing or malformed.
    """
    domains = _domains(lm, config, progress)
    texts = {"forget": config.forget_eval, "retain": config.retain_eval}
    corpora = tuple(load_corpus(lm, source, role, config) for role, sources in texts.items() for source in sources)
    if doubled := [key for key, times in Counter(corpus.key for corpus in corpora).items() if times > 1]:
        raise DataError(f"two held-out texts are called {doubled[0]!r}; rename one of the files")
    generation = load_generation(config.generation_prompts, config.limit)
    muse = load_muse(lm, config)
    if not (domains or corpora or generation or muse.units):
        raise DataError(
            "nothing to evaluate on: give --forget_questions and --retain_questions, --forget_prompts and "
            "--retain_prompts, --forget_eval and --retain_eval, --generation_prompts, or MUSE's --verbmem, "
            "--knowmem_forget and --knowmem_retain, --privleak_forget and --privleak_holdout"
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
        muse=muse,
    )


def _domains(lm: LanguageModel, config: EvalConfig, progress: Progress) -> tuple[Domain, ...]:
    """The domains; a limit counts the questions that the filter left."""
    if config.question_filter == "none":
        return load_domains(config)
    kept = filter_questions(
        lm, load_domains(replace(config, limit=None)), config.question_filter, config.scoring,
        batch_size=config.eval_batch_size, folder=config.run_folder, fresh=config.starts_over, progress=progress,
    )  # fmt: skip
    return tuple(
        replace(
            domain,
            questions=choose(domain.questions, "all", config.limit, domain.name),
            prompts=choose(domain.prompts, "all", config.limit, domain.name),
        )
        for domain in kept
    )


def measure(
    lm: LanguageModel, suite: Suite, log: EditLog | None, task: Task, *, tape: Tape | None = None, **facts: Any
) -> Measurement:
    """Ask the model everything in the suite.

    Args:
        log: What the edit under way counts; None where no activation is edited.
        tape: Spares the layers below the edit all that was asked before with the same suite.
        facts: Shown beside the progress.
    """
    found = Measurement()
    done = partial(task.advance, **facts)
    with nullcontext() if tape is None else tape.running():
        _ask(lm, suite, log, found, done)
    if suite.generation:
        with _counted(found, WRITING, log):
            found.written.extend(write(lm, suite.generation, suite.sampling, batch_size=suite.batch_size, done=done))
    for asked in suite.muse.recalls:
        found.recalled[asked.name] = recall(lm, asked, batch_size=suite.batch_size, done=done)
    return found


def _ask(lm: LanguageModel, suite: Suite, log: EditLog | None, found: Measurement, done: Done) -> None:
    """Everything that is the same forward passes whatever the model answers."""
    size = suite.batch_size
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
    for side, rows in suite.muse.token_ids.items():
        found.least_likely[side] = least_likely(lm, rows, batch_size=size, done=done)


@contextmanager
def _counted(found: Measurement, name: str, log: EditLog | None) -> Iterator[None]:
    """Note what of the text that passes the edit inside the block it touches."""
    before = _touched(log)
    yield
    now = _touched(log)
    found.edited[name] = Touched(now.tokens - before.tokens, now.edited - before.edited, now.norm - before.norm)


def _touched(log: EditLog | None) -> Touched:
    return Touched(0, 0, 0.0) if log is None else Touched(log.tokens, log.edited, log.norms)
