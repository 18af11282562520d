"""The type of options and arguments that are paths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


class FilePath(click.Path):
    """As `click.Path`, but the empty path is an error: it would mean the current folder."""

    def __init__(self, **checks: Any) -> None:
        super().__init__(**{"path_type": Path, **checks})

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if str(value) == "" or "\0" in str(value):
            self.fail("a path must not be empty and must not contain NUL", param, ctx)
        return super().convert(value, param, ctx)
