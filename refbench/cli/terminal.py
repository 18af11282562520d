"""Tables and bars in a terminal. Loaded only where there is one: importing rich takes a tenth of a second."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console, JustifyMethod
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table


def draw_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], figures: Sequence[bool]) -> None:
    """Print an aligned table to stdout; `figures` states which columns are aligned to the right."""
    table = Table(title=title or None, title_justify="left", header_style="bold")
    for column, is_figure in zip(columns, figures, strict=True):
        justify: JustifyMethod = "right" if is_figure else "left"
        table.add_column(column, overflow="fold", justify=justify)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def progress_bar() -> Any:
    """A bar on stderr with the rate and the remaining time."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
