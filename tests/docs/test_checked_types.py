"""What tests check of the package's types: values, results, shapes that must agree, and closures made anew."""

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
from beartype.roar import BeartypeCallHintViolation
from checked_types import Finder
from jaxtyping import TypeCheckError

SOURCE = """
from __future__ import annotations
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:
    from nowhere import Unknown

@dataclass(frozen=True)
class Point:
    x: float
    names: tuple[str, ...] = field(default_factory=tuple)

    @property
    def label(self) -> str:
        return self.x

    @classmethod
    def at(cls, x: int) -> Point:
        return cls(x)

@dataclass(frozen=True)
class Named:
    x: str
    names: tuple[int, ...] = field(default_factory=tuple)

def joined(a: Float[np.ndarray, "rows width"], b: Float[np.ndarray, "width"]) -> Float[np.ndarray, "rows"]:
    return a @ b if len(a) > 1 else b

def added(number: int) -> Callable[[int], int]:
    def add(other: int) -> int:
        return number + other if other else "nothing"
    return add

def counted(upto: int, unknown: Unknown = None) -> Iterator[int]:
    yield from range(upto)

def bare(anything):
    return anything
"""


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    folder: Path = tmp_path_factory.mktemp("typed")
    (folder / "typed_here.py").write_text(SOURCE)
    finder = Finder(("typed_here",))
    sys.meta_path.insert(0, finder)
    sys.path.insert(0, str(folder))
    yield import_module("typed_here")
    sys.meta_path.remove(finder)
    sys.path.remove(str(folder))
    del sys.modules["typed_here"]


def test_what_is_right_comes_through(module: ModuleType) -> None:
    np = module.np
    assert module.Point.at(1) == module.Point(1.0)
    assert module.joined(np.ones((3, 2)), np.ones(2)).tolist() == [2.0, 2.0, 2.0]
    assert module.Named("a", (1,)).names == (1,)
    assert [module.added(number)(1) for number in (1, 2)] == [2, 3]
    assert list(module.counted(3, "anything")) == [0, 1, 2]
    assert module.bare("x") == "x"
    assert module.joined.__name__ == "joined"


@pytest.mark.parametrize(
    "wrong",
    [
        lambda m: m.Point("one"),
        lambda m: m.Point(1.0, (2,)),
        lambda m: (m.Point(1.0), m.Named(1.0)),
        lambda m: m.Point(1.0).label,
        lambda m: m.Point.at("one"),
        lambda m: m.counted("three"),
        lambda m: m.joined(m.np.ones((3, 2), dtype=int), m.np.ones(2)),
        lambda m: m.joined(m.np.ones((3, 2)), m.np.ones(4)),
        lambda m: m.joined(m.np.ones((1, 2)), m.np.ones(2)),
        lambda m: [add("x") for add in (m.added(1), m.added(2))],
        lambda m: (m.added(1)(1), m.added(2)(0)),
    ],
    ids=[
        "value",
        "item",
        "twin",
        "property",
        "class",
        "generator",
        "dtype",
        "two shapes",
        "result",
        "closure",
        "its result",
    ],
)
def test_what_is_wrong_is_refused(module: ModuleType, wrong) -> None:
    with pytest.raises((BeartypeCallHintViolation, TypeCheckError)):
        wrong(module)
