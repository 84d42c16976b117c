"""Types and shapes of the package's functions, checked in tests and only there: each function when it is first called.

The hook of ``jaxtyping`` compiles two checks for every function that is imported and binds every call to them: a fifth
of the suite's time. Here beartype checks a call, and ``jaxtyped`` goes between where shapes have to agree.
"""

import ast
import sys
from collections.abc import Callable, Sequence
from dataclasses import is_dataclass
from functools import wraps
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from inspect import CO_ASYNC_GENERATOR, CO_COROUTINE, CO_GENERATOR
from types import CodeType, FunctionType, ModuleType
from typing import Any, get_type_hints

from beartype import BeartypeConf, beartype
from jaxtyping import jaxtyped

check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int will do for a float, as for pyright
DECORATOR = "__checked__"
GENERATES = CO_GENERATOR | CO_ASYNC_GENERATOR | CO_COROUTINE


def install(modules: Sequence[str]) -> None:
    """Check what these modules, and those below them, define; they must not have been imported."""
    sys.meta_path.insert(0, Finder(tuple(modules)))


class Finder(MetaPathFinder):
    """Finds the modules to be checked."""

    def __init__(self, modules: tuple[str, ...]) -> None:
        self.modules = modules

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        if not any(name == module or name.startswith(module + ".") for module in self.modules):
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = Loader(spec.loader.name, spec.loader.path)
        return spec


class Loader(SourceFileLoader):
    """Loads a module from its source with every function and every class in it decorated."""

    def get_code(self, fullname: str) -> CodeType:
        tree = ast.parse(self.get_data(self.path), self.path)
        decorate(tree)
        return compile(tree, self.path, "exec", dont_inherit=True)

    def exec_module(self, module: ModuleType) -> None:
        vars(module)[DECORATOR] = checked
        super().exec_module(module)


def decorate(tree: ast.AST) -> None:
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, ast.expr):
            decorate(node)
    if isinstance(tree, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        decorator = ast.copy_location(ast.Name(DECORATOR, ast.Load()), tree)
        # a dataclass is looked at when it has its __init__, a function before anything else is made of it
        tree.decorator_list.insert(0 if isinstance(tree, ast.ClassDef) else len(tree.decorator_list), decorator)


def checked(made: Any) -> Any:
    """A function whose calls are checked; of a class its ``__init__``, if that is a dataclass's."""
    if isinstance(made, type):
        if is_dataclass(made) and "__init__" in vars(made) and not hasattr(made.__init__, "__wrapped__"):
            made.__init__ = checked(made.__init__)  # type: ignore[misc]
        return made
    if not made.__annotations__:
        return made
    found: Callable[..., Any] | None = None
    shapes = False

    @wraps(made)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal found, shapes
        if found is None:
            found, shapes = bound(made)
        if not shapes:
            return found(*args, **kwargs)
        with jaxtyped("context"):  # in which one name of an axis stands for one size
            return found(*args, **kwargs)

    return call


def bound(function: FunctionType) -> tuple[Callable[..., Any], bool]:
    """The function with its check, and whether shapes are among what is checked."""
    if function.__code__.co_flags & GENERATES:  # beartype would look at the arguments when the first value is asked for
        return jaxtyped(annotated(function), typechecker=check), False
    # by identity: the code of two dataclasses with the same names of fields is equal, and what they check is not
    if (known := id(function.__code__)) not in _COMPILED:
        _COMPILED[known] = compiled(function)
    _, checking, shapes = _COMPILED[known]
    if checking is None:
        return function, False
    # what beartype made calls its argument of this name: a closure that is made anew is not compiled anew
    return copied(checking, checking.__kwdefaults__ | {"__beartype_func": function}), shapes


_COMPILED: dict[int, tuple[CodeType, FunctionType | None, bool]] = {}
"""The check of all functions of one code, which is kept lest another takes its identity."""


def compiled(function: FunctionType) -> tuple[CodeType, FunctionType | None, bool]:
    """The code of the function, its check (None: every hint allows anything), and whether that looks at shapes."""
    plain = annotated(function)
    checking = check(plain)
    assert checking is plain or "__beartype_func" in checking.__kwdefaults__
    shapes = any("jaxtyping." in repr(hint) for hint in plain.__annotations__.values())
    return function.__code__, None if checking is plain else checking, shapes


def annotated(function: FunctionType) -> FunctionType:
    """The function with what its hints stand for in their place."""
    made = copied(function, function.__kwdefaults__)
    made.__annotations__ = {name: resolved(hint, function) for name, hint in function.__annotations__.items()}
    return made


def copied(function: FunctionType, keywords: dict[str, Any] | None) -> FunctionType:
    """The function with other defaults of its keyword-only arguments, and without annotations."""
    made = FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    made.__kwdefaults__, made.__qualname__, made.__module__ = keywords, function.__qualname__, function.__module__
    return made


def resolved(hint: Any, function: FunctionType) -> Any:
    """What a hint stands for; anything, if it names what is imported for pyright alone."""

    def holder(value: hint) -> None:  # type: ignore[valid-type]
        pass

    try:
        return get_type_hints(holder, function.__globals__, include_extras=True)["value"]
    except NameError:
        return Any
