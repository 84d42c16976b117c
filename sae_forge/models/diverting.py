"""What a module of a model computes, diverted for a while; its hooks stay in force around it."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from torch import nn

Forward = Callable[..., Any]


@contextmanager
def diverted(module: nn.Module, around: Callable[[Forward], Forward]) -> Iterator[None]:
    """Inside the block, ``module`` computes what ``around`` makes of its own way; blocks of one module nest."""
    before = vars(module).get("forward")
    module.forward = wraps(module.forward)(around(module.forward))
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before


def given_to(signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments of a call by their names."""
    arguments = signature.bind_partial(*args, **kwargs).arguments
    others = arguments.pop("kwargs", {})
    return {**arguments, **others}
