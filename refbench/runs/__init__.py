"""Runs an adapter on a split, in this process, in several processes or on a Ray cluster; the predictions are the
same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from refbench.lazy import lazy_face

if TYPE_CHECKING:
    from refbench.runs.folder import RunFolder
    from refbench.runs.runner import RunResult, run

__all__ = [
    "RunFolder",
    "RunResult",
    "run",
]

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "RunFolder": "refbench.runs.folder:RunFolder",
        "RunResult": "refbench.runs.runner:RunResult",
        "run": "refbench.runs.runner:run",
    },
)
