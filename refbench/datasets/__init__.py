"""Datasets: building, downloading, verification, comparison and export."""

from __future__ import annotations

from typing import TYPE_CHECKING

from refbench.lazy import lazy_face

if TYPE_CHECKING:
    from refbench.datasets.builders.base import Built, Sources, build_dataset
    from refbench.datasets.overlaps import overlap
    from refbench.datasets.verification import verify

__all__ = [
    "Built",
    "Sources",
    "build_dataset",
    "overlap",
    "verify",
]

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "Built": "refbench.datasets.builders.base:Built",
        "Sources": "refbench.datasets.builders.base:Sources",
        "build_dataset": "refbench.datasets.builders.base:build_dataset",
        "overlap": "refbench.datasets.overlaps:overlap",
        "verify": "refbench.datasets.verification:verify",
    },
)
