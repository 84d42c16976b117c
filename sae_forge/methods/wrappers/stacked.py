"""Stacking: all the methods that were named beside it, at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sae_forge.methods.method import Method, Settings, Wrapper
from sae_forge.progress import SILENT, Progress

if TYPE_CHECKING:
    from sae_forge.interventions.edit import Edit
    from sae_forge.methods.subjects import Subject
    from sae_forge.models.loading import LanguageModel


@dataclass(frozen=True, eq=False)
class Stacked:
    """Subjects one after the other: each is given the weights of those before it, and all edits are in force."""

    subjects: "tuple[Subject, ...]"
    changes_weights: bool = True

    @property
    def edits(self) -> tuple["Edit", ...]:
        """Of all, in their order."""
        return tuple(edit for subject in self.subjects for edit in subject.edits)

    def weights(self, lm: "LanguageModel", progress: Progress = SILENT) -> "LanguageModel":
        """The weights that the last leaves."""
        for subject in self.subjects:
            lm = subject.weights(lm, progress)
        return lm


def stacked(subjects: "Sequence[Subject]") -> "Subject":
    """The subjects as one; edits alone are edits of several places, and are controlled as such."""
    from sae_forge.methods.subjects import Edited

    if any(subject.changes_weights for subject in subjects):
        return Stacked(tuple(subjects))
    return Edited(tuple(edit for subject in subjects for edit in subject.edits))


def _over(wrapper: Wrapper, methods: Sequence[Method]) -> list[Method]:
    """One method of all; its settings are theirs, each name led by its method's."""
    parts = tuple(methods)
    if len(parts) < 2:
        return []

    def joined(chosen: Sequence[Settings]) -> Settings:
        pairs = zip(parts, chosen, strict=True)
        return {f"{part.name}.{name}": value for part, settings in pairs for name, value in settings.items()}

    def of(part: Method, settings: Settings) -> Settings:
        lead = f"{part.name}."
        return {name.removeprefix(lead): value for name, value in settings.items() if name.startswith(lead)}

    return [
        Method(
            name="+".join(part.name for part in parts),
            kind="weights" if any(part.kind == "weights" for part in parts) else "hook",
            title=lambda settings: f"{wrapper.name}: {' and '.join(part.said(of(part, settings)) for part in parts)}",
            from_flags=lambda size, materials: [joined([part.from_flags(size, materials)[0] for part in parts])],
            build=lambda settings, materials: stacked([part.build(of(part, settings), materials) for part in parts]),
            needs=lambda materials: next((error for part in parts if (error := part.needs(materials))), None),
            parts=parts,
            joined=lambda chosen, materials: joined(chosen),  # noqa: ARG005
        )
    ]


METHOD = Wrapper(name="stacked", title=lambda _: "stacked", from_flags=lambda _: {}, over=_over)
