"""A question's frame: what stands before it, how it and its options are laid out, and answered ones in front of it.

The prompts of the harness and of the papers are the frame of a question by default. Numbers of two frames are two
measurements: a report says the frame of each domain that was asked in one of the user's.
"""

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sae_forge.errors import ConfigError, DataError
from sae_forge.progress import Progress
from sae_forge.statistics.answers import LETTERS
from sae_forge.tasks.records import Question, domain_name, load_questions

FRONT = "The following are multiple choice questions (with answers) about {subject}.\n"
FIELDS = {"front": {"subject"}, "template": {"subject", "question", "options"}}
"""What may stand in braces, and in a template must: the question."""
SPLIT_ENDINGS = ("_test", "_dev", "_val", "_validation")


@dataclass(frozen=True, kw_only=True)
class Frame:
    """How a question is asked; unset parts are those of its scoring."""

    front: str | None = None
    """Once, before all; in a chat at the beginning of the first turn."""
    template: str | None = None
    """The question itself, and each answered one."""
    shots: tuple[Question, ...] = ()
    """Answered ones in front; in a chat they are turns."""

    def opening(self, subject: str, usual: str) -> str:
        """What stands before all."""
        return (usual if self.front is None else self.front).format(subject=subject)

    def laid_out(self, question: Question, subject: str, usual: str) -> str:
        """The question and its options; its own ends are stripped of white space."""
        template = usual if self.template is None else self.template
        options = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, question.choices, strict=False))
        return template.format(question=question.question.strip(), options=options, subject=subject)

    def require_unseen(self, questions: Sequence[Question], domain: str) -> None:
        """Refuse to ask what stands in front with its answer.

        Raises:
            DataError: some of the questions do.
        """
        shown = {(shot.question.strip(), frozenset(shot.choices)) for shot in self.shots}
        told = sum((one.question.strip(), frozenset(one.choices)) in shown for one in questions)
        if told:
            raise DataError(
                f"{told} of the {len(questions)} {domain} questions are among --shot_questions, so their answers would "
                "stand in front of them; take the shots from questions that are not asked"
            )

    def told(self) -> dict[str, Any]:
        """What a report says of it; nothing, where it is the usual one."""
        said = {"front": self.front, "template": self.template, "shots": len(self.shots) or None}
        return {name: value for name, value in said.items() if value is not None}


PLAIN = Frame()


def frame_of(config: Any, domain: str, progress: Progress) -> Frame:
    """The frame that a config asks for, with the shots of a domain.

    Raises:
        ConfigError: braces hold something else than a field, or shots are asked for and no file is named for them.
        DataError: the file of the shots is missing, malformed or too short.
    """
    front, template = (
        _checked(name, getattr(config, f"question_{name}").replace("\\n", "\n"))
        if getattr(config, f"question_{name}") is not None
        else None
        for name in FIELDS
    )
    sources: Sequence[str] = config.shot_questions
    if not sources:
        if config.shots:
            raise ConfigError(f"--shots {config.shots} are taken from --shot_questions, and that names no file")
        return Frame(front=front, template=template)
    own = [one for one in sources if _stem(domain_name(one)) == _stem(domain)]
    if not own and len(sources) > 1:
        raise ConfigError(
            f"--shot_questions names no file called {_stem(domain)}, as the questions are; give one for each domain, "
            "or a single one for all"
        )
    source = (own or list(sources))[0]
    known = load_questions(source, progress)
    if config.shots is not None and len(known) < config.shots:
        raise DataError(f"{source} holds {len(known)} questions, and --shots {config.shots} were asked for")
    return Frame(front=front, template=template, shots=known[: config.shots])


def _stem(name: str) -> str:
    return next((name.removesuffix(ending) for ending in SPLIT_ENDINGS if name.endswith(ending)), name)


def _checked(name: str, text: str) -> str:
    flag, allowed = f"--question_{name}", FIELDS[name]
    try:
        used = {field for _, field, _, _ in string.Formatter().parse(text) if field is not None}
    except ValueError as error:
        raise ConfigError(f"{flag} {text[:60]!r}: {error}; write {{{{ for a brace itself") from None
    if unknown := sorted(used - allowed):
        possible = ", ".join(f"{{{one}}}" for one in sorted(allowed))
        raise ConfigError(f"{flag} has {{{unknown[0]}}}; it may have {possible}")
    if name == "template" and "question" not in used:
        raise ConfigError(f"{flag} {text[:60]!r} has no {{question}}; say where it stands")
    return text
