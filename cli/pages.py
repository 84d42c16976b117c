"""Help pages: a command's flags under the headings of what they are about."""

from typing import Any

from typer.core import TyperCommand

GENERAL = "Options"
"""Heading of what is the same on every command; it comes last."""


class Page(TyperCommand):
    """A command whose help page has its flags in groups, in the order in which the first of each is declared."""

    def format_options(self, ctx: Any, formatter: Any) -> None:  # of click, or of the copy of it in newer Typers
        groups: dict[str, list[tuple[str, str]]] = {"Arguments": []}
        for parameter in self.get_params(ctx):
            if (record := parameter.get_help_record(ctx)) is None:
                continue
            argument = parameter.param_type_name == "argument"
            heading = "Arguments" if argument else getattr(parameter, "rich_help_panel", None) or GENERAL
            groups.setdefault(heading, []).append(record)
        groups[GENERAL] = groups.pop(GENERAL)
        for heading, records in groups.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)
