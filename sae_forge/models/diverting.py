"""What a module of a model computes, diverted for a while; its hooks stay in force around it."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from typing import Any

from torch import nn

Forward = Callable[..., Any]


@contextmanager
def diverted(module: nn.Module, around: Callable[[nn.Module, Forward], Forward]) -> Iterator[None]:
    """Inside the block, ``module`` computes what ``around`` makes of it and of its own way; blocks of one nest."""
    before = vars(module).get("forward")
    module.forward = wraps(module.forward)(around(module, module.forward))
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before


def given_to(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments of a call of ``module`` by their names."""
    arguments = signature_of(type(module)).bind_partial(*args, **kwargs).arguments
    others = arguments.pop("kwargs", {})
    return {**arguments, **others}


@cache
def signature_of(kind: type[nn.Module]) -> inspect.Signature:
    """Of what modules of this class compute, the module itself left out."""
    signature = inspect.signature(kind.forward)
    return signature.replace(parameters=list(signature.parameters.values())[1:])
