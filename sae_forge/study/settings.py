"""What ``eval``, ``features`` and ``run`` can be told: their own settings and those of every task and method there is.

A task, a method or a way of selecting that has flags says them in a frozen, keyword-only subclass of ``ModelConfig``,
its ``settings``. The configs of the verbs are composed of these, here, from the tables that ship and from what the
modules add that a user named as plug-ins. Nothing in this file, nor in the tables, imports torch.
"""

import hashlib
import importlib
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, is_dataclass, make_dataclass, replace
from functools import cache, cached_property
from importlib import util
from inspect import get_annotations
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from sae_forge.config.fields import Alias, described
from sae_forge.config.model import ModelConfig
from sae_forge.errors import ConfigError
from sae_forge.interventions.gates.gate import GateKind
from sae_forge.interventions.gates.table import GATES
from sae_forge.methods.method import Method, Wrapper
from sae_forge.methods.table import METHODS
from sae_forge.tasks.table import TASKS
from sae_forge.tasks.task import Task

if TYPE_CHECKING:
    from sae_forge.config.evaluate import EvalConfig
    from sae_forge.config.features import FeaturesConfig
    from sae_forge.config.generate import DemoConfig, GenerateConfig
    from sae_forge.config.run import RunConfig
    from sae_forge.features.methods.method import SelectionMethod

ConfigT = TypeVar("ConfigT", bound=ModelConfig)
Setting = tuple[str, Any, Any]
"""A field to be: its name, its annotation, its default."""


@dataclass(frozen=True, eq=False)
class Catalogue:
    """The tasks, methods, ways of selecting latents and gates that a command can name."""

    tasks: tuple[Task, ...] = TASKS
    methods: tuple[Method | Wrapper, ...] = METHODS
    gates: tuple[GateKind, ...] = GATES
    plugins: tuple[tuple[str, str], ...] = ()
    """Name and sha256 of each module beside those that ship: what it measures hangs on its text."""
    own_selections: "tuple[SelectionMethod, ...]" = ()
    """Those of plug-ins."""

    @cached_property
    def selections(self) -> "tuple[SelectionMethod, ...]":
        """Those that ship, and those of plug-ins."""
        from sae_forge.features.methods.table import SELECTIONS  # which `eval --help` does without

        return (*SELECTIONS, *self.own_selections)


KINDS = {"TASKS": "Task", "METHODS": "Method", "SELECTIONS": "SelectionMethod", "GATES": "GateKind"}
"""What a plug-in may list, and under which names."""
FAILS = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError, OSError, RuntimeError,
    SyntaxError, SystemExit, TypeError, ValueError,
)  # fmt: skip
"""What the text of a module that is imported may raise."""


@cache
def catalogue(plugins: tuple[str, ...] = ()) -> Catalogue:
    """The tables that ship and, after them, those of the named modules.

    Args:
        plugins: Modules by their dotted name, or ``.py`` files; each may have any of :data:`KINDS`.

    Raises:
        ConfigError: a module cannot be imported, has none of them, or an entry is not of its kind or has a name
            or a setting that is taken.
    """
    if not plugins:
        return Catalogue()
    shipped = Catalogue().selections
    tables: dict[str, tuple[Any, ...]] = {"TASKS": TASKS, "METHODS": METHODS, "SELECTIONS": shipped, "GATES": GATES}
    sources = []
    for name in plugins:
        module = _imported(name)
        if not any(hasattr(module, table) for table in KINDS):
            raise ConfigError(f"--plugin {name} has none of {', '.join(KINDS)}; give at least one of these tuples")
        for table in KINDS:
            added = getattr(module, table, ())
            if not isinstance(added, tuple):
                raise ConfigError(f"--plugin {name}: {table} is a {type(added).__name__}; make it a tuple")
            for entry in added:
                _require_entry(entry, table, f"--plugin {name}: {table}", tables)
                tables[table] += (entry,)
        sources.append((name, hashlib.sha256(Path(str(module.__file__)).read_bytes()).hexdigest()))
    own = tables["SELECTIONS"][len(shipped) :]
    return Catalogue(tables["TASKS"], tables["METHODS"], tables["GATES"], tuple(sources), own)


def catalogue_of(config: ModelConfig) -> Catalogue:
    """What the class of a config was composed from; of one that was not composed, what ships."""
    return getattr(type(config), "catalogue", None) or catalogue()


@cache
def eval_config(known: Catalogue | None = None) -> "type[EvalConfig]":
    """``EvalConfig`` with the settings of every task, method and gate; ``--methods`` and ``--gate`` name them."""
    from sae_forge.config.evaluate import EvalConfig  # each command imports its own alone

    known = known or catalogue()
    methods = _choice(EvalConfig, "methods", ("all", *_names(known.methods), "random"))
    gates = _choice(EvalConfig, "gate", _names(known.gates))
    return _composed(EvalConfig, [*known.tasks, *known.methods, *known.gates], [methods, gates], known)


@cache
def features_config(known: Catalogue | None = None) -> "type[FeaturesConfig]":
    """``FeaturesConfig`` with the settings of every way of selecting latents; ``--method`` takes their names."""
    from sae_forge.config.features import FeaturesConfig  # each command imports its own alone

    known = known or catalogue()
    choices = _choice(FeaturesConfig, "method", (*_names(known.selections), "all"))
    return _composed(FeaturesConfig, known.selections, [choices], known)


