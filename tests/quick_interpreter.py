"""Plug-in of the interpreter's process, where Triton's language is made ready for a function once a launch.

Triton looks through its whole language anew whenever a kernel calls a function, several times a program: a third of the
interpreter's time. What it finds there does not change before the launch ends.
"""

from collections.abc import Callable
from functools import wraps
from types import SimpleNamespace
from typing import Any

from triton.runtime import interpreter

_READY: set[Callable[..., Any]] = set()
_make_ready, _launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
_NOTHING = SimpleNamespace(restore=lambda: None)


@wraps(_make_ready)
def once(function: Callable[..., Any]) -> Any:
    if function in _READY:
        return _NOTHING
    _READY.add(function)
    return _make_ready(function)


@wraps(_launch)
def launch(*given: Any, **named: Any) -> Any:
    _READY.clear()
    try:
        return _launch(*given, **named)
    finally:
        _READY.clear()


interpreter._patch_lang, interpreter.GridExecutor.__call__ = once, launch
