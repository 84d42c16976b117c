"""Frozen dataclasses as JSON and back, strictly, by what their fields say.

A field without a default is always written and must be there; one with a default is left out where it holds that. The
entries of a field marked ``REST`` stand among the object's own keys, as a report's ``loss`` and ``generation`` do. Keys
keep their order, which tables and sentences follow; records that have no such keys are decoded by ``store.records``.
"""

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin

from sae_forge.errors import DataError

REST = {"rest": True}
"""Metadata of the field that takes every key which is no field's."""
OMITTED = {"omitted": True}
"""Metadata of a field that is never written."""

T = TypeVar("T")


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
        held = getattr(value, field.name)
        if field.metadata.get("rest"):
            written |= encode(held)
        elif not field.metadata.get("omitted") and (field.default is MISSING or held != field.default):
            written[field.metadata.get("key", field.name)] = encode(held)
    return written


def decode(kind: type[T], value: Any, place: str) -> T:
    """The ``kind`` that this JSON says.

    Args:
        place: Where it stands, for the message.

    Raises:
        DataError: a key is missing, unknown, or holds something else; names it by its place.
    """
    if not isinstance(value, Mapping):
        raise _other("an object", value, place)
    given, left, rest = {}, dict(value), None
    for field in fields(kind):  # pyright: ignore[reportArgumentType]
        key = field.metadata.get("key", field.name)
        if field.metadata.get("rest"):
            rest = field
        elif key in left and not field.metadata.get("omitted"):
            given[field.name] = _decoded(field.type, left.pop(key), f"{place}.{key}")
        elif field.default is MISSING:
            raise DataError(f"{place} lacks {key!r}")
    if rest is not None:
        given[rest.name] = _decoded(rest.type, left, place)
    elif left:
        raise DataError(f"{place} has {next(iter(left))!r}, which is none of its keys")
    return kind(**given)


def _decoded(kind: Any, value: Any, place: str) -> Any:
    """One value by the annotation of its field."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin is UnionType:
        (wanted,) = (one for one in inner if one is not NoneType)
        return None if value is None else _decoded(wanted, value, place)
    if origin is Literal:
        if value not in inner:
            raise _other(" or ".join(map(repr, inner)), value, place)
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise _other("a list", value, place)
        return tuple(_decoded(inner[0], child, f"{place}[{number}]") for number, child in enumerate(value))
    if origin is Mapping:
        if not isinstance(value, Mapping):
            raise _other("an object", value, place)
        return {key: _decoded(inner[1], child, f"{place}.{key}") for key, child in value.items()}
    if isinstance(kind, type) and is_dataclass(kind):
        return decode(kind, value, place)
    # bool is an int in Python, and a whole number may stand for a float in JSON
    if isinstance(value, bool) != (kind is bool) or not isinstance(value, (int, float) if kind is float else kind):
        raise _other({float: "a number", int: "an integer", str: "a text", bool: "true or false"}[kind], value, place)
    return value


def _other(wanted: str, value: Any, place: str) -> DataError:
    return DataError(f"{place} is {str(value)[:60]!r} and should be {wanted}")
