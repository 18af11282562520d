"""A group of commands that are imported only when they are called."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import click

from refbench.plugins.loading import load_attribute


class LazyGroup(click.Group):
    """A group that gets its commands from a table and imports each of them when it is called."""

    def __init__(self, *arguments: Any, verbs: Mapping[str, tuple[str, str]], **rest: Any) -> None:
        super().__init__(*arguments, **rest)
        self.verbs = verbs

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.verbs)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.verbs:
            return None
        command: click.Command = load_attribute(self.verbs[cmd_name][0])
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command, or an error that suggests similar ones."""
        name = args[0]
        if name not in self.verbs and not name.startswith("-"):
            close = difflib.get_close_matches(name, self.verbs, n=3)
            hint = f" Did you mean {' or '.join(close)}?" if close else ""
            ctx.fail(f"No such command {name!r}.{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self.verbs.items()])
