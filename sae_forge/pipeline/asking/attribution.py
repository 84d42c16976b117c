"""What a selection method is handed that asks a model: the questions it is sure of, and what becomes of them.

Only questions of the dev half are asked, so reports on the test half stay clean.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from sae_forge.config.features import FeaturesConfig
from sae_forge.config.text import HeldOutConfig
from sae_forge.data.sinks import are_sinks
from sae_forge.data.texts.sources import corpus_identity
from sae_forge.errors import DataError
from sae_forge.hookpoint import HookPoint
from sae_forge.interventions.apply import EditLog, applied
from sae_forge.interventions.clamping import ClampFiring
from sae_forge.interventions.intervention import Intervention
from sae_forge.models.loading import LanguageModel
from sae_forge.models.tape import Tape
from sae_forge.pipeline.asking.gradients import Known, encode_known, iter_gradients
from sae_forge.pipeline.bench import Bench
from sae_forge.progress import SILENT, Progress
from sae_forge.sae.dictionary import Dictionary
from sae_forge.sae.named import NamedSAE
from sae_forge.store import files
from sae_forge.tasks.engines.arrangements import reordered, rotations
from sae_forge.tasks.engines.losses import Corpus, load_corpus, sequence_losses
from sae_forge.tasks.engines.multiple_choice import answer
from sae_forge.tasks.engines.orders import ask_orders, orders_file
from sae_forge.tasks.item import Role
from sae_forge.tasks.records import Domain, domain_name, half_of, load_questions

QUESTIONS = 300
"""Questions of either side that are asked at most; of more, those whose names hash lowest."""
LOSS_TOKENS = 10_000
"""Tokens of each retain corpus that the loss is measured on."""


@dataclass(frozen=True, eq=False)
class Asking:
    """A model, questions it is sure of, and text to keep: a :class:`features.methods.method.Ask`."""

    lm: LanguageModel = field(repr=False)
    sae: Dictionary = field(repr=False)
    point: HookPoint
    config: FeaturesConfig
    exams: Mapping[Role, Sequence[Known]] = field(repr=False)
    """Of ``forget`` and of ``retain``."""
    texts: Sequence[Corpus] = field(default=(), repr=False)
    sink_norm: float | None = None
    """Length beyond which an activation is a sink's, which no edit will touch; None: there are none."""

    @property
    def questions(self) -> int:
        return len(self.exams["forget"])

    @property
    def settings(self) -> dict[str, Any]:
        """Question files count by their content."""
        sources = {name: getattr(self.config, name) for name in ("forget_questions", "retain_questions")}
        return {
            "scoring": self.config.scoring,
            "half": "dev",
            "at_most": QUESTIONS,
            "loss_tokens": LOSS_TOKENS,
            **{name: [corpus_identity(source) for source in named] for name, named in sources.items()},
            "questions": {role: len(exam) for role, exam in self.exams.items()},
        }

    def gradients(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        exam = self.exams["forget"]
        number = {(known.domain, known.question.id): place for place, known in enumerate(exam)}
        size = self.config.model_batch_size
        for traced in iter_gradients(self.lm, self.point, exam, self.config.scoring, batch_size=size):
            asked = number[traced.known.domain, traced.known.question.id]
            x = traced.x[traced.places]
            ordinary = ~are_sinks(x, self.sink_norm)
            yield asked, x[ordinary], traced.gradient[traced.places][ordinary]

    def clamped(self, latent: int, value: float) -> AbstractContextManager[EditLog]:
        edit = Intervention("attribution", (latent,), ClampFiring(value))
        return applied(self.lm, self.sae, self.point, edit, self.sink_norm)

    def turned(self, number: int) -> bool:
        return self._wrong(self._rotated[number]) > 0

    def broken(self) -> int:
        with self._answers.running():
            return self._wrong(self.exams["retain"])

    def loss(self) -> float:
        with self._losses.running():
            measured = [sequence_losses(self.lm, corpus.batches) for corpus in self.texts]
        tokens = sum(sum(losses.tokens) for losses in measured)
        return sum(sum(losses.nats) for losses in measured) / tokens if tokens else 0.0

    def _wrong(self, exam: Sequence[Known]) -> int:
        """Questions that the model as it stands gets wrong, in the order of options they are given in."""
        questions, encoded = [known.question for known in exam], [known.encoded for known in exam]
        answers = answer(self.lm, questions, encoded, batch_size=self.config.model_batch_size)
        return sum(not said.correct for said in answers)

    @cached_property
    def _answers(self) -> Tape:
        """Layers below the edit run once."""
        return Tape(self.lm, self.point)

    @cached_property
    def _losses(self) -> Tape:
        return Tape(self.lm, self.point)

    @cached_property
    def _rotated(self) -> list[list[Known]]:
        """Each forget question in the orders a latent is tested in: every option stands behind every letter once."""
        scoring, exams = self.config.scoring, []
        for known in self.exams["forget"]:
            orders = rotations(len(known.question.choices))[: 1 if scoring == "cloze" else None]
            questions = [reordered(known.question, order) for order in orders]
            exams.append(encode_known(self.lm, questions, scoring, known.domain))
        return exams


def asking(config: FeaturesConfig, bench: Bench, named: NamedSAE, sink_norm: float | None = None) -> Asking:
    """What asks the model that an SAE was trained on, about the questions and texts that the config names.

    Args:
        sink_norm: Length beyond which an activation is a sink's.

    Raises:
        DataError: the config names no questions, or the model is sure of none on one side.
    """
    questions = load_asked(config)
    bench.require_same_model(named)
    texts = load_retain_text(bench.lm, config)
    exams = sure(bench.lm, questions, config, bench.run.folder, bench.progress)
    return Asking(bench.lm, named.sae, named.point, config, exams, texts, sink_norm)


def load_asked(config: FeaturesConfig) -> dict[Role, tuple[Domain, ...]]:
    """The questions on what is forgotten and on what is kept that the config names.

    Raises:
        DataError: it names none of either, or a file is missing or malformed.
    """
    if not config.forget_questions or not config.retain_questions:
        raise DataError(
            f"--method {','.join(config.method)} asks the model questions; name them with --forget_questions and "
            "--retain_questions"
        )
    named: dict[Role, tuple[str, ...]] = {"forget": config.forget_questions, "retain": config.retain_questions}
    return {
        role: tuple(Domain(name=domain_name(source), role=role, questions=load_questions(source)) for source in sources)
        for role, sources in named.items()
    }


def load_retain_text(lm: LanguageModel, config: FeaturesConfig) -> tuple[Corpus, ...]:
    """The beginning of each retain corpus, for the loss that a latent adds."""
    shared = {
        name: getattr(config, name) for name in ("model", "text_field", "split", "ctx_len", "bos", "normalize_text")
    }
    held = HeldOutConfig(**shared, loss_tokens=LOSS_TOKENS, eval_batch_size=config.model_batch_size)
    return tuple(load_corpus(lm, source, "retain", held) for source in config.retain)


def sure(
    lm: LanguageModel,
    asked: Mapping[Role, Sequence[Domain]],
    config: FeaturesConfig,
    folder: Path | None = None,
    progress: Progress = SILENT,
) -> dict[Role, list[Known]]:
    """The questions of the dev half that the model gets right in every order, at most :data:`QUESTIONS` a side.

    Args:
        folder: Run folder, where the answers in all orders are kept.

    Raises:
        DataError: there is none on one side.
    """
    exams: dict[Role, list[Known]] = {}
    for role, domains in asked.items():
        known: list[Known] = []
        dev = [
            replace(domain, questions=tuple(item for item in domain.questions if half_of(item.fact) == "dev"))
            for domain in domains
        ]
        for domain in dev:
            if domain.questions:
                orders = ask_orders(
                    lm, domain, config.scoring,
                    batch_size=config.model_batch_size,
                    path=None if folder is None else orders_file(folder, domain.name, config.scoring),
                    fresh=config.starts_over,
                    progress=progress,
                )  # fmt: skip
                progress.say(orders.summary())
                right = set(orders.ids("correct"))
                kept = [item for item in domain.questions if item.id in right]
                known += encode_known(lm, kept, config.scoring, domain.name)
        if not known:
            total = sum(len(domain.questions) for domain in dev)
            raise DataError(
                f"{lm.name} is right in every order of the options on none of the {total} {role} questions of the dev "
                f"half under --scoring {config.scoring}, so there is nothing to explain; "
                "give others with --forget_questions and --retain_questions, or another --scoring"
            )
        exams[role] = sorted(known, key=lambda one: files.digest([one.domain, one.question.id]))[:QUESTIONS]
    return exams
