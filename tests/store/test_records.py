"""One decoder of JSON: what a dataclass declares comes back, and all else is refused by the name of its key."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_forge.errors import ConfigError, DataError
from sae_forge.store import files, records


@dataclass(frozen=True, kw_only=True)
class Owl:
    name: str
    age: int
    weight: float = 0.5
    kind: Literal["tawny", "barn"] = "tawny"

    def __post_init__(self) -> None:
        if self.age < 0:
            raise ConfigError(f"age={self.age} must be at least 0")


@dataclass(frozen=True)
class Parliament:
    owls: tuple[Owl, ...]
    perches: dict[str, tuple[float, ...]]
    leader: Owl | None = None
    notes: Any = None

    def __post_init__(self) -> None:
        if self.leader is not None and self.leader not in self.owls:
            raise ValueError("its leader is none of its owls")


def whole() -> dict[str, Any]:
    owls = [{"name": "Ada", "age": 3, "weight": 1.25, "kind": "barn"}, {"name": "Bo", "age": 4}]
    return {"owls": owls, "perches": {"oak": [1, 2.5]}, "notes": {"any": [None]}}


def test_what_is_written_comes_back_as_the_same_record() -> None:
    parliament = records.decode(Parliament, whole())
    assert parliament.owls == (Owl(name="Ada", age=3, weight=1.25, kind="barn"), Owl(name="Bo", age=4))
    assert parliament.perches == {"oak": (1.0, 2.5)} and type(parliament.perches["oak"][0]) is float
    assert records.decode(Parliament, asdict(parliament)) == parliament


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda value: value["owls"][1].update(age="4"), r"owls\.1\.age: it should be a valid integer, not '4'"),
        (lambda value: value["owls"][1].update(age=4.0), r"owls\.1\.age: it should be a valid integer"),
        (lambda value: value["owls"][1].update(age=True), r"owls\.1\.age: .*True"),
        (lambda value: value["owls"][1].update(weight=True), r"owls\.1\.weight: it should be a valid number"),
        (lambda value: value["owls"][1].update(kind="eagle"), r"owls\.1\.kind: .*'tawny' or 'barn'"),
        (lambda value: value["owls"][1].update(wings=2), r"owls\.1\.wings: there is no such key"),
        (lambda value: value["owls"][1].pop("name"), r"owls\.1\.name: it is missing"),
        (lambda value: value["owls"][1].update(age=-1), "age=-1 must be at least 0"),
        (lambda value: value["perches"].update(oak=[1, "two"]), r"perches\.oak\.1: "),
        (lambda value: value.update(owls={}), "owls: it should be a valid"),
        (lambda value: value.update(leader={"name": "Cy", "age": 9}), "its leader is none of its owls"),
        (lambda value: value.update(notes=1e999), "JSON"),
        (lambda value: value.update(more=1), "more: there is no such key"),
    ],
)
def test_one_line_names_the_file_the_key_and_what_was_expected(tmp_path: Path, change, told: str) -> None:
    value = whole()
    change(value)
    path = tmp_path / "owls.json"
    path.write_text(json.dumps(value).replace("Infinity", "1e999"))
    with pytest.raises(DataError, match=rf"owls\.json is not a parliament: .*{told}.*; count again$") as refused:
        records.read(Parliament, path, error=DataError, what="a parliament", hint="count again")
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 300


@pytest.mark.parametrize("value", [None, 3, "owl", [], [1]])
def test_what_is_no_object_is_no_record(value: Any) -> None:
    with pytest.raises(ValueError, match="it should be an object"):
        records.decode(Owl, value)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False)))
def test_numbers_come_back_to_the_bit(numbers: list[float]) -> None:
    written = json.loads(files.canonical({"owls": [], "perches": {"oak": numbers}}))
    assert records.decode(Parliament, written).perches["oak"] == tuple(numbers)
