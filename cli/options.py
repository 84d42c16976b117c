"""Flags from config fields: each verb's signature is read off its dataclass, so the two cannot drift apart."""

import inspect
import json
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, get_args, get_origin

import typer

from cli.called import as_called
from cli.in_hand import in_hand
from cli.launch import as_rank, leads, spoken_by
from cli.pages import Page
from sae_forge import builtin
from sae_forge.config.fields import Described, described
from sae_forge.config.model import ModelConfig, shown
from sae_forge.errors import ForgeError, ResourceError
from sae_forge.settings import ConfigT, choices, parse_value, read_config_file, resolve

if TYPE_CHECKING:
    from sae_forge.outcome import Outcome

Given = dict[str, Any]
"""Values of the flags that were spelled out, by field name."""

CONFIG_FILE = Annotated[Path | None, typer.Option("--config", metavar="FILE", help="TOML file of settings.")]
PLUGIN = Annotated[
    str | None,
    typer.Option(
        "--plugin", metavar="MODULE,…", help="Modules or .py files with tasks, methods or selections of yours."
    ),
]
JSON = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout; prose goes to stderr.")]
DRY_RUN = Annotated[
    bool, typer.Option("--dry_run", help="Say what would be done, how long it takes and what is written; do nothing.")
]
DEBUG = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


class Terminated(KeyboardInterrupt):
    """SIGTERM, made an exception so that work under way leaves a resumable state."""


def verb(
    app: typer.Typer,
    kind: type[ConfigT],
    *,
    examples: str,
    name: str | None = None,
    reads_run: bool = False,
    makes_run: bool = False,
    each_model: Callable[[Given, str | None], list[str]] | None = None,
) -> Callable[[Callable[..., "Outcome"]], Callable[..., "Outcome"]]:
    """Register a function ``body(config, screen, **own)`` as a command whose flags are the fields of ``kind``.

    Parameters of ``body`` beyond the first two become flags or arguments of this command alone.

    Args:
        reads_run: Without ``--model`` the command is about ``--run_dir``, else about the newest run folder.
        makes_run: And where there is none, about one of the first built-in model, which it makes.
        each_model: Names the models to do the work for, from the flags and the preset; ``body`` then gets a list.
    """

    def register(body: Callable[..., "Outcome"]) -> Callable[..., "Outcome"]:
        own = list(inspect.signature(body).parameters.values())[2:]

        def command(**values: Any) -> None:
            machine, debug, file = values.pop("json"), values.pop("debug"), values.pop("config")
            values.pop("plugin", None)  # read before there were flags, since it brings some: see cli.app
            extra = {parameter.name: values.pop(parameter.name) for parameter in own}
            call = Call(
                name=name or body.__name__,
                body=body,
                kind=kind,
                extra=extra,
                reads_run=reads_run,
                makes_run=makes_run,
                each_model=each_model,
                file=file,
            )
            call.run(values, machine=machine, debug=debug)

        command.__signature__ = _signature(kind, own)  # pyright: ignore[reportFunctionMemberAccess]
        command.__doc__ = body.__doc__
        command.in_hand = partial(in_hand, kind, reads_run=reads_run)  # pyright: ignore[reportFunctionMemberAccess]
        app.command(name or body.__name__, cls=Page, epilog="Examples:\n\n\b\n" + inspect.cleandoc(examples))(command)
        return body

    return register


