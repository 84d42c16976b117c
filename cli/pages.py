"""Help pages: a command's flags under the headings of what they are about."""

import re
from difflib import get_close_matches
from typing import Any

import typer
from typer.core import TyperCommand

GENERAL = "Options"
"""Heading of what is the same on every command; it comes last."""


ARGUMENTS = "arguments"
DEFAULT = re.compile(r" \[default: [^\]]*\]$")
USAGE_ERROR: Any = typer.BadParameter.__base__
"""What click, or the copy of it in newer Typers, raises for a flag that is none."""


class Page(TyperCommand):
    """A command whose help page has its flags in groups, in the order in which the first of each is declared.

    Of the flags that click finds like a misspelt one, the most alike is named.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta[ARGUMENTS] = tuple(args)  # which run they name decides the defaults that are shown
        try:
            return super().parse_args(ctx, args)
        except USAGE_ERROR as error:
            if getattr(error, "possibilities", None):
                asked = error.option_name.replace("-", "_")
                near = get_close_matches(asked, [name.replace("-", "_") for name in error.possibilities], 1, 0)
                error.message, error.possibilities = f"{error.message}. Did you mean --{near[0].strip('_')}?", None
            raise

    def format_options(self, ctx: Any, formatter: Any) -> None:  # of click, or of the copy of it in newer Typers
        about = getattr(self.callback, "in_hand", None)
        here = about(ctx.meta.get(ARGUMENTS, ())) if about else None
        if here is not None and here.values:
            formatter.write_paragraph()
            formatter.write_text(f"Defaults are those for {here.whose}.")
        groups: dict[str, list[tuple[str, str]]] = {"Arguments": []}
        for parameter in self.get_params(ctx):
            if (record := parameter.get_help_record(ctx)) is None:
                continue
            if here is not None and (value := here.values.get(parameter.name)) is not None:
                record = record[0], f"{DEFAULT.sub('', record[1])} [default here: {value}]"
            argument = parameter.param_type_name == "argument"
            heading = "Arguments" if argument else getattr(parameter, "rich_help_panel", None) or GENERAL
            groups.setdefault(heading, []).append(record)
        groups[GENERAL] = groups.pop(GENERAL)
        for heading, records in groups.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)
