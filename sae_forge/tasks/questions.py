"""Questions with options: which one a model finds likeliest, beside what guessing gives."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from sae_forge.config.fields import Artefact, Setting
from sae_forge.config.questions import Half, QuestionFilter, QuestionsConfig
from sae_forge.progress import Progress
from sae_forge.results.measure import Measure
from sae_forge.tasks.item import ROLES, Item
from sae_forge.tasks.task import Asked, Done, Standing
from sae_forge.tasks.wrapped import PLAIN, Wording

if TYPE_CHECKING:
    from sae_forge.models.loading import LanguageModel

MEASURES = (
    Measure(
        name="accuracy", words="question accuracy", better="up", chance=0.25, yes_or_no=True,
        read=lambda item: (item.values["correct"], 1.0),
    ),
    Measure(
        name="answer_logprob", words="log-prob of the right option among all", unit="nats", better="up",
        shown="in the file",
        read=lambda item: (item.values["logprob"], 1.0),
    ),
    Measure(name="probability", words="probability of the right option", better="up", shown="in the file"),
    Measure(
        name="logprob", words="log-prob of what should follow", unit="nats per token", better="up", digits=3,
        shown="in full",
        read=lambda item: (item.values["logprob"] / item.weights["tokens"], 1.0),
    ),
)  # fmt: skip
STANDING = Standing(kind="question", protocol=lambda config: {"question_filter": "none", "scoring": config.scoring})


@dataclass(frozen=True, kw_only=True)
class Settings(QuestionsConfig):
    """Question files by role, which of their questions count, and how they are asked."""

    decides: ClassVar[tuple[Artefact, ...]] = ("report",)

    neighbour_questions: Annotated[
        tuple[str, ...], "Question files on what lies close to it.", Setting(names_items=True)
    ] = ()
    question_filter: Annotated[
        QuestionFilter,
        "Ask only questions the unedited model gets right in all orders of the options (24 of four); "
        "_iff_question: and not without the question; _no_tricks: and no option names other options. "
        "known: of each fact whose questions marked as probe it gets right, the others.",
    ] = "none"
    question_front: Annotated[
        str | None,
        "Text before the first question; {subject} is what they are about. Unset: that of the scoring.",
        Setting(younger=True),
    ] = None
    question_template: Annotated[
        str | None,
        "How a question is laid out, of {question}, {options}, {subject}; \\n breaks the line. Unset: as the scoring.",
        Setting(younger=True),
    ] = None
    shot_questions: Annotated[
        tuple[str, ...],
        "Question files whose questions stand in front, answered: one for all, or one of each domain's name.",
        Setting(names_items=True, younger=True),
    ] = ()
    shots: Annotated[
        int | None,
        "How many of them. Unset: all of the file.",
        Setting(at_least=0, younger=True, wanted="give 0 or more"),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Questions:
    """One right among two options or more (WMDP, MMLU); how they are asked is the setting ``scoring``."""

    name: str = "questions"
    title: str = "Questions"
    group: str | None = None
    measures: tuple[Measure, ...] = MEASURES
    settings: type | None = Settings
    tuned_on: bool = True
    writes: bool = False
    standing: Standing = STANDING
    wording: Wording = PLAIN

    def load(
        self, lm: "LanguageModel", config: Any, *, half: Half, limit: int | None, progress: Progress
    ) -> tuple[Asked, ...]:
        """The questions of each file; a limit counts those that the filter left.

        Raises:
            DataError: a file is missing or malformed, nothing of it is left, or its answers stand in front of it.
        """
        from sae_forge.tasks.engines.multiple_choice import encode_questions
        from sae_forge.tasks.engines.orders import filter_questions
        from sae_forge.tasks.frames import frame_of
        from sae_forge.tasks.records import Domain, choose, load_questions, sources_by_domain

        asked = []
        for role in ROLES:
            for name, source in sources_by_domain(getattr(config, f"{role}_questions")).items():
                whole = Domain(
                    name=name, role=role, questions=choose(load_questions(source, progress), half, None, name)
                )
                frame = frame_of(config, name, progress)
                frame.require_unseen(whole.questions, name)
                kept = filter_questions(
                    lm, whole, config.question_filter, config.scoring, batch_size=config.eval_batch_size,
                    folder=config.run_folder, fresh=config.starts_over, progress=progress,
                    frame=frame,
                )  # fmt: skip
                # after the filter, so that a limit of 100 asks 100 questions
                questions = choose(kept, "all", limit, name)
                said = [replace(item, question=self.wording.said(item.question)) for item in questions]
                encoded = encode_questions(
                    lm, said, config.scoring, name, front=self.wording.front, prefix=self.wording.prefix, frame=frame
                )
                asked.append(
                    Asked.of(
                        self,
                        questions,
                        domain=name,
                        role=role,
                        kind=self.standing.kind,
                        truncated=sum(item.truncated for item in encoded),
                        protocol={
                            "question_filter": config.question_filter,
                            **({"frames": {name: told}} if (told := frame.told()) else {}),
                        },
                        content=(questions, encoded),
                    )
                )
        return tuple(asked)

    def ask(self, lm: "LanguageModel", asked: Asked, *, batch_size: int, done: Done | None) -> list[Item]:
        """Every option's log-prob, and what follows from them."""
        from sae_forge.tasks.engines.multiple_choice import answer

        questions, encoded = asked.content
        items = []
        for number, got in enumerate(answer(lm, questions, encoded, batch_size=batch_size, done=done)):
            values = {
                "correct": got.correct,
                "correct_by_mean": got.chosen_by_mean == got.answer,
                "chosen": got.chosen,
                "probability": got.probability,
                "logprob": got.logprob,
                "option_logprobs": tuple(option.logprob for option in got.options),
                "option_tokens": tuple(option.tokens for option in got.options),
                "chance": 1 / len(got.options),
            }
            items.append(asked.answered(number, values, {"tokens": got.options[got.answer].tokens}))
        return items