@dataclass(frozen=True, kw_only=True)
class Call:
    """One invocation of a verb: flags to config, config to work, work to an outcome or an exit code."""

    name: str
    body: Callable[..., "Outcome"]
    kind: type[ModelConfig]
    extra: dict[str, Any]
    reads_run: bool
    makes_run: bool = False
    each_model: Callable[[Given, str | None], list[str]] | None
    file: Path | None

    def run(self, values: dict[str, Any], *, machine: bool, debug: bool) -> None:
        """Do the work and print the outcome; a ForgeError becomes one line and its own exit code."""
        signal.signal(signal.SIGTERM, _terminate)
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as a shell has it for what runs behind it
            signal.signal(signal.SIGINT, signal.default_int_handler)
        started = time.monotonic()
        try:
            work = self._configs(values)
            from cli.screen import Screen

            with as_rank(self.name, work[0]) as first, Screen(silent=not first, machine=machine) as screen:
                outcome = self.body(work if self.each_model else work[0], screen, **self.extra)
                if first:
                    outcome.log(self.name, time.monotonic() - started)
        except ForgeError as error:
            _fail(error, debug)
        except MemoryError as error:
            _fail(ResourceError(f"memory ran out ({error or 'no detail'}); lower the batch sizes"), debug)
        except RuntimeError as error:
            if type(error).__name__ != "OutOfMemoryError":
                raise
            _fail(ResourceError(f"{error}; lower --model_batch_size or --batch_size, or use --quantize"), debug)
        except KeyboardInterrupt as interrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is being obeyed; another would only add a traceback
            typer.echo("stopped; the same command continues from here", err=True)
            raise typer.Exit(143 if isinstance(interrupt, Terminated) else 130) from None
        if not first:
            return
        if machine:
            typer.echo(json.dumps(outcome.to_json(self.name, time.monotonic() - started), ensure_ascii=False))
        else:
            screen.show(outcome)
        if outcome.exit_code:
            raise typer.Exit(outcome.exit_code)

    def _configs(self, values: Given) -> list[Any]:
        spelled = {name: parse_value(self.kind, name, raw) for name, raw in values.items() if raw is not None}
        given = {**(read_config_file(self.file, self.kind) if self.file else {}), **spelled}
        preset = self.extra.get("preset")
        if self.reads_run and "model" not in given:
            from sae_forge.store.runs import CHECKPOINTS, Run, newest_run

            if self.makes_run and "run_dir" not in given and not any(CHECKPOINTS.glob("*/run.json")):
                given |= {"model": builtin.MODELS[0]}
            else:
                run = Run(given["run_dir"]) if "run_dir" in given else newest_run()
                given |= {"model": run.model, "run_dir": run.folder}
                if leads():
                    typer.echo(f"run folder: {run.folder} ({run.model})", err=True)
        works = [given]
        if self.each_model:
            works = [{**given, "model": model} for model in self.each_model(given, preset)]
        return [resolve(self.kind, work, preset=preset) for work in works]


@dataclass(frozen=True, kw_only=True)
class PlainCall(Call):
    """A call about no run and under no config: its body gets what was spelled out, as it is."""

    kind: type[ModelConfig] = ModelConfig
    extra: dict[str, Any] = field(default_factory=dict)
    reads_run: bool = False
    each_model: None = None
    file: None = None

    def _configs(self, values: Given) -> list[Any]:
        return [values]


def _terminate(number: int, frame: object) -> None:
    del number, frame
    raise Terminated


def _fail(error: ForgeError, debug: bool) -> NoReturn:
    if debug:
        traceback.print_exception(error)
    typer.echo(as_called(f"error: {spoken_by()}{' '.join(str(error).split())}"), err=True)
    raise typer.Exit(error.exit_code)


def _signature(kind: type[ModelConfig], own: list[inspect.Parameter]) -> inspect.Signature:
    keyword = inspect.Parameter.KEYWORD_ONLY
    shared = [("config", CONFIG_FILE, None), ("json", JSON, False), ("debug", DEBUG, False)]
    shared = [("plugin", PLUGIN, None), *shared] if hasattr(kind, "catalogue") else shared
    return inspect.Signature(
        [parameter.replace(kind=keyword) for parameter in own]
        + [_parameter(said) for said in described(kind).values()]
        + [inspect.Parameter(name, keyword, annotation=note, default=default) for name, note, default in shared]
    )


def _parameter(said: Described) -> inspect.Parameter:
    """One flag: unset unless spelled out, so that presets and files can fill it."""
    names = [f"--{name}" for name in (said.name, *said.aliases)]
    switch = said.kind is bool
    possible = choices(said.kind)
    option = typer.Option(
        *(f"{name}/--no_{name.removeprefix('--')}" if switch else name for name in names),
        help=said.help + ("" if said.default in (None, (), False) else f" [default: {shown(said.default)}]"),
        metavar=None if switch else _metavar(said.kind),
        show_default=False,
        rich_help_panel=said.heading,
        autocompletion=(lambda: possible) if possible else None,
    )
    kind = bool | None if switch else str | None
    return inspect.Parameter(
        said.name, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[kind, option], default=None
    )


def _metavar(wanted: Any) -> str:
    if possible := choices(wanted):
        return "|".join(possible)
    parts = [part for part in get_args(wanted) if part is not type(None)] or [wanted]
    if get_origin(parts[0]) is tuple:
        return _metavar(get_args(parts[0])[0]) + ",…"
    if get_origin(wanted) is tuple:
        return _metavar(parts[0]) + ",…"
    return {int: "INT", float: "NUMBER", str: "TEXT", Path: "PATH"}.get(parts[0], "TEXT")
