"""Where the built-in world lies: two small models and the words they know, shipped with the package.

Questions are scored as cloze: the prompt is ``question`` and each continuation is a space and the choice. Log-prob
prompts likewise continue with a space and ``target``.
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
KINDS = ("corpora", "heldout", "questions", "prompts", "generation")
"""Kinds of words there are for every domain: training text, held-out text, questions and two sorts of prompts."""


def model_folder(name: str) -> Path | None:
    """The folder that loads as the built-in model ``name``; None when no built-in model is called that."""
    return WORLD / name if name in MODELS else None


@cache
def world() -> dict[str, Any]:
    """How the world was made: its domains and their roles, seed and versions, and what each model got right."""
    return json.loads((WORLD / "world.json").read_bytes())


def domains(role: str | None = None) -> list[str]:
    """Names of the domains, in alphabetical order, that play ``role`` (forget, neighbour or retain), or of all."""
    roles: dict[str, str] = world()["domains"]
    return sorted(name for name in roles if role is None or roles[name] == role)


def source(kind: str, domain: str) -> str:
    """The name under which every command takes these words, such as ``world:corpora/wizards``."""
    return f"{SCHEME}{kind}/{domain}"


def is_builtin(name: str) -> bool:
    """Whether ``name`` asks for words of the built-in world."""
    return name.startswith(SCHEME)


def locate(name: str) -> Path:
    """The file that ``name``, such as ``world:questions/magic``, stands for.

    Raises:
        DataError: there is no such kind or domain; the message lists those there are.
    """
    kind, _, domain = name.removeprefix(SCHEME).partition("/")
    known = domains()
    if not is_builtin(name) or kind not in KINDS or domain not in known:
        raise DataError(
            f"{name!r} is not in the built-in world; write {SCHEME}KIND/DOMAIN with a kind of {', '.join(KINDS)} "
            f"and a domain of {', '.join(known)}"
        )
    return WORLD / kind / f"{domain}.jsonl"
