"""Output of the commands: results as JSON or tables on stdout; progress and remarks on stderr."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import click

from refbench.plugins.loading import load_attribute

PLAIN_SECONDS = 10.0


class Points(click.ParamType[float]):
    """Percentage points, at least 0."""

    name = "POINTS"

    def __init__(self, positive: bool = False) -> None:
        self.positive = positive

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            number = float(str(value))
        except ValueError:
            number = math.nan
        if not math.isfinite(number) or number < 0 or (self.positive and number == 0):
            self.fail(f"{value!r} is no {'positive ' if self.positive else ''}number of points", param, ctx)
        return number


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Redirect to stderr whatever models, libraries and child processes print, because stdout is for results."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def print_json(value: Any) -> None:
    """Print one JSON object to stdout. JSON has no NaN, so a metric without a value is null."""
    click.echo(json.dumps(_without_nan(value), indent=2, ensure_ascii=False, allow_nan=False))


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# A number, with its interval or without, or the sign that there is none.
FIGURE = re.compile(r"[-+]?\d[\d.,]*(e[-+]?\d+)? ?%?( \[[^\]]*\])?|\[[^\]]*\]|nan|-|")


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table to stdout: aligned in a terminal, tab-separated if piped."""
    if not sys.stdout.isatty():
        if title:
            click.echo("\n".join(f"# {line}" for line in title.splitlines()))
        for line in [columns, *rows]:
            click.echo("\t".join(line))
        return
    figures = [bool(rows) and all(FIGURE.fullmatch(row[k]) for row in rows) for k in range(len(columns))]
    load_attribute("refbench.cli.terminal:draw_table")(title, columns, rows, figures)


def remark(message: str) -> None:
    click.echo(message, err=True)


def remark_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a small table to stderr, with all columns except the first aligned to the right."""
    lines = [list(columns), *map(list, rows)]
    widths = [max(len(line[k]) for line in lines) for k in range(len(columns))]
    for line in lines:
        cells = [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]
        remark("  " + "  ".join(cells))


def parse_options(pairs: Sequence[str]) -> dict[str, str]:
    """Parse `-o key=value` options into a dict; without a `=`, it is a usage error."""
    options = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise click.BadParameter(f"{pair!r} is not key=value", param_hint="'-o'")
        options[key] = value
    return options


class ConsoleProgress:
    """Progress on stderr: a bar with rate and remaining time in a terminal, occasional lines otherwise."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._tasks: dict[str, Any] = {}
        self._began: dict[str, tuple[float, int]] = {}
        self._said = 0.0

    def __enter__(self) -> ConsoleProgress:
        if sys.stderr.isatty():
            self._bar = load_attribute("refbench.cli.terminal:progress_bar")()
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def pause(self) -> None:
        """Hide the bar while a question is asked; the next step draws it again."""
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, task: str, done: int, total: int) -> None:
        now = time.monotonic()
        began, first = self._began.setdefault(task, (now, done))
        rate = f"{(done - first) / (now - began):.1f}/s" if now > began and done > first else ""
        if self._bar is not None:
            self._bar.start()
            if task not in self._tasks:
                self._tasks[task] = self._bar.add_task(task, total=total, rate="")
            self._bar.update(self._tasks[task], completed=done, total=total, rate=rate)
        elif done == total or now - self._said > PLAIN_SECONDS:
            self._said = now
            click.echo(f"{task}: {done}/{total} {rate}".rstrip(), err=True)


def estimate_cells(metrics: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    return [f"{metrics[n].value:.2f} [{metrics[n].low:.2f}, {metrics[n].high:.2f}]" for n in names]
