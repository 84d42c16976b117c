"""Questions on what is forgotten and on what is kept."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from sae_forge.config.fields import Artefact, Setting
from sae_forge.config.model import ModelConfig

Scoring = Literal["cloze", "letter", "chat"]
QuestionFilter = Literal["none", "correct", "correct_iff_question", "correct_no_tricks", "known"]
Half = Literal["test", "dev", "all"]


@dataclass(frozen=True, kw_only=True)
class QuestionsConfig(ModelConfig):
    """Questions with options on what is forgotten and on what is kept."""

    heading: ClassVar[str] = "Questions"
    decides: ClassVar[tuple[Artefact, ...]] = ("attribution", "report")

    forget_questions: Annotated[
        tuple[str, ...], "Question files (WMDP/MMLU records) on what is forgotten.", Setting(names_items=True)
    ] = ()
    retain_questions: Annotated[tuple[str, ...], "Question files on what is kept.", Setting(names_items=True)] = ()
    scoring: Annotated[
        Scoring,
        "cloze: log-prob of each option's text. letter: of A, B, C, D after the options. chat: letters, chat turn.",
    ] = "letter"
