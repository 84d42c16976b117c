"""Frozen dataclasses as JSON and back: every key that there must be, no other, each of the type its field declares.

The one decoder. A field without a default must be there; ``encode`` leaves one with a default out where it holds that.
What a field is called in the file, if not by its own name, stands in its metadata: ``REST``, ``OMITTED``, ``called``.
"""

import json
from collections.abc import Hashable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin

from sae_forge.errors import ForgeError
from sae_forge.store import files
from sae_forge.store.remote import AnyPath

Record = TypeVar("Record")

_KEY = "validation_alias"
"""What pydantic reads in the metadata of a dataclass's field, and takes for the field's key."""
_REST, _NOWHERE = "*", "(not in the file)"


def called(key: str) -> dict[str, str]:
    """Metadata of a field that goes by another name in the file."""
    return {_KEY: key}


REST = called(_REST)
"""Metadata of a mapping whose entries stand among the object's own keys, as ``loss`` and ``generation`` of a report."""
OMITTED = called(_NOWHERE)
"""Metadata of a field with a default that is never written."""


def encode(value: Any) -> Any:
    """The JSON of a dataclass, of a mapping or sequence of them, or of what is JSON already."""
    if isinstance(value, Mapping):
        return {key: encode(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [encode(child) for child in value]
    if not is_dataclass(value):
        return value
    written: dict[str, Any] = {}
    for field in fields(value):
        key, held = field.metadata.get(_KEY, field.name), getattr(value, field.name)
        if key == _REST:
            written |= encode(held)
        elif key != _NOWHERE and (field.default is MISSING or held != field.default):
            written[key] = encode(held)
    return written


def read(kind: type[Record] | Any, path: AnyPath, *, error: type[ForgeError], what: str, hint: str = "") -> Record:
    """The record a JSON file holds.

    Args:
        kind: A dataclass; fields may hold others, tuples and dicts of them, and texts of a Literal. Or one of these.
        error: Raised in one line that names the file, the key, and what was expected there.
        what: What the file should be ("a selection of latents"), for that line.
        hint: What to do about it, for its end.
    """
    value = files.read_json(path, kind=error, what=what)
    try:
        return decode(kind, value)
    except ValueError as flaw:
        raise error(f"{path} is not {what}: {flaw}{hint and f'; {hint}'}") from None


def read_content(kind: type[Record] | Any, content: bytes, path: Path, *, error: type[ForgeError], what: str) -> Record:
    """The record in these bytes of a file, for those who must read it once and in their own way."""
    try:
        return decode(kind, files.parse_json(content))
    except (ValueError, RecursionError) as flaw:
        raise error(f"{path} is not {what}: {flaw}") from None


def decode(kind: type[Record] | Any, value: object) -> Record:
    """A record from its JSON.

    A list becomes a tuple and a whole number a float where the field says so; nothing else is converted. Keys of a
    mapping keep their order.

    Raises:
        ValueError: one line that names the first key that is wrong, and what was expected there; also for what
            ``__post_init__`` raises.
    """
    from pydantic import ValidationError  # 0.2 s that `--help` should not wait for

    try:
        # as text once more, since only of JSON does a strict pydantic take a list for a tuple
        return _decoder(kind).validate_json(json.dumps([_gathered(kind, value)], allow_nan=False))[0]
    except ValidationError as error:
        raise ValueError(_told(error.errors(include_url=False)[0])) from None
    except ForgeError as error:
        raise ValueError(str(error)) from error


@cache
def _decoder(kind: Any) -> Any:
    """How pydantic reads a record: as the one item of a tuple, since settings for a bare dataclass are refused."""
    from pydantic import ConfigDict, TypeAdapter

    one: Any = tuple[kind]  # pyright: ignore[reportInvalidTypeForm]
    config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    return TypeAdapter(one, config=config)


def _gathered(kind: Any, value: Any) -> Any:
    """The same JSON with the keys that are no field's in an object of their own, where a field takes the rest."""
    if not _takes_rest(kind):
        return value
    if is_dataclass(kind):
        if not isinstance(value, Mapping):
            return value
        kinds = {field.metadata.get(_KEY, field.name): field.type for field in fields(kind)}
        own = {key: _gathered(kinds[key], child) for key, child in value.items() if key in kinds and key != _REST}
        rest = {key: child for key, child in value.items() if key not in own}
        return {**own, _REST: _gathered(kinds[_REST], rest)} if _REST in kinds else {**own, **rest}
    inner = next(part for part in get_args(kind) if _takes_rest(part))
    if get_origin(kind) is UnionType:  # with None, or with what holds no rest
        return _gathered(inner, value)
    if isinstance(value, Mapping):
        return {key: _gathered(inner, child) for key, child in value.items()}
    return [_gathered(inner, child) for child in value] if isinstance(value, list | tuple) else value


@cache
def _takes_rest(kind: Any) -> bool:
    """Whether it is or holds a dataclass one of whose fields takes the rest: the others need no walk through them."""
    if is_dataclass(kind):
        return any(field.metadata == REST or _takes_rest(field.type) for field in fields(kind))
    return any(_takes_rest(part) for part in get_args(kind) if isinstance(part, Hashable))


def _told(flaw: Mapping[str, Any]) -> str:
    where = ".".join(str(key) for key in flaw["loc"][1:] if key != _REST)[:80]
    match flaw["type"]:
        case "missing":
            said = "it is missing"
        case "unexpected_keyword_argument":
            said = "there is no such key"
        case "value_error":  # of a __post_init__
            said = str(flaw["ctx"]["error"])
        case _:
            said = f"{flaw['msg'].replace('Input should', 'it should')}, not {flaw['input']!r:.40}"
    return f"{where}: {said}".removeprefix(": ")