@cache
def generate_config(known: Catalogue | None = None) -> "type[GenerateConfig]":
    """``GenerateConfig``, which has no settings of methods but knows them by name."""
    from sae_forge.config.generate import GenerateConfig  # each command imports its own alone

    return _composed(GenerateConfig, [], [], known or catalogue())


@cache
def demo_config(known: Catalogue | None = None) -> "type[DemoConfig]":
    """``DemoConfig``, as :func:`generate_config`."""
    from sae_forge.config.generate import DemoConfig  # each command imports its own alone

    return _composed(DemoConfig, [], [], known or catalogue())


@cache
def run_config(known: Catalogue | None = None) -> "type[RunConfig]":
    """``RunConfig`` with every setting of the verbs it chains."""
    from sae_forge.config.run import RunConfig  # each command imports its own alone

    known = known or catalogue()
    bases = (RunConfig, features_config(known), eval_config(known))
    return make_dataclass(
        "RunConfig", [], bases=bases, namespace=_namespace(RunConfig, known), frozen=True, kw_only=True
    )


def _composed(base: type[ConfigT], entries: Iterable[Any], own: list[Setting], known: Catalogue) -> type[ConfigT]:
    """A subclass of ``base`` and of every entry's ``settings``, whose fields come in the order of the entries."""
    bases = list(dict.fromkeys(part for entry in entries if (part := entry.settings) and not issubclass(base, part)))
    bases.reverse()  # fields come last base first
    bases.sort(key=lambda part: -len(part.__mro__))  # a class that another stands on comes after it, as Python wants
    namespace = _namespace(base, known)
    return make_dataclass(base.__name__, own, bases=(*bases, base), namespace=namespace, frozen=True, kw_only=True)


def _namespace(base: type, known: Catalogue) -> dict[str, Any]:
    return {"catalogue": known, "__doc__": base.__doc__, "__module__": __name__}


def _choice(base: type[ModelConfig], name: str, choices: tuple[str, ...]) -> Setting:
    """A field of ``base`` again, whose value, or each of whose values, is one of these names."""
    said = described(base)[name]
    note = replace(said.setting, heading=said.heading, decides=said.decides)
    kind: Any = Literal[choices]  # pyright: ignore[reportInvalidTypeForm]
    if said.kind is not str:
        kind = tuple[kind, ...]
    return name, Annotated[(kind, said.help, note, *map(Alias, said.aliases))], said.default


def _names(entries: Iterable[Any]) -> tuple[str, ...]:
    return tuple(entry.name for entry in entries)


def _imported(name: str) -> ModuleType:
    """The module of that name, or of that file."""
    try:
        if not name.endswith(".py"):
            return importlib.import_module(name)
        title = re.sub(r"\W", "_", f"plugin_{Path(name).resolve()}")
        spec = util.spec_from_file_location(title, name)
        assert spec is not None and spec.loader is not None
        # as the import system does it: a dataclass of the module looks its module up there
        sys.modules[title] = module = util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except FAILS as error:
        raise ConfigError(f"--plugin {name} cannot be imported: {type(error).__name__}: {error}") from error
    return module


def _require_entry(entry: Any, table: str, where: str, tables: Mapping[str, tuple[Any, ...]]) -> None:
    """Refuse what the command line could not name, or what would stand in another's place."""
    from sae_forge.config.run import RunConfig
    from sae_forge.features.methods.method import SelectionMethod
    from sae_forge.results.report import KEYS_OF_ROWS  # its types cost `--help` more than all tables together

    kinds = {"TASKS": Task, "METHODS": Method | Wrapper, "SELECTIONS": SelectionMethod, "GATES": GateKind}
    kind, called = kinds[table], KINDS[table]
    if kind is Task and (missing := [name for name in vars(Task) if name[0] != "_" and not hasattr(entry, name)]):
        raise ConfigError(f"{where} holds a {type(entry).__name__} without {missing[0]}, which every Task has")
    if not isinstance(entry, kind):
        raise ConfigError(f"{where} holds a {type(entry).__name__}; give a {called}")
    name, part, others = entry.name, entry.settings, [other for entries in tables.values() for other in entries]
    if not re.fullmatch(r"[a-z][a-z0-9_]*", str(name)):
        raise ConfigError(f"{where} holds a {called} with the name {name!r}; give a-z, 0-9 and _")
    if name in (*_names(tables[table]), "all", "random", "baseline"):
        raise ConfigError(f"{where} holds {name}, and there is one of that name; call it something else")
    if table == "TASKS" and entry.group in KEYS_OF_ROWS:
        raise ConfigError(f"{where}: the group {entry.group} of {name} is a key of every row; call it something else")
    if part is None:
        return
    if not (isinstance(part, type) and issubclass(part, ModelConfig) and is_dataclass(part)):
        raise ConfigError(f"{where}: settings of {name} must be a frozen dataclass on ModelConfig")
    known = {each for config in (RunConfig, *(other.settings for other in others)) if config for each in config.__mro__}
    taken = {flag for config in known if issubclass(config, ModelConfig) for flag in described(config)}
    own = {flag for each in part.__mro__ if each not in known for flag in get_annotations(each)}
    if double := sorted(own & taken):
        raise ConfigError(f"{where}: --{double[0]} of {name} is a setting already; call it something else")
