"""The defaults of a help page for the run in hand: its model's preset, and how the run was collected."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from sae_forge.config.fields import described
from sae_forge.config.model import ModelConfig, one_spelling, shown
from sae_forge.errors import ForgeError

NAMING = ("model", "run_dir", "preset")
"""Flags that say which run a command is about."""


@dataclass(frozen=True)
class InHand:
    """What nobody has to spell out."""

    whose: str
    values: dict[str, str]
    """By setting, where they are not those of the command as it stands."""


def in_hand(kind: type[ModelConfig], arguments: Sequence[str], *, reads_run: bool) -> InHand | None:
    """The defaults of the run or preset that the arguments name, else of the newest run where a command takes that.

    None where there is none, or it cannot be read: a help page has no errors.
    """
    named = _named(arguments)
    try:
        return _of(kind, named) if named or reads_run else None
    except ForgeError:
        return None


def _of(kind: type[ModelConfig], named: dict[str, str]) -> InHand:
    from sae_forge.progress import SILENT
    from sae_forge.settings import parse_value, resolve
    from sae_forge.store.runs import Run, newest_run

    preset = named.pop("preset", None)
    given: dict[str, Any] = {name: parse_value(kind, name, value) for name, value in named.items()}
    run = newest_run() if not named and preset is None else None
    if run is None and "run_dir" in given and (found := Run(given["run_dir"])).exists:
        run = found
    if run is not None:
        given = {"model": run.model, "run_dir": run.folder} | given
    config = resolve(kind, given, preset=preset)
    if (run := Run(config.run_folder)).exists:
        from sae_forge.pipeline.known import as_collected  # reads shards, so it loads what a help page does without

        config = as_collected(config, run, SILENT)
    said = described(kind)
    values = {name: getattr(config, name) for name in said if name not in named}
    others = {name: shown(value) for name, value in values.items() if value not in (said[name].default, None, ())}
    return InHand(f"{one_spelling(config.model)}{f' in {run.folder}' if run.exists else ''}", others)


def _named(arguments: Sequence[str]) -> dict[str, str]:
    """Which run is named, by flag."""
    joined = [(flag, value) for flag, equals, value in (each.partition("=") for each in arguments) if equals]
    pairs = [*pairwise(arguments), *joined]
    return {name: value for flag, value in pairs if (name := flag.removeprefix("--").replace("-", "_")) in NAMING}
