"""Edits on disk: ``edit.json`` says what is done where, ``edit.safetensors`` holds the slices of dictionaries it takes.

A loaded edit does what the saved one did, to the last bit on the same machine. The JSON is written last, under its
seal, and holds the hash of the tensors, so its presence makes the folder whole. Nothing is unpickled, and no class is
looked up by a name that a file gives but in the table below.
"""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from sae_forge.errors import CheckpointError, ConfigError
from sae_forge.hookpoint import HookPoint
from sae_forge.interventions.ablation import NegativeScaling, RemoveShare, ZeroAblation
from sae_forge.interventions.clamping import ClampFiring, MeanAblation, SetTo, Split
from sae_forge.interventions.controls import RandomDirections
from sae_forge.interventions.edit import Edit
from sae_forge.interventions.gates.table import GATES
from sae_forge.interventions.intervention import Intervention
from sae_forge.interventions.protocol import Gate
from sae_forge.interventions.steering import AddConstant, RemoveProjection, SetProjection
from sae_forge.sae.slices import SliceFacts, put_together, taken_apart, whole
from sae_forge.store import files, records
from sae_forge.store.tensors import publish_tensors, read_tensors

EDIT, TENSORS = "edit.json", "edit.safetensors"
FORMAT = 1
KINDS: tuple[type, ...] = (
    Intervention, NegativeScaling, RemoveShare, ZeroAblation, ClampFiring, MeanAblation, SetTo, Split, AddConstant,
    RemoveProjection, SetProjection, RandomDirections, *(part for kind in GATES for part in kind.parts),
)  # fmt: skip
"""What an intervention may be made of: frozen dataclasses of plain values and of one another."""


@dataclass(frozen=True)
class _Entry:
    """One edit as the file says it."""

    point: str
    intervention: Any
    """The name of its class over its fields, and so on within: ``{"Intervention": {"edit": {"SetTo": …}, …}}``."""
    dictionary: SliceFacts
    sink_norm: float | None = None


@dataclass(frozen=True)
class _Saved:
    """What ``edit.json`` holds."""

    format: Literal[1]
    edits: tuple[_Entry, ...]
    tensors_sha256: str


def save_edits(folder: Path, edits: Sequence[Edit], *, kinds: tuple[type, ...] = ()) -> None:
    """Write edits so that ``load_edits`` gives equal ones; of each dictionary no more than its edit needs.

    Args:
        kinds: Dataclasses of one's own among the edits and gates; to be named again when loading.

    Raises:
        ConfigError: an edit or gate is of a type that is not named.
        CheckpointError: a dictionary is of a type that cannot be saved.
    """
    entries, tensors = [], {}
    for number, edit in enumerate(edits):
        facts, weights = taken_apart(edit.sliced().dictionary)
        tensors |= {f"{number}.{name}": weight.clone() for name, weight in weights.items()}
        entries.append({
            "point": str(edit.point),
            "intervention": _encoded(edit.intervention, (*KINDS, *kinds)),
            "dictionary": asdict(facts),
            **({} if edit.sink_norm is None else {"sink_norm": edit.sink_norm}),
        })  # fmt: skip
    publish_tensors(folder / TENSORS, tensors)
    record = {"format": FORMAT, "edits": entries, "tensors_sha256": files.file_sha256(folder / TENSORS)}
    files.publish_json(folder / EDIT, record)


def load_edits(folder: Path, *, kinds: tuple[type, ...] = (), device: str = "cpu") -> tuple[Edit, ...]:
    """The edits that were saved, each with its slice of a dictionary on ``device``.

    Raises:
        CheckpointError: missing, damaged, of another format, or made of types that are not named.
    """
    path = folder / EDIT
    saved = records.read(_Saved, path, error=CheckpointError, what="a saved edit", hint="save the edit again")
    tensors = read_tensors(folder / TENSORS, kind=CheckpointError, what="the tensors of a saved edit")
    if files.file_sha256(folder / TENSORS) != saved.tensors_sha256:
        raise CheckpointError(f"{folder / TENSORS} is damaged: its hash is not the one in {EDIT}; save the edit again")
    named = {kind.__name__: kind for kind in (*KINDS, *kinds)}
    edits = []
    try:
        for number, entry in enumerate(saved.edits):
            mine = {name.partition(".")[2]: t for name, t in tensors.items() if name.partition(".")[0] == str(number)}
            dictionary = put_together(entry.dictionary, mine)
            intervention = _decoded(entry.intervention, named)
            if not isinstance(intervention, Intervention):
                raise ValueError(f"edit {number} has a {type(intervention).__name__} for an intervention")
            point = HookPoint.parse(entry.point)
            edits.append(Edit(point, dictionary.to(device), intervention, entry.sink_norm))
            whole(dictionary).places(edits[-1].needed)  # refused here, not once a model is run under it
    except (ValueError, TypeError, ConfigError) as error:
        raise CheckpointError(f"{path} is not a saved edit: {error}") from None
    return tuple(edits)


def _encoded(value: Any, kinds: tuple[type, ...]) -> Any:
    """A value JSON-ready: fields of one of the kinds under its name, a tuple as a list, anything else as it is."""
    if type(value) in kinds:
        return {type(value).__name__: {f.name: _encoded(getattr(value, f.name), kinds) for f in fields(value)}}
    if isinstance(value, tuple):
        return [_encoded(item, kinds) for item in value]
    if value is None or isinstance(value, str | int | float):
        return value
    raise ConfigError(
        f"a {type(value).__name__} cannot be saved with an edit; name its class in kinds, if it is one of yours"
    )


def _decoded(value: Any, named: Mapping[str, type[Any]]) -> Any:
    """What was encoded: an object of a named kind, with exactly its fields, each of the type that it declares.

    Raises:
        ValueError: it is of no known kind, or a field is missing, unknown or of another type.
    """
    match list(value.items()) if isinstance(value, dict) else []:
        case [(str(name), dict(given))] if name in named:
            kind = named[name]
        case _:
            raise ValueError(f"{str(value)[:60]!r} is of no known kind; name a class of your own in kinds")
    declared = get_type_hints(kind, localns={"Gate": Gate})  # gates load no torch, so they name it in quotes
    names, needed = ({one.name for one in fields(kind) if every or one.default is MISSING} for every in (True, False))
    if not needed <= set(given) <= names:  # what was saved before a field was there lacks it
        raise ValueError(f"a {name} has the fields {', '.join(sorted(names))}, and no others")
    values: dict[str, Any] = {}
    for field, item in given.items():
        parts = (declared[field], *get_args(declared[field]))
        # a field of a protocol holds an object by its name; no plain value is written as a mapping
        if isinstance(item, dict) or any(getattr(part, "_is_protocol", False) for part in parts):
            values[field] = _decoded(item, named)
            if not isinstance(values[field], declared[field]):
                raise ValueError(f"{field} of a {name} cannot be a {type(values[field]).__name__}")
            continue
        try:
            values[field] = records.decode(declared[field], item)
        except ValueError as flaw:
            raise ValueError(f"{field} of a {name}: {flaw}") from None
    return kind(**values)
