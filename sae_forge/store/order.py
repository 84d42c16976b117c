"""In which order things were made or asked for: written down in the run, because no copy keeps the times of files.

What a run holds stands in its ``order.json``, oldest first. A run of version 0.1 or 0.2 has none, and its log of
commands says the same. What neither of them names counts as older than what they do.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sae_forge.errors import DataError
from sae_forge.store import files, records

FILE = "order.json"
COMMANDS = "commands.jsonl"
"""In ``logs/``: a line for each command that came to its end."""
_MAKERS = ("train", "features", "eval")
"""Commands whose line in the log of an older run names what they made."""


def note(run: Path, artefacts: Sequence[Path]) -> None:
    """Make each of these the newest of its kind, the last one last; nothing is written where that is so already."""
    with files.locked(run / "logs", wait=True):  # read, changed and written in one go, or two commands lose one's line
        before = _noted(run)
        after = list(before)
        for name in (path.relative_to(run).as_posix() for path in artefacts):
            if next((other for other in reversed(after) if _kind(other) == _kind(name)), None) != name:
                after = [other for other in after if other != name] + [name]
        if after != before or not (run / FILE).exists():
            files.publish_json(run / FILE, after)


def oldest_first(run: Path, artefacts: Iterable[Path]) -> list[Path]:
    """The same, those of which nothing is known first, by name."""
    return sorted(artefacts, key=_place_in(run))


def newest(run: Path, artefacts: Sequence[Path], flag: str) -> Path | None:
    """The one that was made or asked for last; None where there are none.

    Args:
        flag: What names one instead, for the message.

    Raises:
        DataError: there are several, and nothing says which is the newest.
    """
    place = _place_in(run)
    ordered = sorted(artefacts, key=place)
    if len(ordered) > 1 and place(ordered[-1])[0] < 0:
        names = ", ".join(path.relative_to(run).as_posix() for path in ordered)
        raise DataError(f"{run} does not say which of {names} is the newest; name one with {flag}")
    return ordered[-1] if ordered else None


def last_command(run: Path) -> float:
    """When a command on this run came to its end last, in seconds since 1970 (UTC); 0 where no log says it."""
    return max((float(line["at"]) for line in _commands(run) if isinstance(line.get("at"), int | float)), default=0.0)


def _place_in(run: Path) -> Any:
    places = {name: place for place, name in enumerate(_noted(run))}
    # -1: older than all that is known
    return lambda path: (places.get(name := path.relative_to(run).as_posix(), -1), name)


def _kind(name: str) -> str:
    """What it is the newest of: all SAEs of a run, or the selections or reports of one SAE."""
    return "saes" if name.startswith("saes/") else name.rpartition("/")[0]


def _noted(run: Path) -> list[str]:
    path = run / FILE
    if not path.exists():
        return list(_logged(run))
    what, hint = "the order of a run's artefacts", "delete it and name them with flags"
    return records.read(list[str], path, error=DataError, what=what, hint=hint)


def _logged(run: Path) -> dict[str, None]:
    """What the log says was made, oldest first, wherever the run lay at that time."""
    names: dict[str, None] = {}
    for line in _commands(run):
        made = line.get("outputs") if line.get("command") in _MAKERS else None
        if not isinstance(made, dict):
            continue
        for _, path in sorted(made.items(), key=lambda output: output[0] == "selection"):  # of several the first chosen
            # an absolute path of another day: what counts is what follows the run folder, wherever that lay
            parts = Path(str(path)).parts
            begin = max((at for at, part in enumerate(parts) if part in ("saes", "features", "eval")), default=0)
            name = "/".join(parts[begin:])
            names.pop(name, None)  # a dict keeps the place of a key that is set again
            names[name] = None
    return names


def _commands(run: Path) -> Iterator[dict[str, Any]]:
    """Lines of the log; one that was cut off is none."""
    path = run / "logs" / COMMANDS
    for text in path.read_text(errors="replace").splitlines() if path.is_file() else ():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict):
            yield line
