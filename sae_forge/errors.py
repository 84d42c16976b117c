"""One family of errors: what was given, what was possible, what to do, and the exit code that goes with it."""

from collections.abc import Iterable
from difflib import get_close_matches


class ForgeError(Exception):
    """A mistake the user can mend; the command line prints it as one line and exits with ``exit_code``.

    Whatever words of a foreign file it quotes, its text is one line that any terminal can show.
    """

    exit_code = 2

    def __init__(self, text: str = "") -> None:
        super().__init__("".join(map(_shown, " ".join(text.split()))))


class ConfigError(ForgeError):
    """A setting is out of range or contradicts another."""


class ShardError(ForgeError):
    """Stored activations are missing, damaged, foreign, or made under other settings."""


class CheckpointError(ForgeError):
    """A saved SAE or training state is missing, damaged, or made under other settings."""


class UnsupportedModelError(ForgeError):
    """A model cannot be found or its family has no table entry."""


class BackendError(ForgeError):
    """A kernel backend asked for by name cannot run here."""


class DataError(ForgeError):
    """A corpus, question file, selection or report is missing, empty or malformed."""


class NumericalError(ForgeError):
    """A non-finite number appeared where none may be."""

    exit_code = 3


class ResourceError(ForgeError):
    """Disk or memory does not hold what was asked for."""

    exit_code = 4


class PeerError(ForgeError):
    """Another process of this job is gone, is frozen, or no longer holds the same weights."""

    exit_code = 6


class RemoteError(ForgeError):
    """The Hub refused, was missing what was asked for, or could not be reached."""

    exit_code = 5


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """`` (did you mean dsg?)`` for a slip of the pen, to stand in a message; nothing where no known name is near."""
    near = get_close_matches(given, sorted(set(known)), n=1, cutoff=0.5)
    return f" (did you mean {near[0]}?)" if near else ""


def _shown(character: str) -> str:
    return character if character.isprintable() else ascii(character)[1:-1]
