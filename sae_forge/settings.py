"""Where a setting's value comes from: the flags, else the config file, else the model's preset, else its default."""

import re
import tomllib
from decimal import Decimal
from difflib import get_close_matches
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from sae_forge import benchmarks
from sae_forge.config.fields import described
from sae_forge.config.model import ModelConfig, one_spelling
from sae_forge.errors import ConfigError, did_you_mean

Preset = dict[str, Any]
ConfigT = TypeVar("ConfigT", bound=ModelConfig)

MAX_CONFIG_BYTES = 2**16
MAX_INTEGER = 2**53
"""Beyond any number of tokens, and exact as a float."""
MAX_RANGE = 2**20
"""Numbers that ``0-9`` may stand for."""
_RANGE = re.compile(r"(\d{1,16})-(\d{1,16})")
_UP_TO_COMMA = re.compile(r".*,[^/:@\[]*")
"""A path up to the end of that part of it which holds the last comma."""
_COUNT = re.compile(r"([+-]?\d+(?:\.\d+)?(?:[eE]\+?\d{1,2})?)([kKmMgGbB]?)")
_THOUSANDS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9}


@cache
def presets() -> dict[str, Preset]:
    """Every preset that ships, by name: its ``models``, ``settings``, files it ``needs``, what was ``published``."""
    shipped = {}
    for entry in resources.files("sae_forge.presets").iterdir():
        if entry.name.endswith(".toml"):
            shipped[entry.name.removesuffix(".toml")] = tomllib.loads(entry.read_text())
    return dict(sorted(shipped.items()))


def preset_of(model: str) -> Preset | None:
    """The preset that gives ``model`` its defaults, if one does; a paper's preset must be named to count."""
    return next((preset for preset in presets().values() if model in preset.get("default_of", preset["models"])), None)


def resolve(kind: type[ConfigT], given: dict[str, Any], *, preset: str | None = None) -> ConfigT:
    """The config that what was spelled out and the preset together make; the preset fills what was left open.

    Args:
        given: Field values from flags and file.
        preset: Name of a preset to start from instead of the model's own.

    Raises:
        ConfigError: a name is unknown, or a value is out of range.
    """
    chosen = dict(given)
    if preset is not None and preset not in presets():
        near = did_you_mean(preset, presets())
        raise ConfigError(f"preset {preset!r} is unknown{near}; choose one of {', '.join(presets())}")
    # a preset that was named stands for its model too, unless one was given
    base = presets()[preset] if preset else preset_of(chosen.get("model", ModelConfig.model))
    if base and preset and "model" not in chosen:
        chosen["model"] = base["models"][0]
    if "model" in chosen:
        chosen["model"] = one_spelling(chosen["model"])
    names = described(kind)
    settings = settings_for(base, chosen.get("model")) if base else {}
    from sae_forge.config.run import RunConfig  # every verb's own settings, which no other verb's help waits for

    if preset and issubclass(kind, RunConfig) and (unknown := sorted(set(settings) - set(names))):
        raise ConfigError(
            f"preset {preset} sets --{unknown[0]}, which no task or method here has; use another preset, or put it back"
        )
    # a preset sets what any verb takes; of that each takes its own
    inherited = {name: parse_value(kind, name, value) for name, value in settings.items() if name in names}
    # what was given stands last, so it wins; ``spelled`` tells it from what a preset says
    return kind(**{**inherited, **chosen}, spelled=frozenset(given))


def settings_for(preset: Preset, model: str | None) -> Preset:
    """What a preset sets for one of its models."""
    return {**preset["settings"], **preset.get("settings_of", {}).get(model, {})}


def read_config_file(path: Path, kind: type[ModelConfig]) -> dict[str, Any]:
    """Field values from a TOML file, refused when one is not a setting of this verb."""
    values = read_toml(path, "--config")
    names = described(kind)
    if unknown := sorted(set(values) - set(names)):
        near = get_close_matches(unknown[0], names, n=3, cutoff=0.5)
        possible = ", ".join([*near, *sorted(set(names) - set(near))])
        raise ConfigError(
            f"--config {path} sets {unknown[0][:40]!r}, which is not a setting here; "
            f"possible: {possible[:130]}… (all: --help)"
        )
    try:
        return {name: parse_value(kind, name, value) for name, value in values.items()}
    except ConfigError as error:
        raise ConfigError(f"--config {path} sets {error}") from None


