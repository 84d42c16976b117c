"""JSON into frozen dataclasses: every key that there must be, no other, each of the very type its field declares."""

from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar

from sae_forge.errors import ForgeError
from sae_forge.store import files
from sae_forge.store.remote import AnyPath

Record = TypeVar("Record")


def read(kind: type[Record], path: AnyPath, *, error: type[ForgeError], what: str, hint: str = "") -> Record:
    """The record a JSON file holds.

    Args:
        kind: A dataclass; fields may hold others, tuples and dicts of them, and texts of a Literal.
        error: Raised in one line that names the file, the key, and what was expected there.
        what: What the file should be ("a selection of latents"), for that line.
        hint: What to do about it, for its end.
    """
    value = files.read_json(path, kind=error, what=what)
    try:
        return decode(kind, value)
    except ValueError as flaw:
        raise error(f"{path} is not {what}: {flaw}{hint and f'; {hint}'}") from None


def decode(kind: type[Record], value: object) -> Record:
    """A record from its JSON.

    A list becomes a tuple and a whole number a float where the field says so; nothing else is converted. Fields with a
    default may be left out.

    Raises:
        ValueError: one line that names the first key that is wrong, and what was expected there; also for what
            ``__post_init__`` raises.
    """
    from pydantic import ValidationError  # 0.2 s that `--help` should not wait for

    try:
        return _decoder(kind).validate_json(b"[%b]" % files.canonical(value))[0]
    except ValidationError as error:
        raise ValueError(_told(error.errors(include_url=False)[0])) from None
    except ForgeError as error:
        raise ValueError(str(error)) from error


@cache
def _decoder(kind: Any) -> Any:
    """How pydantic reads a record: as the one item of a tuple, since settings for a bare dataclass are refused."""
    from pydantic import ConfigDict, TypeAdapter

    one: Any = tuple[kind]  # pyright: ignore[reportInvalidTypeForm]
    return TypeAdapter(one, config=ConfigDict(strict=True, extra="forbid", allow_inf_nan=False))


def _told(flaw: Mapping[str, Any]) -> str:
    where = ".".join(map(str, flaw["loc"][1:]))[:80]
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
