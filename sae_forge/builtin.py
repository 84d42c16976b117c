"""Where the built-in worlds lie: an invented one, with two small models that know it, and one of true facts.

The invented one is all that ``world:questions/magic`` names; of the other, ``world:real/questions/asia``, real models
know a part. Questions are scored as cloze: the prompt is ``question`` and each continuation is a space and the choice.
Log-prob prompts likewise continue with a space and ``target``.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

from sae_forge.errors import DataError

WORLD = Path(__file__).parent / "world"
MODELS = ("tiny-llama", "tiny-gemma2")
"""Names that ``--model`` takes without a download."""

SCHEME = "world:"
INVENTED, REAL = "", "real/"
"""What stands between scheme and kind, and so where in the folder a world lies."""
KINDS = ("corpora", "heldout", "questions", "prompts", "generation")
"""Kinds of words there are for every domain: training text, held-out text, questions and two sorts of prompts."""


def model_folder(name: str) -> Path | None:
    """The folder that loads as the built-in model ``name``; None when no built-in model is called that."""
    return WORLD / name if name in MODELS else None


@cache
def world(name: str = INVENTED) -> dict[str, Any]:
    """How a world was made: its domains and their roles, and of the invented one what each model got right."""
    return json.loads((WORLD / name / "world.json").read_bytes())


def domains(role: str | None = None, world_name: str = INVENTED) -> list[str]:
    """Names of the domains, in alphabetical order, that play ``role`` (forget, neighbour or retain), or of all."""
    roles: dict[str, str] = world(world_name)["domains"]
    return sorted(name for name in roles if role is None or roles[name] == role)


def source(kind: str, domain: str, world_name: str = INVENTED) -> str:
    """The name under which every command takes these words, such as ``world:corpora/wizards``."""
    return f"{SCHEME}{world_name}{kind}/{domain}"


def is_builtin(name: str) -> bool:
    """Whether ``name`` asks for words of a built-in world."""
    return name.startswith(SCHEME)


def is_there(name: str) -> bool:
    """Whether there are words of this name."""
    world_name, kind, domain = _parts(name)
    return is_builtin(name) and kind in KINDS and domain in domains(world_name=world_name)


def locate(name: str) -> Path:
    """The file that ``name``, such as ``world:questions/magic``, stands for.

    Raises:
        DataError: there is no such kind or domain; the message lists those there are.
    """
    world_name, kind, domain = _parts(name)
    if not is_there(name):
        known = {each: ", ".join(domains(world_name=each)) for each in (INVENTED, REAL)}
        raise DataError(
            f"{name!r} is not in the built-in worlds; write {SCHEME}KIND/DOMAIN with a kind of {', '.join(KINDS)} "
            f"and a domain of {known[INVENTED]}, or {SCHEME}{REAL}KIND/DOMAIN with one of {known[REAL]}"
        )
    return WORLD / world_name / kind / f"{domain}.jsonl"


def _parts(name: str) -> tuple[str, str, str]:
    place = name.removeprefix(SCHEME)
    world_name = REAL if place.startswith(REAL) else INVENTED
    kind, _, domain = place.removeprefix(world_name).partition("/")
    return world_name, kind, domain