def read_toml(path: Path, flag: str) -> dict[str, Any]:
    """What a small TOML file says.

    Args:
        flag: Which the file was given with, for the message.

    Raises:
        ConfigError: it cannot be read, or is no TOML.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited on for ever
            raise ValueError("it is not a regular file")
        with path.open("rb") as file:
            content = file.read(MAX_CONFIG_BYTES + 1)
        if len(content) > MAX_CONFIG_BYTES:
            raise ValueError(f"it is larger than {MAX_CONFIG_BYTES} bytes")
        return tomllib.loads(content.decode())
    except OSError as error:
        raise ConfigError(f"{flag} {path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # numbers of a thousand digits and bad UTF-8 are ValueErrors too
        raise ConfigError(f"{flag} {path} is not TOML: {str(error)[:120]}") from error


def parse_value(kind: type[ModelConfig], name: str, raw: Any) -> Any:
    """``raw``, from a flag or a TOML file, as the type its field declares; ``3,7,15`` becomes a tuple.

    Whole numbers may be written ``0-9`` (of several), ``1e6`` and ``100M`` too.

    Raises:
        ConfigError: it is not of that type; the message shows what was given and what is possible.
    """
    from pydantic import TypeAdapter, ValidationError

    wanted = described(kind)[name].kind
    value = raw
    if _is_tuple(wanted) and isinstance(raw, str):
        parts = _places(raw) if described(kind)[name].setting.names_items else raw.split(",")
        value = [part.strip() for part in parts if part.strip()]
    elif _is_tuple(wanted) and isinstance(raw, int | float):
        value = [raw]
    if described(kind)[name].setting.names_items:  # a benchmark's name means another part of it after each flag
        said = [value] if isinstance(value, str) else value if isinstance(value, list | tuple) else []
        named = [one if not isinstance(one, str) or _is_there(one) else benchmarks.meant(one, name) for one in said]
        value = named[0] if isinstance(value, str) else named if said else value
    if int in (wanted, *get_args(wanted), *(each for part in get_args(wanted) for each in get_args(part))):
        value = _counted(name, value)
    try:
        parsed = TypeAdapter(wanted).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        bad = (
            value[int(first["loc"][0])] if isinstance(value, list) and first["loc"] else raw
        )  # of several only the one
        said, near = first["msg"].lower().replace("'", ""), ""
        if first["type"] == "literal_error":  # the possible ones are our own: all are said
            near = did_you_mean(str(bad), choices(wanted))
        else:
            said = said[:240]
        raise ConfigError(f"--{name} {_start(bad)}{near}: {said}") from error
    for part in parsed if isinstance(parsed, tuple) else (parsed,):
        if isinstance(part, int) and abs(part) > MAX_INTEGER:
            raise ConfigError(f"--{name} {_start(raw)}: give a number between -{MAX_INTEGER} and {MAX_INTEGER}")
        if isinstance(part, str | Path) and "\0" in str(part):
            raise ConfigError(f"--{name} {_start(raw)}: give text without a null character")
    return parsed


def _places(raw: str) -> list[str]:
    """Names of texts between commas; a comma that stands in a path on this disk is part of the name."""
    parts, places = raw.split(","), []
    while parts:
        # the longest first: ``a,b.txt`` is one file where it is there, else two
        joined = [",".join(parts[:count]) for count in range(len(parts), 1, -1)]
        heads = ((place, _UP_TO_COMMA.match(place)) for place in joined)
        place = next((place for place, head in heads if head and _is_there(head[0])), parts[0])
        places.append(place)
        parts = parts[place.count(",") + 1 :]
    return places


def _is_there(path: str) -> bool:
    try:
        return Path(path.strip()).exists()
    except OSError:  # too long a name
        return False


def _counted(name: str, value: Any) -> Any:
    """Whole numbers as people write them, in a list ``3-7`` too; what is none is left for the check of the type."""
    if isinstance(value, list):
        numbers = []
        for part in value:
            if not isinstance(part, str) or (read := _RANGE.fullmatch(part)) is None:
                numbers.append(_counted(name, part))
                continue
            first, last = int(read[1]), int(read[2])
            if not first <= last < first + MAX_RANGE:
                raise ConfigError(f"--{name} {part}: give a range upwards, of {MAX_RANGE:,} numbers at most")
            numbers += range(first, last + 1)
        return numbers
    if not isinstance(value, str) or (read := _COUNT.fullmatch(value.strip())) is None:
        return value
    # as floats 1.005k would be 1004.9999999999999, and so no whole number
    number = Decimal(read[1]) * _THOUSANDS[read[2].lower()]
    return int(number) if number == number.to_integral_value() else value


def choices(wanted: Any) -> list[str]:
    """The values that a type made of literals allows; nothing of any other."""
    if get_origin(wanted) is Literal:
        return [str(choice) for choice in get_args(wanted)]
    return [choice for part in get_args(wanted) for choice in choices(part)] if get_origin(wanted) else []


def _start(raw: Any) -> str:
    return text if len(text := str(raw)) <= 60 else f"{text[:60]}…"


def _is_tuple(wanted: Any) -> bool:
    return get_origin(wanted) is tuple or any(get_origin(part) is tuple for part in get_args(wanted))
