"""An edit as one thing: where in a model, on which dictionary, what is done.

It prints as one line, compares by content, and several make a list: at several places at once, or one after the other
at one place. ``apply.attached`` puts edits in force and ``saved`` keeps them on disk.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields, is_dataclass, replace

import torch

from sae_forge.errors import CheckpointError
from sae_forge.hookpoint import HookPoint
from sae_forge.interventions.controls import RandomDirections
from sae_forge.interventions.gates.none import ALWAYS
from sae_forge.interventions.intervention import Intervention
from sae_forge.sae.dictionary import Dictionary
from sae_forge.sae.slices import Slice, hold, sliced, taken_apart


@dataclass(frozen=True, eq=False, repr=False)
class Edit:
    """An intervention on the latents of a dictionary, at a place of a model.

    Two edits are equal if they do the same: the same intervention at the same place, on latents that are read and
    written with the same numbers. So an edit equals its own slice.
    """

    point: HookPoint
    dictionary: Dictionary | Slice
    """Whole, or the part of one that the intervention needs."""
    intervention: Intervention
    sink_norm: float | None = None
    """Tokens whose activation is longer are sinks (``data.sinks``): they are never edited, and no gate sees them. None:
    all are as any other."""

    @property
    def latents(self) -> tuple[int, ...]:
        """All latents concerned, watched or written, by their number in the whole dictionary."""
        return self.intervention.latents

    @property
    def needed(self) -> tuple[int, ...]:
        """Those, and of a control that draws on other latents what it draws.

        Raises:
            ConfigError: there are too few to draw from.
        """
        return needed(self.intervention, self.dictionary.d_sae)

    def sliced(self) -> "Edit":
        """The same edit with no more of the dictionary than it needs, ready to be saved.

        One that drops the SAE's error rebuilds every token from the whole dictionary, and keeps it.

        Raises:
            ConfigError: a latent lies beyond the dictionary.
            CheckpointError: what a dictionary of this type needs to be read is not known.
        """
        if not self.intervention.keep_error:
            return self
        return replace(self, dictionary=sliced(self.dictionary, self.needed))

    def __str__(self) -> str:
        what, count = self.intervention, len(self.intervention.targets)
        where = f" on {count} latent{'s' * (count != 1)}" if count else ""
        where += "" if what.written == what.targets else f", writing {len(what.written)}"
        where += "" if what.gate == ALWAYS else f" behind {_words(what.gate)}"
        touched = {"attended": ", special tokens too", "all_but_first": ", all tokens but the first"}
        rest = "" if self.sink_norm is None else ", sinks spared"
        rest += touched.get(what.tokens, "")
        rest += "" if what.counted == "real" else f", counting {what.counted} tokens"
        rest += "" if what.keep_error else ", error dropped"
        return f"{_words(what.edit, what.name)}{where} at {self.point}{rest}"

    def __repr__(self) -> str:
        return f"Edit({self})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Edit):
            return NotImplemented
        if (self.point, self.intervention, self.sink_norm) != (other.point, other.intervention, other.sink_norm):
            return False
        return self.dictionary is other.dictionary or _same_numbers(self, other)

    def __hash__(self) -> int:
        return hash((self.point, self.intervention.name, self.intervention.targets))


def read_ahead(dictionary: Dictionary, edits: Iterable[Edit]) -> None:
    """Have read in one go what these edits need of a dictionary that stays in its file, where a part of it will do."""
    partial = [edit for edit in edits if edit.dictionary is dictionary and edit.intervention.keep_error]
    hold(dictionary, (latent for edit in partial for latent in edit.needed))


def needed(intervention: Intervention, d_sae: int) -> tuple[int, ...]:
    """The latents that an intervention watches, writes or, as a control, draws, of a dictionary of ``d_sae``.

    Raises:
        ConfigError: there are too few to draw from.
    """
    edit, count, latents = intervention.edit, max(1, len(intervention.written)), intervention.latents
    return latents + (edit.stand_ins(count, d_sae, latents) if isinstance(edit, RandomDirections) else ())


def _same_numbers(edit: Edit, other: Edit) -> bool:
    """Whether two edits read and write their latents with the same weights."""
    try:
        (facts, tensors), (others, their) = (taken_apart(one.sliced().dictionary) for one in (edit, other))
    except CheckpointError:  # a dictionary of a type of one's own is equal to itself only
        return False
    return facts == others and all(
        torch.equal(tensor, their[name].to(tensor.device)) for name, tensor in tensors.items()
    )


def _words(what: object, name: str | None = None) -> str:
    """A name, the first setting as a bare number, and those of the others that are no default."""
    if isinstance(what, RandomDirections):
        return f"{what.kind} control {what.seed} of {_words(what.edit, name)}"
    said = [name or type(what).__name__]
    for place, field in enumerate(fields(what)) if is_dataclass(what) else ():
        value = getattr(what, field.name)
        if place and value == field.default:
            continue
        match value:
            case float() | int():
                shown = f"{value:g}"
            case tuple():
                shown = f"{len(value)} values"
            case _:
                shown = _words(value) if is_dataclass(value) else str(value)
        said.append(f"{field.name} {shown}" if place else shown)
    return " ".join(said)
