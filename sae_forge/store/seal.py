"""JSON that proves itself: a record is written with the sha256 of its own canonical form, and refused without it."""

from collections.abc import Set
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from sae_forge.errors import ShardError
from sae_forge.store import files
from sae_forge.store.remote import AnyPath

Record = TypeVar("Record")


def publish(path: AnyPath, body: dict[str, Any]) -> None:
    """Write ``body`` and its seal, whole or not at all."""
    files.publish_json(path, {**body, "sha256": files.digest(body)})


def read(path: AnyPath, what: str, names: Set[str]) -> dict[str, Any]:
    """The body that was published.

    Args:
        what: What the file should be, for messages.
        names: The keys it must have, the seal apart.

    Raises:
        ShardError: missing, altered, or something else; the message names the file.
    """
    files.require_plain(path, kind=ShardError, what=what)
    value = files.read_json(path, kind=ShardError, what=what)
    if not isinstance(value, dict) or set(value) != {*names, "sha256"}:
        raise ShardError(f"{path} is not {what}: it should hold {', '.join(sorted(names))} and their sha256")
    seal = value.pop("sha256")
    try:
        whole = files.digest(value) == seal
    except ValueError:  # 1e999 reads as infinity, which JSON cannot write
        whole = False
    if not whole:
        raise ShardError(f"{path} is damaged: its content does not match its sha256; collect again with --fresh")
    return value


def record(kind: type[Record], value: Any) -> Record:
    """A dataclass of strings, numbers and tuples of them from its JSON object; raises ValueError when it is another's.

    A number is of the kind its field declares: no integer passes for a float, and no float for an integer.
    """
    hints = get_type_hints(kind)
    if not isinstance(value, dict) or set(value) != set(hints):
        raise ValueError(f"its {kind.__name__} has other fields")
    found = {name: tuple(item) if isinstance(item, list) else item for name, item in value.items()}
    for name, hint in hints.items():
        whole = get_origin(hint) is tuple
        items, allowed = (found[name], get_args(hint)[0]) if whole else ((found[name],), hint)
        if whole != isinstance(found[name], tuple) or not all(_is(item, allowed) for item in items):
            raise ValueError(f"{name} is of the wrong type")
    return kind(**found)


def _is(value: Any, allowed: Any) -> bool:
    """Whether a value of JSON is of this type; to Python, True is an integer."""
    return isinstance(value, allowed) and not isinstance(value, bool)
