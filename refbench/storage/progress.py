"""Progress reports of long tasks, independent of how they are displayed."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called from time to time: `progress("images", 3, 100)`."""

    def __call__(self, task: str, done: int, total: int) -> None: ...


def silent(task: str, done: int, total: int) -> None:
    """Report nothing."""
